"""Reader of Tiny ImageNet (Le and Yang, 2015) in its original layout, from a folder or its zip archive.

`wnids.txt` lists the WordNet ids of the classes, and its order is the order of the labels; copies that sort
the ids instead number the classes differently. `words.txt` gives each id a readable name.
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
from ssdd_jax.errors import UserError

_NAME = "tiny-imagenet-200"
_TRAIN_IMAGE = re.compile(r"train/(?P<wnid>[^/]+)/images/[^/.][^/]*\.JPEG")


class Listing(NamedTuple):
    """The images of Tiny ImageNet, not read yet.

    Attributes:
        class_names: The readable names, in the order of `wnids.txt`; the id where `words.txt` has no name.
        train: The file and the label of every training image, class by class.
        validation: Likewise for the validation images; the labels of the test images are not public.
        read: Returns the content of a file.
        where: The folder or archive, for messages.
    """

    class_names: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    validation: tuple[tuple[str, int], ...]
    read: Callable[[str], bytes]
    where: pathlib.Path


def find(data_dir: pathlib.Path) -> pathlib.Path | None:
    """The folder or the archive of Tiny ImageNet: `data_dir` itself, or in it; None when there is neither."""
    for folder in (data_dir, data_dir / _NAME):
        if (folder / "wnids.txt").is_file():
            return folder
    archives = (data_dir, data_dir / f"{_NAME}.zip")
    return next((path for path in archives if path.suffix == ".zip" and path.is_file()), None)


def list_images(path: pathlib.Path) -> Listing:
    """Lists the images of a folder or archive that `find` found.

    Args:
        path: The folder that holds `wnids.txt`, or a zip archive that holds such a folder.

    Returns:
        The listing.

    Raises:
        UserError: If the archive is damaged, or files are missing.
    """
    names, read = _open_folder(path) if path.is_dir() else _open_archive(path)
    wnids = _text(read, "wnids.txt", path).split()
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    train = []
    for name in names:
        match = _TRAIN_IMAGE.fullmatch(name)
        if match and match["wnid"] in label_of:
            train.append((label_of[match["wnid"]], name))
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
    """Opens what `find` found.

    Args:
        path: The folder or archive.
        image_size: The height and width to resize to, or 0 for 64.

    Returns:
        The source: the training images, and the validation images as the test part, all RGB.

    Raises:
        UserError: as `list_images`.
    """
    listing = list_images(path)
    train, validation = (_part(listing, rows, image_size) for rows in (listing.train, listing.validation))
    return ImageSource(train, validation, listing.class_names)


def _part(listing: Listing, images: Sequence[tuple[str, int]], image_size: int) -> Part:
    encoded = EncodedImages(
        lambda rows: [listing.read(images[row][0]) for row in rows],
        lambda row: f"{listing.where}: {images[row][0]}",
        image_size,
    )
    return Part(len(images), np.array([label for _, label in images], np.int32), encoded.read)


def _open_folder(path: pathlib.Path) -> tuple[list[str], Callable[[str], bytes]]:
    """The names of the files, relative and with "/", and their reader."""
    names = [file.relative_to(path).as_posix() for part in ("train", "val") for file in path.glob(f"{part}/**/*.JPEG")]
    names += [name for name in ("words.txt",) if (path / name).is_file()]
    return names, lambda name: (path / name).read_bytes()


def _open_archive(path: pathlib.Path) -> tuple[list[str], Callable[[str], bytes]]:
    """As `_open_folder`, for an archive; it is open as long as the reader lives, and threads may share it."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a zip archive, or a damaged one: {one_line(error)}") from error
    listed = [name for name in archive.namelist() if name.rpartition("/")[2] == "wnids.txt"]
    root = min(listed, key=len, default="wnids.txt").removesuffix("wnids.txt")
    names = [name.removeprefix(root) for name in archive.namelist() if name.startswith(root)]
    return names, lambda name: archive.read(root + name)


def _text(read: Callable[[str], bytes], name: str, path: pathlib.Path) -> str:
    try:
        return read(name).decode()
    except (OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} lacks a readable {name}, which the original Tiny ImageNet has") from error


def _class_names(wnids: Sequence[str], words: str) -> tuple[str, ...]:
    """Readable names, made unique by the id where two classes share one."""
    word_of = dict(line.split("\t", 1) for line in words.splitlines() if "\t" in line)
    names = [word_of.get(wnid, wnid).strip() for wnid in wnids]
    shared = Counter(names)
    return tuple(f"{name} ({wnid})" if shared[name] > 1 else name for name, wnid in zip(names, wnids, strict=True))
