"""Arrays on disk that need not fit in memory: `.npy` files written a piece at a time and read memory-mapped."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable

import numpy as np

from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files


def write(path: pathlib.Path, pieces: Iterable[np.ndarray], count: int) -> None:
    """Write one `.npy` file of pieces along the first axis, whole or not at all.

    Args:
        path: The file.
        pieces: Arrays `(k,...)` of one type and of one shape but for k; one is in memory at a time.
        count: The sum of their k, which the head of the file needs to say.

    Raises:
        UserError: If the disk is full, or the place cannot be written to.
        ValueError: If the pieces do not fit together, or do not come to `count`.
    """
    first, written = None, 0
    partial = path.with_name(f".{path.name}.partial")
    with files.saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
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
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def read(path: pathlib.Path) -> np.ndarray:
    """Map the `(n,...)` of a `.npy` file into memory, read-only: nothing is read until it is looked at.

    Raises:
        UserError: If it is missing, damaged, or holds pickled objects.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("it is an archive of several arrays")
        return found
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a readable .npy file of numbers: {error}") from None
