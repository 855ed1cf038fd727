"""NumPy files from elsewhere: what is wrong with a damaged one is told in a line, and nothing is unpickled."""

from __future__ import annotations

import contextlib
import pathlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from ssdd_jax.errors import StoredError, UserError

# What NumPy and the zip reader raise for damaged content. NumPy parses a header as Python: every error of its parser
# belongs here, and those of sizes that no machine has.
DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, RuntimeError, NotImplementedError, ArithmeticError, MemoryError),
    *(SyntaxError, tokenize.TokenError, RecursionError, struct.error, zipfile.BadZipFile, zlib.error),
)
# An archive whose arrays are larger than `EXPANDED` bytes and take more than `EXPANSION` times its size is refused.
EXPANDED, EXPANSION = 1 << 28, 200


class Archive(Mapping[str, np.ndarray]):
    """The arrays of a `.npz` archive by name, read when they are indexed."""

    def __init__(self, loaded: np.lib.npyio.NpzFile):
        """Wrap an archive, whose members that are no arrays NumPy returns as bytes."""
        self._loaded = loaded

    def __getitem__(self, name: str) -> np.ndarray:
        """Read an array; raises a ValueError if the member is none."""
        array = self._loaded[name]
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name} is no array")
        return array

    def __contains__(self, name: object) -> bool:
        """Return whether there is a member of the name, without reading it."""
        return name in self._loaded.files

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._loaded.files)

    def __len__(self) -> int:
        """Number of arrays."""
        return len(self._loaded.files)


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[np.ndarray | Archive]:
    """Read a `.npy` file, or open a `.npz` archive, whose arrays are read when they are indexed in the context.

    Args:
        path: The file.

    Raises:
        StoredError: If the file is missing or damaged, holds pickled objects, or expands beyond measure; also from
            indexing in the context.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                _check_expansion(path, loaded)
            yield Archive(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except UserError:
        raise
    except DAMAGE as error:
        raise _explained(path, error) from None


def mapped(path: pathlib.Path) -> np.ndarray:
    """Map the array of a `.npy` file into memory, read-only.

    Raises:
        StoredError: If it is missing, damaged, an archive, or holds pickled objects.
    """
    try:
        with np.errstate(all="raise"):  # of sizes beyond 64 bits
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGE as error:
        raise _explained(path, error) from None
    if not isinstance(array, np.ndarray):
        raise StoredError(f"{path} is not a .npy file of one array: it is an archive of several")
    return array


def _check_expansion(path: pathlib.Path, archive: np.lib.npyio.NpzFile) -> None:
    members = archive.zip.infolist() if archive.zip else []
    size, stored = sum(member.file_size for member in members), path.stat().st_size
    if size > max(EXPANDED, EXPANSION * stored):
        raise StoredError(
            f"{path} holds {size:,} bytes in {stored:,}, which is no archive of images or features: if it is meant so, "
            "save its arrays with numpy.savez instead of numpy.savez_compressed"
        )


def _explained(path: pathlib.Path, error: BaseException) -> StoredError:
    if isinstance(error, FileNotFoundError):
        return StoredError(f"{path} is missing")
    if isinstance(error, OSError) and error.strerror:
        return StoredError(f"{path} cannot be read: {error.strerror}")
    # NumPy has no error type for object arrays, only messages, and takes every unknown file for a pickled object.
    known = _begins_as_known(path)
    if known and ("allow_pickle" in str(error) or "Python objects" in str(error)):
        return StoredError(f"{path} holds pickled objects, which are never loaded: save plain arrays of numbers")
    reason = " ".join(str(error).split())[:200] or type(error).__name__ if known else "it begins with other bytes"
    return StoredError(f"{path} is not a file of NumPy arrays, or a damaged one: {reason}")


def _begins_as_known(path: pathlib.Path) -> bool:
    """Return whether a file begins as arrays, archives and empty files do."""
    with path.open("rb") as file:
        return file.read(6) in (b"\x93NUMPY", b"PK\x03\x04\x14\x00", b"PK\x03\x04\x2d\x00", b"")
