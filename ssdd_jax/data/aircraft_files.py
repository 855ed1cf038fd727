"""Reader of FGVC-Aircraft (Maji et al., 2013, arXiv:1306.5151) as published, from its folder or its tar archive.

The task is that of the transfer tables of KRR-ST and MKDT (`aircraft.py` of both): 100 variants of aircraft, 6,667
training images (`images_variant_trainval.txt`) and 3,333 test images (`images_variant_test.txt`). Every photograph ends
in a banner of 20 pixels that names its owner; it is not cropped, as in that code. Labels follow `variants.txt`.
"""

from __future__ import annotations

import itertools
import pathlib
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ssdd_jax.data.encoded import EncodedImages
from ssdd_jax.data.images import one_line
from ssdd_jax.data.source import ImageSource, Part
from ssdd_jax.errors import UserError

_NAME = "fgvc-aircraft-2013b"
_VARIANTS = "variants.txt"
_TRAIN = "images_variant_trainval.txt"
_TEST = "images_variant_test.txt"
_MEMBER = re.compile(r"(?:.*/)?data/(?P<name>(?:images/)?[^/]+)")
_LINE = re.compile(r"(?P<image>\w+) +(?P<variant>\S.*)")
# Photographs in memory at once while an archive is read: 140 MB, and enough work for four threads.
_CHUNK = 512


class Listing(NamedTuple):
    """File names and labels of FGVC-Aircraft.

    Attributes:
        class_names: The variants, in the order of `variants.txt`.
        train: File below `data` and label of every training image, in the order of the published list.
        test: File and label of every test image, in the order of the published list.
        where: The folder or archive.
    """

    class_names: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    test: tuple[tuple[str, int], ...]
    where: pathlib.Path


def find(data_dir: pathlib.Path) -> pathlib.Path | None:
    """Locate the folder or archive of FGVC-Aircraft, at `data_dir` or inside it; None if there is neither."""
    for folder in (data_dir, data_dir / _NAME):
        if (folder / "data" / _VARIANTS).is_file():
            return folder
    archives = (data_dir, data_dir / f"{_NAME}.tar.gz")
    return next((path for path in archives if path.name.endswith((".tar.gz", ".tgz", ".tar")) and path.is_file()), None)


def list_images(path: pathlib.Path) -> Listing:
    """List the images of a folder or archive returned by `find`.

    Args:
        path: The folder that holds `data`, or a tar archive that holds such a folder.

    Returns:
        The listing.

    Raises:
        UserError: If the archive is damaged, a list is missing, or a line of a list is malformed, names a variant that
            is not in `variants.txt`, or repeats an image.
    """
    texts = _texts(path)
    class_names = tuple(line.strip() for line in texts[_VARIANTS].splitlines() if line.strip())
    if len(set(class_names)) != len(class_names):
        raise UserError(f"{path}: data/{_VARIANTS} names a variant twice")
    label_of = {variant: label for label, variant in enumerate(class_names)}
    # One set for both lists: an image in both would leak from the training into the test part.
    listed: set[str] = set()
    train, test = (_labelled_files(path, name, texts[name], label_of, listed) for name in (_TRAIN, _TEST))
    return Listing(class_names, train, test, path)


def open_files(path: pathlib.Path, image_size: int) -> ImageSource:
    """Open a folder or archive returned by `find`.

    Args:
        path: The folder or archive. An archive is not unpacked to the disk; it is read from its start for the lists,
            and once more for each part, as a compressed archive has no random access.
        image_size: The height and width to resize to; not 0, as the photographs differ in size.

    Returns:
        The source: both parts in RGB, in the order of their lists.

    Raises:
        UserError: If `list_images` fails, `image_size` is 0, or an image is missing from a folder (from an archive:
            when its images are read).
    """
    if image_size == 0:
        raise UserError(f"{path}: the images of FGVC-Aircraft differ in size; give one with --config.data.image_size")
    listing = list_images(path)
    part = _folder_part if path.is_dir() else _archive_part
    train, test = (part(path, images, image_size) for images in (listing.train, listing.test))
    return ImageSource(train, test, listing.class_names)


