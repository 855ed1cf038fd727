"""Images as a sum of resolutions, from one pixel to the full size, of which finer ones join while they are optimised.

Linear Gradient Matching (Cazenavette, Torralba and Sitzmann, "Dataset Distillation for Pre-Trained Self-Supervised
Vision Models", NeurIPS 2025), with its decorrelated colours. A sum of resolutions keeps the images from
high frequencies that only one encoder sees.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Levels = tuple[Array, ...]

# Square root of the covariance of ImageNet's colours (Olah, Mordvintsev and Schubert, "Feature Visualization", 2017).
COLOURS = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], np.float32)


def sizes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes of the levels of images: 1, 2, 4, ... pixels on the longer side, and at last all of them."""
    longer, sides = max(height, width), [1]
    while sides[-1] < longer:
        sides.append(min(2 * sides[-1], longer))
    return tuple((-(-height * side // longer), -(-width * side // longer)) for side in sides)


def init(key: Array, count: int, shape: tuple[int, int, int]) -> Levels:
    """Start with noise in the coarsest level; the others are 0 until they join.

    Args:
        key: PRNG key.
        count: Number of images P.
        shape: Image shape `(H,W,C)`.

    Returns:
        The levels `(P,h,w,C)`, the coarsest first.
    """
    height, width, channels = shape
    first, *others = sizes(height, width)
    noise = jax.random.normal(key, (count, *first, channels))
    return noise, *(jnp.zeros((count, *size, channels)) for size in others)


def used(step: Array, *, every: int, most: int) -> Array:
    """Return how many levels a step uses, int32: one more after each `every` steps, first after `every + 1`.

    Args:
        step: Number of the step, from 0.
        every: Steps per level.
        most: Number of levels.
    """
    return jnp.minimum(1 + jnp.maximum(jnp.asarray(step) - 1, 0) // every, most).astype(jnp.int32)


def extend(key: Array, levels: Levels, count: Array) -> Levels:
    """Let the next level join: it is noise, and all are scaled so that their sum keeps its size.

    Args:
        key: PRNG key.
        levels: The levels.
        count: Number of levels in use before, int32, smaller than that of all levels.

    Returns:
        The levels, of which `count + 1` are in use.
    """

    def one(number: int, level: Array) -> Array:
        before = jnp.asarray(count, level.dtype)
        noise = jax.random.normal(jax.random.fold_in(key, number), level.shape, level.dtype) / (before + 1)
        kept = jnp.where(number < count, level * before / (before + 1), 0)
        return jnp.where(number == count, noise, kept)

    return tuple(one(number, jnp.asarray(level)) for number, level in enumerate(levels))


def decode(levels: Levels, count: Array | int) -> Array:
    """Compute images from their levels. Differentiable; levels that are not in use have no gradient.

    Args:
        levels: The levels `(P,h,w,C)`, the coarsest first; the last has the size of the images.
        count: Number of levels in use.

    Returns:
        Pixels between 0 and 1 `(P,H,W,C)`.
    """
    levels = tuple(jnp.asarray(level) for level in levels)
    chex.assert_rank(levels, 4)
    shape = levels[-1].shape

    def enlarged(number: int, level: Array) -> Array:
        in_use = jnp.where(number < count, level, 0)
        return jax.image.resize(in_use, shape, "linear", antialias=False)

    total = sum((enlarged(number, level) for number, level in enumerate(levels)), jnp.zeros(shape, levels[-1].dtype))
    if shape[-1] == len(COLOURS):
        colours = COLOURS / np.linalg.norm(COLOURS, axis=0).max()
        total = jnp.einsum("phwc,dc->phwd", total, jnp.asarray(colours, total.dtype), precision="highest")
    return jax.nn.sigmoid(2 * total)
