"""Damage to files: random mutations of valid ones, and files that lie about what they hold."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection

import numpy as np

Generator = np.random.Generator
# Values that sizes and offsets are replaced by.
NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 60, (1 << 63) - 1, (1 << 64) - 1)


def mutate(generator: Generator, path: pathlib.Path) -> str:
    """Change one file of a folder, or the file itself, in one way; returns what was changed."""
    below = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    file = below[generator.integers(len(below))]
    content = bytearray(file.read_bytes())
    name = list(MUTATIONS)[generator.integers(len(MUTATIONS))]
    MUTATIONS[name](generator, content)
    file.write_bytes(content)
    return f"{file.name}: {name}"


def _place(generator: Generator, content: bytearray) -> int:
    """Choose a place; the beginning and the end, where headers and directories are, as often as the rest."""
    length = max(1, len(content))
    kind = generator.integers(3)
    if kind == 0:
        return int(generator.integers(min(length, 256)))
    if kind == 1:
        return length - 1 - int(generator.integers(min(length, 256)))
    return int(generator.integers(length))


def _flip(generator: Generator, content: bytearray) -> None:
    for _ in range(1 + int(generator.integers(4))):
        if content:
            content[_place(generator, content)] ^= 1 << int(generator.integers(8))


def _overwrite(generator: Generator, content: bytearray) -> None:
    place, length = _place(generator, content), 1 + int(generator.integers(64))
    piece = content[place : place + length]
    content[place : place + length] = generator.bytes(len(piece))


def _zero(generator: Generator, content: bytearray) -> None:
    place, length = _place(generator, content), 1 + int(generator.integers(4096))
    content[place : place + length] = bytes(len(content[place : place + length]))


def _cut(generator: Generator, content: bytearray) -> None:
    del content[_place(generator, content) :]


def _empty(generator: Generator, content: bytearray) -> None:
    content.clear()


def _repeat(generator: Generator, content: bytearray) -> None:
    place, length = _place(generator, content), 1 + int(generator.integers(256))
    content[place:place] = content[place : place + length]


def _insert(generator: Generator, content: bytearray) -> None:
    place = _place(generator, content)
    content[place:place] = generator.bytes(1 + int(generator.integers(16)))


def _remove(generator: Generator, content: bytearray) -> None:
    place = _place(generator, content)
    del content[place : place + 1 + int(generator.integers(16))]


def _number(generator: Generator, content: bytearray) -> None:
    """Replace a binary number by an extreme one, or the digits of one in text."""
    digits = [i for i, byte in enumerate(content[:4096]) if chr(byte).isdigit()]
    if digits and generator.integers(2):
        place = digits[generator.integers(len(digits))]
        words = (b"0", b"-1", b"1e999", b"99999999999999999999", b"null", b"NaN")
        content[place : place + 1] = words[generator.integers(len(words))]
        return
    place, width = _place(generator, content), (1, 2, 4, 8)[generator.integers(4)]
    value = NUMBERS[generator.integers(len(NUMBERS))] & ((1 << 8 * width) - 1)
    piece = content[place : place + width]
    content[place : place + width] = value.to_bytes(width, "little")[: len(piece)]


MUTATIONS: dict[str, Callable[[Generator, bytearray], None]] = {
    "bits flipped": _flip,
    "bytes overwritten": _overwrite,
    "bytes zeroed": _zero,
    "cut off": _cut,
    "emptied": _empty,
    "bytes repeated": _repeat,
    "bytes inserted": _insert,
    "bytes removed": _remove,
    "a number replaced": _number,
}


class _Trap:
    """An object whose unpickling leaves a file in the working directory."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, int]]:
        return os.mkdir, ("unpickled", 0o700)


def _one(path: pathlib.Path, ending: str) -> pathlib.Path:
    """Return the file itself, or the first file of a folder that ends so."""
    below = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return next(file for file in below if file.name.endswith(ending))


def _npy_header(shape: str, dtype: str = "<f4") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def _huge_npy(path: pathlib.Path) -> None:
    _one(path, ".npy").write_bytes(_npy_header("(1152921504606846976, 4)") + bytes(64))


def _pickled_npy(path: pathlib.Path) -> None:
    _one(path, ".npy").write_bytes(_npy_header("(1,)", "|O") + pickle.dumps([_Trap()]))


def _npz_with(path: pathlib.Path, content: bytes) -> None:
    file = _one(path, ".npz")
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)


def _huge_npz(path: pathlib.Path) -> None:
    _npz_with(path, _npy_header("(1152921504606846976, 4)") + bytes(64))


