"""Images from a folder of image files."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from ssdd_jax.data.encoded import EncodedImages
from ssdd_jax.data.source import Part, Source
from ssdd_jax.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
# Where the test part is looked for when `test_split` is left at "test".
TEST_NAMES = ("test", "validation", "val")


def open_folder(path: pathlib.Path, *, train_split: str, test_split: str, image_size: int) -> Source:
    """Opens a folder. Images are sorted by their path, and read as RGB.

    Args:
        path: the folder. With a subfolder named `train_split` the training images are in there, and the
            test images in the one named `test_split`, if there is one; otherwise all images at any depth
            are the training part. Labels are the names of the first-level subfolders of a part when all
            its images are in at least two of them; otherwise there are none. Files with other endings
            and hidden files are passed over.
        train_split: a subfolder, normally "train".
        test_split: a subfolder; "test" also finds "validation" and "val"; "" looks for none.
        image_size: the height and width to resize to, or 0.

    Returns:
        The source.

    Raises:
        UserError: the folder or a named subfolder is missing or without images, or a class of the test
            images has no training images.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: check --config.data.name")
    train_path, test_path = _parts(path, train_split, test_split)
    train_files = _image_files(train_path)
    subfolders = _subfolders(train_path, train_files)
    names = tuple(sorted({name for name in subfolders if name is not None}))
    if None in subfolders or len(names) < 2:
        names = ()
    train = _part(train_path, train_files, names, image_size)
    if test_path is None:
        return Source(train, None, names)
    return Source(train, _part(test_path, _image_files(test_path), names, image_size), names)


def _parts(path: pathlib.Path, train_split: str, test_split: str) -> tuple[pathlib.Path, pathlib.Path | None]:
    """The folders of the training and the test images."""
    train = path / train_split
    if not train_split or not train.is_dir():
        if train_split not in ("", "train"):
            raise UserError(f"{path} has no folder {train_split!r}: check --config.data.train_split")
        return path, None
    candidates = TEST_NAMES if test_split == "test" else (test_split,) if test_split else ()
    found = next((path / name for name in candidates if (path / name).is_dir()), None)
    if found is None and test_split not in ("", "test"):
        raise UserError(f"{path} has no folder {test_split!r}: check --config.data.test_split")
    return train, found


def _image_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The image files below a folder, sorted by path; links to folders are followed."""
    files = []
    for folder, subfolders, names in os.walk(path, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [
            pathlib.Path(folder, name)
            for name in names
            if not name.startswith(".") and name.lower().endswith(EXTENSIONS)
        ]
    if not files:
        raise UserError(f"{path} holds no images (files that end in {', '.join(EXTENSIONS)})")
    return sorted(files)


def _subfolders(path: pathlib.Path, files: list[pathlib.Path]) -> list[str | None]:
    """The first-level subfolder of every file, None for a file that lies in none."""
    parts = [file.relative_to(path).parts for file in files]
    return [part[0] if len(part) > 1 else None for part in parts]


def _part(path: pathlib.Path, files: list[pathlib.Path], names: tuple[str, ...], image_size: int) -> Part:
    """The images below a folder, with labels where the classes have names and every file lies in one."""
    labels = None
    subfolders = _subfolders(path, files)
    if names and None not in subfolders:
        unknown = sorted({str(name) for name in subfolders} - set(names))
        if unknown:
            raise UserError(f"{path} has a class {unknown[0]!r} that the training images have not")
        number = {name: label for label, name in enumerate(names)}
        labels = np.array([number[str(name)] for name in subfolders], np.int32)
    images = EncodedImages(
        lambda rows: [files[row].read_bytes() for row in rows], lambda row: str(files[row]), image_size
    )
    return Part(len(files), labels, images.read)
