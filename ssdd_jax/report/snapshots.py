"""Pictures kept during a distillation, as they are read for the report."""

from __future__ import annotations

import pathlib

import numpy as np

from ssdd_jax.runtime import files


def as_bytes(pixels: np.ndarray) -> np.ndarray:
    """Pixels in 0..1 of any shape as uint8; what is not a number becomes black."""
    return (255 * np.clip(np.nan_to_num(pixels), 0, 1) + 0.5).astype(np.uint8)


def read(folder: pathlib.Path) -> dict[int, dict[str, np.ndarray]]:
    """What was kept, by step in order: uint8 `images` `(8,H,W,C)`, and `bases` `(8,h,w,C)` with zero as mid-grey."""
    found = sorted(folder.glob("step-*.safetensors"))
    return {int(path.stem.partition("-")[2]): files.read_tensors(path) for path in found}
