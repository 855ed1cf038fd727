"""Interpolation of a vision transformer's positions to another grid of patches, once, when it is loaded.

Libraries differ in the details, which are kept apart here, so that features agree with those of a network's origin:
DINO and DINOv2 (`interpolate_pos_encoding`) scale by the ratio of the sides plus a small offset, Hugging Face and
MMPretrain by the ratio alone, timm (`resample_abs_pos_embed`) antialiases besides, and torchvision
(`interpolate_embeddings`) aligns the corners of the grids. All are bicubic, with the coefficients of PyTorch's
`interpolate`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Rule(NamedTuple):
    """Details of the interpolation in one library.

    Attributes:
        offset: Number of patches that is added to the new side when the scale is computed.
        antialias: Widen the kernel when the grid shrinks.
        corners: Align the centres of the corner patches instead of the borders of the grids.
    """

    offset: float = 0.0
    antialias: bool = False
    corners: bool = False


DINOV2 = Rule(offset=0.1)
HUGGING_FACE = Rule()
TIMM = Rule(antialias=True)
TORCHVISION = Rule(corners=True)


def interpolated(positions: np.ndarray, side: int, rule: Rule = DINOV2) -> np.ndarray:
    """Interpolate positions to a grid of another side.

    Args:
        positions: Positions `(1,1+s*s,width)` of a class token and of a square of patches in row-major order.
        side: Number of patches along a side of the new grid.
        rule: Details of the interpolation.

    Returns:
        Positions `(1,1+side*side,width)`, float32; unchanged if the grid has that side already.
    """
    old = math.isqrt(positions.shape[1] - 1)
    if side == old:
        return positions
    # Bicubic interpolation is separable: one matrix of weights serves rows and columns.
    weights = _weights(old, side, rule)
    grid = positions[0, 1:].reshape(old, old, -1).astype(np.float64)
    grid = np.einsum("ip,jq,pqw->ijw", weights, weights, grid, optimize=True)
    return np.concatenate([positions[0, :1], grid.reshape(side * side, -1)])[None].astype(np.float32)


def _weights(old: int, new: int, rule: Rule) -> np.ndarray:
    """Compute the weights of the old positions in the new ones along one axis, `(new,old)`."""
    step = old / (new + rule.offset)
    centres = (np.arange(new) + 0.5) * step
    if rule.corners:
        centres = np.arange(new) * (old - 1) / max(new - 1, 1) + 0.5
    if rule.antialias:
        # The kernel is as wide as a step, cut off at the border, and its weights are normalised.
        width = max(step, 1.0)
        weights = _cubic((np.arange(old)[None] + 0.5 - centres[:, None]) / width, -0.5)
        return weights / weights.sum(1, keepdims=True)
    # Four neighbours of each centre; beyond the border the outermost position is repeated.
    weights = np.zeros((new, old))
    first = np.floor(centres - 0.5).astype(int) - 1
    for tap in range(4):
        values = _cubic(first + tap + 0.5 - centres, -0.75)
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), values)
    return weights


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Evaluate the cubic convolution kernel of Keys with the parameter `a`."""
    x = np.abs(distance)
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))