def _texts(path: pathlib.Path) -> dict[str, str]:
    """Read the three lists, by name."""
    names = (_VARIANTS, _TRAIN, _TEST)
    if path.is_dir():
        contents = {name: (path / "data" / name).read_bytes() for name in names if (path / "data" / name).is_file()}
    else:  # reading stops after the third list
        contents = dict(itertools.islice(_members(path, names.__contains__), len(names)))
    texts = {}
    for name in names:
        try:
            texts[name] = contents[name].decode()
        except (KeyError, UnicodeDecodeError) as error:
            raise UserError(f"{path} lacks a readable data/{name}, which the original FGVC-Aircraft has") from error
    return texts


def _labelled_files(
    path: pathlib.Path, name: str, text: str, label_of: dict[str, int], listed: set[str]
) -> tuple[tuple[str, int], ...]:
    """Parse one list, with lines such as "1025794 707-320", into files and labels, and add the files to `listed`."""
    images = []
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line.strip())
        if not match:
            raise UserError(f"{path}: line {number} of data/{name} is not an image and its variant: {line[:60]!r}")
        file, variant = f"images/{match['image']}.jpg", match["variant"]
        if variant not in label_of:
            raise UserError(f"{path}: line {number} of data/{name}: data/{_VARIANTS} has no variant {variant!r}")
        if file in listed:
            raise UserError(f"{path}: line {number} of data/{name}: {file} was named before")
        listed.add(file)
        images.append((file, label_of[variant]))
    if not images:
        raise UserError(f"{path}: data/{name} names no images")
    return tuple(images)


def _folder_part(path: pathlib.Path, images: tuple[tuple[str, int], ...], image_size: int) -> Part:
    present = {file.name for file in path.glob("data/images/*")}
    for file, _ in images:
        if file.removeprefix("images/") not in present:
            raise _lacks(path, file)
    encoded = EncodedImages(
        lambda indices: [(path / "data" / images[index][0]).read_bytes() for index in indices],
        lambda index: f"{path}: data/{images[index][0]}",
        image_size,
    )
    return Part(len(images), _labels(images), encoded.read)


def _archive_part(path: pathlib.Path, images: tuple[tuple[str, int], ...], image_size: int) -> Part:
    def read(indices: np.ndarray) -> np.ndarray:
        """Read the archive once from its start and place every image at its requested position."""
        place = {images[index][0]: position for position, index in enumerate(indices.tolist())}
        missing = dict.fromkeys(place)
        pixels = np.empty((len(indices), image_size, image_size, 3), np.uint8)
        # Chunks bound the memory of the encoded photographs and give the decoding threads work.
        members = _members(path, place.__contains__)
        while chunk := dict(itertools.islice(members, _CHUNK)):
            pixels[[place[file] for file in chunk]] = _decode(path, chunk, image_size)
            for file in chunk:
                missing.pop(file, None)
        if missing:
            raise _lacks(path, next(iter(missing)))
        return pixels

    return Part(len(images), _labels(images), read)


def _decode(path: pathlib.Path, chunk: dict[str, bytes], image_size: int) -> np.ndarray:
    """Decode files to `(k, image_size, image_size, 3)` uint8, in their order."""
    files = list(chunk)
    encoded = EncodedImages(
        lambda indices: [chunk[files[index]] for index in indices],
        lambda index: f"{path}: data/{files[index]}",
        image_size,
    )
    return encoded.read(np.arange(len(files)))


def _members(path: pathlib.Path, select: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield the selected files of an archive, named relative to `data`, in the order of the archive."""
    try:
        with tarfile.open(path, "r|*") as archive:  # a stream: going back would decompress all of it again
            for member in archive:
                match = _MEMBER.fullmatch(member.name)
                file = archive.extractfile(member) if match and member.isfile() and select(match["name"]) else None
                if match and file:
                    yield match["name"], file.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{path} is not a tar archive, or a damaged one: {one_line(error)}") from error


def _labels(images: tuple[tuple[str, int], ...]) -> np.ndarray:
    return np.array([label for _, label in images], np.int32)


def _lacks(path: pathlib.Path, file: str) -> UserError:
    return UserError(f"{path} lacks data/{file}, which its lists name: get it anew")
