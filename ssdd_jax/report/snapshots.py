"""Read the snapshots of a distillation."""

from __future__ import annotations

import pathlib

import numpy as np

from ssdd_jax.runtime import files


def as_bytes(pixels: np.ndarray) -> np.ndarray:
    """Convert pixels in 0..1, of any shape, to uint8; NaN becomes black."""
    return (255 * np.clip(np.nan_to_num(pixels), 0, 1) + 0.5).astype(np.uint8)


def read(folder: pathlib.Path) -> dict[int, dict[str, np.ndarray]]:
    """Read the snapshots in a folder.

    Args:
        folder: The run's folder of snapshots; it may be missing.

    Returns:
        By step in order, `images` uint8 `(8,H,W,C)`, and `bases` uint8 `(8,h,w,C)` with zero as mid-grey if the method
        has bases.
    """
    paths = sorted(folder.glob("step-*.safetensors"))
    return {int(path.stem.partition("-")[2]): files.read_tensors(path) for path in paths}
