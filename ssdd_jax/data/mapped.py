"""Arrays larger than memory: `.npy` files that are written piece by piece and read memory-mapped."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable

import numpy as np

from ssdd_jax.runtime import files, marks, numpy_files


def write(path: pathlib.Path, pieces: Iterable[np.ndarray], count: int) -> None:
    """Write one `.npy` file atomically from pieces along the first axis.

    Args:
        path: The file.
        pieces: Arrays `(k,...)` that agree in dtype and in all but the first dimension; one is in memory at a time.
        count: The sum of all k, which the header at the start of the file contains.

    Raises:
        UserError: If the disk is full or the path is not writable.
        ValueError: If the pieces differ in dtype or shape, or their lengths do not add up to `count`.
    """
    first, written = None, 0
    # A temporary file in the same folder: `os.replace` is atomic only within one file system.
    partial = path.with_name(f".{path.name}.partial")
    with files.saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with marks.written(path):
            try:
                with open(partial, "wb") as file:
                    for piece in pieces:
                        if first is None:
                            first = piece[:0]
                            shape, kind = (count, *piece.shape[1:]), np.lib.format.dtype_to_descr(piece.dtype)
                            head = {"descr": kind, "fortran_order": False, "shape": shape}
                            np.lib.format.write_array_header_1_0(file, head)
                        if piece.shape[1:] != first.shape[1:] or piece.dtype != first.dtype:
                            raise ValueError(
                                f"pieces of {first.dtype} {first.shape[1:]} and of {piece.dtype} {piece.shape[1:]}"
                            )
                        file.write(np.ascontiguousarray(piece).data)
                        written += len(piece)
                    if written != count:
                        raise ValueError(f"{written} rows instead of {count}")
                    # Data must be on disk before the rename, or a power cut leaves an empty file under the final name.
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)


def read(path: pathlib.Path) -> np.ndarray:
    """Map the array `(n,...)` of a `.npy` file into memory, read-only; its pages are read when accessed.

    Raises:
        UserError: If it is missing, damaged, holds pickled objects, or differs from its mark.
    """
    marks.check(path)
    return numpy_files.mapped(path)
