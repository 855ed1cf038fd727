"""Reader of images from a folder of image files."""

from __future__ import annotations

import os
import pathlib
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssdd_jax.data import splits
from ssdd_jax.data.encoded import DAMAGE, EncodedImages
from ssdd_jax.data.images import size
from ssdd_jax.data.source import ImageSource, Part
from ssdd_jax.data.walk import Files, files_below, subfolders
from ssdd_jax.errors import UserError

EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# Splits tried in this order for the test part when `test_split` is "test".
TEST_NAMES = ("test", "validation", "val", "valid")
# Most files whose size `survey` reads; a larger folder is sampled evenly.
LOOKED_AT = 2000
# Most names that a message lists.
LISTED = 5


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


def survey(path: pathlib.Path, *, train_split: str | None = None, test_split: str = "test") -> Survey:
    """Summarise a folder as `open_folder` would read it.

    Args:
        path: The folder.
        train_split: As for `open_folder`. None takes "train", or all images if the folder cannot be split so: a config
            that is chosen by the survey can then still be told how to.
        test_split: As for `open_folder`.

    Returns:
        The summary.

    Raises:
        UserError: If `open_folder` fails, or none of the sampled image files can be read.
    """
    try:
        contents = _look(path, "train" if train_split is None else train_split, test_split)
    except UserError:
        if train_split is not None:
            raise
        contents = _look(path, "", test_split)
    files = contents.train.paths
    # Even the headers of a large folder take long to read; a sample spread over the sorted files is enough.
    step = -(-len(files) // LOOKED_AT)
    sides = [side for file in files[::step] if (side := _shorter_side(file))]
    if not sides:
        raise UserError(f"{files[0]} is not an image that can be read, nor are the others in {path}")
    # Files that are ignored may be images of a format that is not read: the user should see their number.
    others = files_below(path, is_image).others
    shorter = min(sides), round(statistics.median(sides)), max(sides)
    test = len(contents.test.paths) if contents.test else 0
    return Survey(path, len(files), test, len(contents.class_names), shorter, others)


def _shorter_side(file: pathlib.Path) -> int:
    """Return the shorter side in pixels, or 0 for an unreadable file, which is reported when it is decoded."""
    try:
        return min(size(file))
    except DAMAGE:
        return 0


def open_folder(path: pathlib.Path, *, train_split: str, test_split: str, image_size: int) -> ImageSource:
    """Open a folder. Images are sorted by their path, and read as RGB.

    Args:
        path: The folder. If it has a subfolder that is named `train_split`, that one holds the training images, and the
            subfolder named `test_split`, if any, the test images; otherwise all images at any depth are the
            training part. The classes are the first-level subfolders of the training part, if there are at least
            two and no image lies outside them; otherwise there are no labels. A folder with nothing but one subfolder
            stands for that one. Links are followed, and every real file is read once. Files with other extensions and
            hidden files are ignored.
        train_split: A subfolder; "train" also matches "Training", "train_set" and the like: see `splits.find`. "" takes
            all subfolders as classes.
        test_split: A subfolder; "test" also matches "Testing" and the like, or else "validation", "valid" and "val"; ""
            reads no test part.
        image_size: The height and width to resize to, or 0.

    Returns:
        The source. Its notes name what is not read.

    Raises:
        UserError: If the folder or a named subfolder is missing or has no images, its names leave a choice, a file is
            in both parts, or a class of the test images has no training images.
    """
    contents = _look(path, train_split, test_split)
    train = _part(contents.train, contents.class_names, image_size)
    test = None if contents.test is None else _part(contents.test, contents.class_names, image_size)
    names = tuple(printable(name) for name in contents.class_names)
    return ImageSource(train, test, names, contents.notes)


class _Contents(NamedTuple):
    """Files of both parts, the names of the classes, and what a user should know about the folder."""

    train: Files
    test: Files | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def _look(path: pathlib.Path, train_split: str, test_split: str) -> _Contents:
    """List the images of both parts and the classes of a folder."""
    if path.is_file():
        raise UserError(f"{path} is a file, not a folder: unpack it if it is an archive, and name the folder")
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: check its name, or --config.data.name")
    place, split, notes = _split(path, train_split, test_split)
    train = _images(place / split.train if split else place)
    train, levels = _inner(train)
    names, more = _classes(train)
    notes += more
    if split and (split.train != train_split or split.test not in (test_split, None)):
        notes.append(
            f"{split.train} holds the training images" + (f", {split.test} the test images" if split.test else "")
        )
    if names and levels:
        notes.append(f"the classes are the subfolders of {train.root}")
    test = None
    if split and split.test and (place / "wnids.txt").is_file():
        raise UserError(
            f"{place} is Tiny ImageNet, which has its test labels in a file: set --config.data.name=tiny_imagenet and "
            f"--config.data.data_dir={place}"
        )
    if split and split.test is not None:
        # A folder around the classes is around those of the test images too, such as test/seg_test.
        test, _ = _inner(_images(place / split.test), levels)
        if shared := train.real & test.real:
            raise UserError(
                f"{place}: {len(shared):,} files are in {split.train} and in {split.test} through a link: remove it, "
                "or set --config.data.test_split='' to hold out a part of the training images"
            )
    if repeated := train.repeated + (test.repeated if test else 0):
        notes.append(f"links that are left out, as they lead to files or folders that are read already: {repeated:,}")
    return _Contents(train, test, names, tuple(notes))


def _classes(train: Files) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the classes, and what a user should know about them."""
    # The training part alone defines the classes; their order is alphabetical, as in torchvision's `ImageFolder`.
    by_file = _subfolders(train)
    names = tuple(sorted({name for name in by_file if name is not None}))
    if None in by_file or len(names) < 2:
        beside = next((file.name for file, name in zip(train.paths, by_file, strict=True) if name is None), "")
        words = f"no labels: {beside} and others lie in {train.root}, beside its subfolders {_list(names)}"
        return (), [words] if names and beside else []
    notes = []
    if empty := sorted(set(subfolders(train.root, links=False)) - set(names)):
        notes.append(f"no class, as there are no images in it: {_list(empty)} in {train.root}")
    second = sorted({parts[1] for file in train.paths if len(parts := file.relative_to(train.root).parts) > 2})
    if inside := [name for name in second if splits.kind_of(name)]:
        notes.append(f"read together, as splits inside of classes are not told apart: {_list(inside)} in {train.root}")
    return names, notes


def _split(
    path: pathlib.Path, train_split: str, test_split: str
) -> tuple[pathlib.Path, splits.Split | None, list[str]]:
    """Find the folder that is split into parts, at the path or in its only subfolder; and what is beside the parts."""
    place = path
    while (split := splits.find(place, train_split=train_split, test_split=test_split)) is None:
        # An archive unpacks to a folder in a folder, such as data/data/train.
        inner = _only_subfolder(_images(place))
        if inner is None or not train_split:
            return path, None, []
        place = place / inner
    unread = [name for name in split.others if files_below(place / name, is_image).paths]
    unread += [file.name for file in sorted(place.iterdir()) if file.is_file() and is_image(file.name)]
    words = " and ".join(name for name in (split.train, split.test) if name)
    return place, split, [f"not read: {_list(unread)}, beside {words} in {place}"] if unread else []


def _inner(files: Files, most: int | None = None) -> tuple[Files, int]:
    """Go down, at most `most` levels, to the folder with images or several subfolders; returns the levels too."""
    levels = 0
    while (most is None or levels < most) and (inner := _only_subfolder(files)) is not None:
        files, levels = files._replace(root=files.root / inner), levels + 1
    return files, levels


def _only_subfolder(files: Files) -> str | None:
    """Return the first-level subfolder that holds all files, or None."""
    first: str | None = None
    for file in files.paths:  # most folders have a second subfolder soon
        parts = file.relative_to(files.root).parts
        if len(parts) == 1 or first not in (None, parts[0]):
            return None
        first = parts[0]
    return first


def _images(path: pathlib.Path) -> Files:
    """List the image files below a folder."""
    files = files_below(path, is_image)
    if not files.paths:
        instead = [f"{count:,} {ending}" for ending, count in files.others.items()][:LISTED]
        beside = f"; there are {', '.join(instead)}, to be converted first if these are images" if instead else ""
        raise UserError(f"{path} holds no images (files that end in {', '.join(EXTENSIONS)}){beside}")
    return files


def is_image(name: str) -> bool:
    """Return whether a file's name is that of an image; hidden files, such as macOS writes them, are none."""
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def printable(name: str) -> str:
    """Return a name with bytes that are not UTF-8 escaped, so that it can be stored and printed."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _subfolders(files: Files) -> list[str | None]:
    """Return the first-level subfolder of every file, None for a file directly in the root."""
    parts = [file.relative_to(files.root).parts for file in files.paths]
    return [part[0] if len(part) > 1 else None for part in parts]


def _part(part: Files, names: tuple[str, ...], image_size: int) -> Part:
    """Build a part from image files, labelled if there are class names and every file lies in a subfolder."""
    labels, files = None, part.paths
    by_file = _subfolders(part)
    if names and None not in by_file:
        unknown = sorted({str(name) for name in by_file} - set(names))
        if unknown:
            raise UserError(
                f"{part.root} has a class {unknown[0]!r} that the training images have not: rename or move it, or set "
                "--config.data.test_split='' to hold out a part of the training images"
            )
        number = {name: label for label, name in enumerate(names)}
        labels = np.array([number[str(name)] for name in by_file], np.int32)
    images = EncodedImages(
        lambda indices: [files[index].read_bytes() for index in indices], lambda index: str(files[index]), image_size
    )

    def lengths(rows: np.ndarray) -> np.ndarray:
        return np.array([files[index].stat().st_size for index in rows.tolist()], np.int64)

    return Part(len(files), labels, images.read, lengths)
