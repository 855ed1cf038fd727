"""Reader of images from an `.npz` archive of NumPy arrays."""

from __future__ import annotations

import pathlib
import zipfile
import zlib

import numpy as np

from ssdd_jax.data import conversion
from ssdd_jax.data import labels as label_table
from ssdd_jax.data.images import array_part, one_line
from ssdd_jax.data.source import ImageSource
from ssdd_jax.errors import UserError

# Accepted names of each array; the first one present is used.
_KEYS = {
    "train_images": ("train_images", "images", "x_train", "x"),
    "train_labels": ("train_labels", "labels", "y_train", "y"),
    "test_images": ("test_images", "x_test"),
    "test_labels": ("test_labels", "y_test"),
    "class_names": ("class_names",),
}


def open_npz(path: pathlib.Path, image_size: int) -> ImageSource:
    """Open an archive; nothing in it is ever unpickled.

    Args:
        path: The archive. Images are under `train_images`, `images`, `x_train` or `x`, their labels under
            `train_labels`, `labels`, `y_train` or `y`, the test part under `test_images` or `x_test` and
            `test_labels` or `y_test`, names of the classes under `class_names`; only images are needed.
            Images are as for `conversion.to_images`, usually uint8 `(n, H, W, C)`; labels are whole numbers or text
            `(n,)`.
        image_size: The height and width to resize to, or 0.

    Returns:
        The source. Its classes are the labels that occur, named by themselves if they have no names.

    Raises:
        UserError: If the file is missing or damaged, or its arrays are not as described.
    """
    return as_source(path, _read(path), image_size)


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
        raise UserError(f"{path} holds no images: name the array one of {', '.join(_KEYS['train_images'])}")
    if "test_labels" in arrays and "test_images" not in arrays:
        raise UserError(f"{path} holds test labels but no test images ({' or '.join(_KEYS['test_images'])})")
    train_images = conversion.to_images(f"the images in {path}", arrays["train_images"])
    test_images = None
    if "test_images" in arrays:
        test_images = conversion.to_images(f"the test images in {path}", arrays["test_images"])
    given = [
        label_table.check(str(path), arrays[name], len(images)) if name in arrays and images is not None else None
        for name, images in (("train_labels", train_images), ("test_labels", test_images))
    ]
    names = tuple(str(name) for name in arrays["class_names"].ravel()) if "class_names" in arrays else ()
    (train_labels, test_labels), found, notes = label_table.classes(str(path), given, names)
    train = array_part(train_images, train_labels, image_size)
    test = None if test_images is None else array_part(test_images, test_labels, image_size)
    return ImageSource(train, test, found or names, notes)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Load the arrays that the archive has, under the names of `_KEYS`."""
    if not path.is_file():
        raise UserError(f"{path} is not a file: check --config.data.name")
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path} holds a single array: save it with numpy.savez as train_images")
            # An archive decompresses an array when it is indexed: arrays of other names are not read.
            stored = {name: next((key for key in keys if key in archive.files), None) for name, keys in _KEYS.items()}
            return {name: archive[key] for name, key in stored.items() if key is not None}
    except (
        OSError,
        EOFError,
        ValueError,
        SyntaxError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        # NumPy has no error type for object arrays, only a message that names the argument.
        if "allow_pickle" in str(error):
            raise UserError(
                f"{path} holds pickled Python objects, which are never loaded: save plain uint8 and integer "
                "arrays with numpy.savez"
            ) from error
        raise UserError(f"{path} is not an .npz archive, or a damaged one: {one_line(error)}") from error
