"""Reader of images from an `.npz` archive of NumPy arrays."""

from __future__ import annotations

import pathlib

import numpy as np

from ssdd_jax.data import conversion
from ssdd_jax.data import labels as label_table
from ssdd_jax.data.images import array_part
from ssdd_jax.data.source import ImageSource
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import numpy_files

# Accepted names of the images and labels of each part, in pairs; the first pair whose images are present is used.
_TRAIN = (("train_images", "train_labels"), ("images", "labels"), ("x_train", "y_train"), ("x", "y"))
_TEST = (("test_images", "test_labels"), ("x_test", "y_test"), ("val_images", "val_labels"), ("x_val", "y_val"))
_NAMES = "class_names"


def open_npz(path: pathlib.Path, image_size: int) -> ImageSource:
    """Open an archive; nothing in it is ever unpickled.

    Args:
        path: The archive. Images are under `train_images`, `images`, `x_train` or `x`, their labels under
            `train_labels`, `labels`, `y_train` or `y`, the test part under `test_images` or `x_test` (or else
            `val_images` or `x_val`) and `test_labels` or `y_test`, names of the classes under `class_names`; only
            images are needed.
            Images are as for `conversion.to_images`, usually uint8 `(n, H, W, C)`; labels are whole numbers or text
            `(n,)`.
        image_size: The height and width to resize to, or 0.

    Returns:
        The source. Its classes are the labels that occur, named by themselves if they have no names. A note lists the
        arrays that are not read.

    Raises:
        UserError: If the file is missing or damaged, or its arrays are not as described.
    """
    arrays, unread = _read(path)
    source = as_source(path, arrays, image_size)
    notes = (f"not read: {', '.join(unread)} in {path}",) if unread else ()
    return source._replace(notes=source.notes + notes)


def as_source(path: pathlib.Path, arrays: dict[str, np.ndarray], image_size: int) -> ImageSource:
    """Build a source from arrays in memory or mapped from disk.

    Args:
        path: The file or folder of the arrays, for messages.
        arrays: Arrays under the first of the names that `open_npz` accepts: images `(n, H, W, C)` or `(n, H, W)`,
            labels `(n,)`, names of classes as text.
        image_size: The height and width to resize to, or 0.

    Returns:
        The source.

    Raises:
        UserError: If the arrays are not as described in `open_npz`.
    """
    # Labels without images usually mean a misspelt name, so they are refused rather than ignored.
    if "train_images" not in arrays:
        raise UserError(f"{path} holds no images: name the array one of {', '.join(name for name, _ in _TRAIN)}")
    if "test_labels" in arrays and "test_images" not in arrays:
        raise UserError(f"{path} holds test labels but no test images ({' or '.join(name for name, _ in _TEST[:2])})")
    train_images = conversion.to_images(f"the images in {path}", arrays["train_images"])
    test_images = None
    if "test_images" in arrays:
        test_images = conversion.to_images(f"the test images in {path}", arrays["test_images"])
    checked = [
        label_table.check(str(path), arrays[name], len(images)) if name in arrays and images is not None else None
        for name, images in (("train_labels", train_images), ("test_labels", test_images))
    ]
    names = tuple(str(name) for name in label_table.text(arrays.get(_NAMES, np.zeros(0, str))).ravel())
    (train_labels, test_labels), class_names, notes = label_table.classes(str(path), checked, names)
    train = array_part(train_images, train_labels, image_size)
    test = None if test_images is None else array_part(test_images, test_labels, image_size)
    return ImageSource(train, test, class_names or names, notes)


def _read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Load the arrays of both parts under the first names that `as_source` takes; returns the names of others too."""
    if not path.is_file():
        raise UserError(f"{path} is not a file: check --config.data.name")
    with numpy_files.opened(path) as archive:
        if isinstance(archive, np.ndarray):
            raise UserError(f"{path} holds a single array: save it with numpy.savez as train_images")
        # An archive decompresses an array when it is indexed: arrays of other names are not read.
        chosen = {_NAMES: _NAMES, **_pair(_TRAIN, list(archive)), **_pair(_TEST, list(archive))}
        chosen = {name: key for name, key in chosen.items() if key in archive}
        unread = [key for key in archive if key not in chosen.values()]
        return {name: archive[key] for name, key in chosen.items()}, unread


def _pair(pairs: tuple[tuple[str, str], ...], stored: list[str]) -> dict[str, str]:
    """Choose the names under which a part's images and labels are stored, by the first of their names."""
    present = [pair for pair in pairs if pair[0] in stored] or [pair for pair in pairs if pair[1] in stored]
    return dict(zip(pairs[0], (present or pairs)[0], strict=True))
