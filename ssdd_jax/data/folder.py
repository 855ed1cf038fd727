"""Reader of images from a folder of image files."""

from __future__ import annotations

import collections
import os
import pathlib
import statistics
from typing import NamedTuple

import numpy as np
from PIL import Image

from ssdd_jax.data.encoded import DAMAGE, EncodedImages
from ssdd_jax.data.source import ImageSource, Part
from ssdd_jax.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
# Subfolders tried in this order for the test part when `test_split` is "test".
TEST_NAMES = ("test", "validation", "val")
# Most files whose size `survey` reads; a larger folder is sampled evenly.
LOOKED_AT = 2000


class Survey(NamedTuple):
    """Summary of a folder of images, computed without decoding an image.

    Attributes:
        path: The folder.
        train: Number of images outside the test part.
        test: Number of images in the test part; 0 if the folder has none.
        classes: Number of classes by subfolder; 0 without labels.
        shorter: The smallest, the median and the largest of the images' shorter sides, in pixels.
        others: Number of files that are not images, by file extension, most frequent first; includes hidden files.
    """

    path: pathlib.Path
    train: int
    test: int
    classes: int
    shorter: tuple[int, int, int]
    others: dict[str, int]


def survey(path: pathlib.Path, *, train_split: str = "train", test_split: str = "test") -> Survey:
    """Summarise a folder as `open_folder` would read it.

    Args:
        path: The folder.
        train_split: As for `open_folder`.
        test_split: As for `open_folder`.

    Returns:
        The summary.

    Raises:
        UserError: If `open_folder` fails, or none of the sampled image files can be read.
    """
    source = open_folder(path, train_split=train_split, test_split=test_split, image_size=0)
    files = _image_files(_parts(path, train_split, test_split)[0])
    # Even the headers of a large folder take long to read; a sample spread over the sorted files is enough.
    step = -(-len(files) // LOOKED_AT)
    sides = [side for file in files[::step] if (side := _shorter_side(file))]
    if not sides:
        raise UserError(f"{files[0]} is not an image that can be read, nor are the others in {path}")
    # Files that are ignored may be images of a format that is not read: the user should see their number.
    others = collections.Counter(
        pathlib.Path(name).suffix.lower() or name
        for _, _, names in os.walk(path, followlinks=True)
        for name in names
        if not _is_image(name)
    )
    shorter = min(sides), round(statistics.median(sides)), max(sides)
    test = source.test.size if source.test else 0
    return Survey(path, source.train.size, test, len(source.class_names), shorter, dict(others.most_common()))


def _shorter_side(file: pathlib.Path) -> int:
    """Return the shorter side in pixels, or 0 for an unreadable file, which is reported when it is decoded."""
    try:
        with Image.open(file) as image:
            return min(image.size)
    except DAMAGE:
        return 0


def open_folder(path: pathlib.Path, *, train_split: str, test_split: str, image_size: int) -> ImageSource:
    """Open a folder. Images are sorted by their path, and read as RGB.

    Args:
        path: The folder. If it has a subfolder named `train_split`, that one holds the training images, and the
            subfolder named `test_split`, if any, the test images; otherwise all images at any depth are the
            training part. The classes are the first-level subfolders of the training part, if there are at least
            two and no image lies outside them; otherwise there are no labels. Files with other extensions and
            hidden files are ignored.
        train_split: A subfolder, normally "train".
        test_split: A subfolder; "test" also matches "validation" and "val"; "" reads no test part.
        image_size: The height and width to resize to, or 0.

    Returns:
        The source.

    Raises:
        UserError: If the folder or a named subfolder is missing or has no images, or a class of the test
            images has no training images.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: check its name, or --config.data.name")
    train_path, test_path = _parts(path, train_split, test_split)
    train_files = _image_files(train_path)
    # The training part alone defines the classes; their order is alphabetical, as in torchvision's `ImageFolder`.
    subfolders = _subfolders(train_path, train_files)
    names = tuple(sorted({name for name in subfolders if name is not None}))
    if None in subfolders or len(names) < 2:
        names = ()
    train = _part(train_path, train_files, names, image_size)
    if test_path is None:
        return ImageSource(train, None, names)
    return ImageSource(train, _part(test_path, _image_files(test_path), names, image_size), names)


def _parts(path: pathlib.Path, train_split: str, test_split: str) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Locate the folders of the training and the test images."""
    # Without the default subfolder the folder itself is the training part; a name set by the user must exist.
    train = path / train_split
    if not train_split or not train.is_dir():
        if train_split not in ("", "train"):
            raise UserError(f"{path} has no folder {train_split!r}: check --config.data.train_split")
        return path, None
    candidates = TEST_NAMES if test_split == "test" else (test_split,) if test_split else ()
    test = next((path / name for name in candidates if (path / name).is_dir()), None)
    if test is None and test_split not in ("", "test"):
        raise UserError(f"{path} has no folder {test_split!r}: check --config.data.test_split")
    return train, test


def _image_files(path: pathlib.Path) -> list[pathlib.Path]:
    """List the image files below a folder, sorted by path; symbolic links to folders are followed."""
    files = []
    for folder, subfolders, names in os.walk(path, followlinks=True):
        # In place: `os.walk` then does not descend into the hidden folders.
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [pathlib.Path(folder, name) for name in names if _is_image(name)]
    if not files:
        raise UserError(f"{path} holds no images (files that end in {', '.join(EXTENSIONS)})")
    return sorted(files)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def _subfolders(path: pathlib.Path, files: list[pathlib.Path]) -> list[str | None]:
    """Return the first-level subfolder of every file, None for a file directly in `path`."""
    parts = [file.relative_to(path).parts for file in files]
    return [part[0] if len(part) > 1 else None for part in parts]


def _part(path: pathlib.Path, files: list[pathlib.Path], names: tuple[str, ...], image_size: int) -> Part:
    """Build a part from image files, labelled if there are class names and every file lies in a subfolder."""
    labels = None
    subfolders = _subfolders(path, files)
    if names and None not in subfolders:
        unknown = sorted({str(name) for name in subfolders} - set(names))
        if unknown:
            raise UserError(f"{path} has a class {unknown[0]!r} that the training images have not")
        number = {name: label for label, name in enumerate(names)}
        labels = np.array([number[str(name)] for name in subfolders], np.int32)
    images = EncodedImages(
        lambda indices: [files[index].read_bytes() for index in indices], lambda index: str(files[index]), image_size
    )
    return Part(len(files), labels, images.read)