def _expanding_npz(path: pathlib.Path) -> None:
    """A gigabyte of zeros in a megabyte."""
    _npz_with(path, _npy_header("(268435456, 4, 1, 1)", "|u1") + bytes(1 << 30))


def _pickled_npz(path: pathlib.Path) -> None:
    _npz_with(path, _npy_header("(1,)", "|O") + pickle.dumps([_Trap()]))


def _huge_header(path: pathlib.Path) -> None:
    _one(path, ".safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def _huge_tensor(path: pathlib.Path) -> None:
    header = json.dumps({"images": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]}}).encode()
    _one(path, ".safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def _nested_json(path: pathlib.Path) -> None:
    _one(path, ".json").write_bytes(b"[" * 200_000)


def _huge_number(path: pathlib.Path) -> None:
    file = _one(path, ".json")
    file.write_text(file.read_text().replace(":", ": " + "9" * 5000 + ",", 1))


def _other_json(path: pathlib.Path) -> None:
    _one(path, ".json").write_text('["a", "list"]')


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_of(path: pathlib.Path, width: int, height: int) -> None:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes(1 << 20), 9)
    parts = _chunk(b"IHDR", header), _chunk(b"IDAT", packed), _chunk(b"IEND", b"")
    _one(path, ".png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def _expanding_png(path: pathlib.Path) -> None:
    _png_of(path, 60_000, 60_000)


def _endless_png(path: pathlib.Path) -> None:
    _png_of(path, (1 << 31) - 1, (1 << 31) - 1)


def _pickle(path: pathlib.Path) -> None:
    _one(path, ".pt").write_bytes(pickle.dumps({"state_dict": _Trap()}))


def _pickle_in_zip(path: pathlib.Path) -> None:
    with zipfile.ZipFile(_one(path, ".pt"), "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": _Trap()}))
        archive.writestr("archive/version", "3\n")


def _tar_with(path: pathlib.Path, name: str, content: bytes = b"", *, link: str = "", size: int | None = None) -> None:
    """Put a member before those of an archive; its header may name another size than its content has."""
    before = path.read_bytes()
    member = tarfile.TarInfo(name)
    member.size = len(content) if size is None else size
    if link:
        member.type, member.linkname = tarfile.SYMTYPE, link
    # Base 256 stands for sizes beyond eight gigabytes.
    header = member.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(header + content + bytes(-len(content) % 512) + before)


VARIANTS = "fgvc-aircraft-2013b/data/variants.txt"


def _linked_tar(path: pathlib.Path) -> None:
    _tar_with(path, VARIANTS, link="/etc/passwd")


def _outside_tar(path: pathlib.Path) -> None:
    _tar_with(path, "../../outside/data/variants.txt", b"a\nb")


def _absolute_tar(path: pathlib.Path) -> None:
    _tar_with(path, "/tmp/data/variants.txt", b"a\nb")


def _huge_tar(path: pathlib.Path) -> None:
    _tar_with(path, VARIANTS, b"a\nb", size=1 << 60)


def _device(path: pathlib.Path) -> None:
    """A link to a file that never ends."""
    file = _one(path, "")
    file.unlink()
    file.symlink_to("/dev/zero")


# By the kind of file that they take the place of, as in `readers.Reader.kinds`.
LIES: dict[str, Callable[[pathlib.Path], None]] = {
    "npy: 2^60 numbers": _huge_npy,
    "npy: pickled": _pickled_npy,
    "npz: 2^60 numbers": _huge_npz,
    "npz: expanding": _expanding_npz,
    "npz: pickled": _pickled_npz,
    "safetensors: header of 2^60 bytes": _huge_header,
    "safetensors: 2^60 numbers": _huge_tensor,
    "json: nested": _nested_json,
    "json: 5,000 digits": _huge_number,
    "json: a list": _other_json,
    "png: expanding": _expanding_png,
    "png: 2^31 pixels wide": _endless_png,
    "pt: pickled": _pickle,
    "pt: pickled in an archive": _pickle_in_zip,
    "tar: a link": _linked_tar,
    "tar: a name outside": _outside_tar,
    "tar: an absolute name": _absolute_tar,
    "tar: 2^60 bytes": _huge_tar,
    "any: a device": _device,
}


def lies_for(kinds: Collection[str]) -> list[str]:
    """Return the names in `LIES` for readers of these kinds of files."""
    return [name for name in LIES if name.partition(":")[0] in {*kinds, "any"}]
