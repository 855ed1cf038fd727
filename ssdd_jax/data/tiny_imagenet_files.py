"""Reader of Tiny ImageNet (Le and Yang, 2015) in its original layout, from a folder or its zip archive.

`wnids.txt` lists the WordNet ids of the classes, and its order defines the labels; copies of the data set that
sort the ids instead have different labels. `words.txt` gives each id a readable name.
"""

from __future__ import annotations

import pathlib
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ssdd_jax.data.encoded import EncodedImages
from ssdd_jax.data.images import one_line
from ssdd_jax.data.source import ImageSource, Part
from ssdd_jax.data.walk import files_below
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import numpy_files

_NAME = "tiny-imagenet-200"
_TRAIN_IMAGE = re.compile(r"train/(?P<wnid>[^/]+)/images/[^/.][^/]*\.JPEG")


class Listing(NamedTuple):
    """File names and labels of Tiny ImageNet, and a function that reads a file.

    Attributes:
        class_names: Readable names in the order of `wnids.txt`; the id if `words.txt` has no name for it.
        train: File and label of every training image, class by class.
        validation: File and label of every validation image; the labels of the test images are not public.
        read: Returns the content of a file.
        where: The folder or archive, for messages.
    """

    class_names: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    validation: tuple[tuple[str, int], ...]
    read: Callable[[str], bytes]
    where: pathlib.Path


def find(data_dir: pathlib.Path) -> pathlib.Path | None:
    """Locate the folder or archive of Tiny ImageNet, at `data_dir` or inside it; None if there is neither."""
    for folder in (data_dir, data_dir / _NAME):
        if (folder / "wnids.txt").is_file():
            return folder
    archives = (data_dir, data_dir / f"{_NAME}.zip")
    return next((path for path in archives if path.suffix == ".zip" and path.is_file()), None)


def list_images(path: pathlib.Path) -> Listing:
    """List the images of a folder or archive returned by `find`.

    Args:
        path: The folder that holds `wnids.txt`, or a zip archive that holds such a folder.

    Returns:
        The listing.

    Raises:
        UserError: If the archive is damaged, or files are missing.
    """
    # From here on, names are relative to the folder of `wnids.txt`, in a folder and in an archive alike.
    names, read = _open_folder(path) if path.is_dir() else _open_archive(path)
    wnids = _text(read, "wnids.txt", path).split()
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    train = []
    for name in names:
        match = _TRAIN_IMAGE.fullmatch(name)
        if match and match["wnid"] in label_of:
            train.append((label_of[match["wnid"]], name))
    # The validation images lie in one folder; a table has their classes.
    validation = []
    present = set(names)
    for line in _text(read, "val/val_annotations.txt", path).splitlines():
        file, wnid = line.split("\t")[:2] if "\t" in line else (line, "")
        if f"val/images/{file}" not in present or wnid not in label_of:
            raise UserError(f"{path}: val/val_annotations.txt names {file!r}, whose image or class is not there")
        validation.append((f"val/images/{file}", label_of[wnid]))
    if not train or not validation:
        raise UserError(f"{path} has no images in train/<id>/images or val/images: unpack the archive anew")
    words = _text(read, "words.txt", path) if "words.txt" in present else ""
    ordered = tuple((name, label) for label, name in sorted(train))
    return Listing(_class_names(wnids, words), ordered, tuple(validation), read, path)


def open_files(path: pathlib.Path, image_size: int) -> ImageSource:
    """Open a folder or archive returned by `find`.

    Args:
        path: The folder or archive.
        image_size: The height and width to resize to, or 0 for 64.

    Returns:
        The source: the training images, and the validation images as the test part, all RGB.

    Raises:
        UserError: If the archive is damaged, or files are missing.
    """
    listing = list_images(path)
    train, validation = (_part(listing, images, image_size) for images in (listing.train, listing.validation))
    return ImageSource(train, validation, listing.class_names)


def _part(listing: Listing, images: Sequence[tuple[str, int]], image_size: int) -> Part:
    encoded = EncodedImages(
        lambda indices: [listing.read(images[index][0]) for index in indices],
        lambda index: f"{listing.where}: {images[index][0]}",
        image_size,
    )
    return Part(len(images), np.array([label for _, label in images], np.int32), encoded.read)


def _open_folder(path: pathlib.Path) -> tuple[list[str], Callable[[str], bytes]]:
    """List the names of the files, relative and with "/", and return their reader."""
    parts = [path / part for part in ("train", "val") if (path / part).is_dir()]
    # Links to classes are followed, of which some copies consist.
    found = [file for part in parts for file in files_below(part, lambda name: name.endswith(".JPEG")).paths]
    names = [file.relative_to(path).as_posix() for file in found]
    names += [name for name in ("words.txt",) if (path / name).is_file()]
    return names, lambda name: (path / name).read_bytes()


def _open_archive(path: pathlib.Path) -> tuple[list[str], Callable[[str], bytes]]:
    """Do the same as `_open_folder` for an archive, which stays open while the reader exists."""
    try:
        archive = zipfile.ZipFile(path)
    except numpy_files.DAMAGE as error:
        raise UserError(f"{path} is not a zip archive, or a damaged one: {one_line(error)}") from error
    # `ZipFile.read` locks the file for each access, so threads may share the archive. The outermost `wnids.txt` is the
    # one of the data set: some copies add a folder around it.
    listed = [name for name in archive.namelist() if name.rpartition("/")[2] == "wnids.txt"]
    root = min(listed, key=len, default="wnids.txt").removesuffix("wnids.txt")
    names = [name.removeprefix(root) for name in archive.namelist() if name.startswith(root)]

    def read(name: str) -> bytes:
        try:
            return archive.read(root + name)
        except numpy_files.DAMAGE as error:
            raise UserError(f"{path} is damaged at {name}: {one_line(error) or type(error).__name__}") from error

    return names, read


def _text(read: Callable[[str], bytes], name: str, path: pathlib.Path) -> str:
    try:
        return read(name).decode()
    except (OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} lacks a readable {name}, which the original Tiny ImageNet has") from error


def _class_names(wnids: Sequence[str], words: str) -> tuple[str, ...]:
    """Return readable names, with the id appended if two classes share a name."""
    word_of = dict(line.split("\t", 1) for line in words.splitlines() if "\t" in line)
    names = [word_of.get(wnid, wnid).strip() for wnid in wnids]
    shared = Counter(names)
    return tuple(f"{name} ({wnid})" if shared[name] > 1 else name for name, wnid in zip(names, wnids, strict=True))
