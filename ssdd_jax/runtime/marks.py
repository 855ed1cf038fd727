"""Marks of arrays: hashes by which a change is noticed, kept in a file beside the array's."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from ssdd_jax.errors import StoredError
from ssdd_jax.runtime import numpy_files

# Arrays up to this size are hashed as a whole, which takes a second; of larger ones as many entries as SAMPLE.
HASHED, SAMPLE = 1 << 30, 2000
# Bytes that are read at a time.
BLOCK = 1 << 20


def mark(array: np.ndarray) -> str:
    """Hash the type, the shape and the entries of an array, or a sample of them if it is large."""
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    if array.nbytes <= HASHED:
        rows = max(1, BLOCK * len(array) // max(1, array.nbytes))
        for begin in range(0, len(array), rows):  # in blocks: it may be mapped from disk
            digest.update(np.ascontiguousarray(array[begin : begin + rows]).tobytes())
    else:
        for index in np.unique(np.linspace(0, len(array) - 1, SAMPLE).astype(int)):
            digest.update(np.ascontiguousarray(array[index]).tobytes())
    return digest.hexdigest()


def place(path: pathlib.Path) -> pathlib.Path:
    """Return the file of the mark of a `.npy` file."""
    return path.with_name(f"{path.name}.mark")


@contextlib.contextmanager
def written(path: pathlib.Path) -> Iterator[None]:
    """Context in which a `.npy` file is written; the mark of what it was before goes first, and its own comes last."""
    place(path).unlink(missing_ok=True)
    yield
    partial = place(path).with_name(f".{place(path).name}.partial")
    partial.write_text(mark(numpy_files.mapped(path)))
    os.replace(partial, place(path))


def check(path: pathlib.Path) -> None:
    """Compare a `.npy` file with its mark, once in a process unless it changes; without a mark nothing is compared.

    Raises:
        StoredError: If the file is not what was written.
    """
    if not place(path).exists():
        return
    try:
        status, stored = path.stat(), place(path).read_bytes().strip()
    except OSError as error:
        raise StoredError(f"{path} or {place(path).name} cannot be read: {error.strerror}") from None
    if _of_file(str(path), status.st_mtime_ns, status.st_size).encode() != stored:
        raise StoredError(f"{path} is damaged: it is not what was written; delete {path.parent} or restore it")


@functools.lru_cache(maxsize=64)
def _of_file(path: str, changed: int, size: int) -> str:
    return mark(numpy_files.mapped(pathlib.Path(path)))
