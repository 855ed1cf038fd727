"""Random differentiable augmentations of real and of distilled images: flips, resized crops and noise.

Those of Linear Gradient Matching's published code: a flip in half of the cases, a crop of 8 to 100 % of the area and
of an aspect ratio between 3:4 and 4:3, resampled bilinearly, and in half of the cases noise of mean 0.5 and deviation
0.2.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

Array = jax.Array

ASPECT = (3 / 4, 4 / 3)
NOISE, NOISE_MEAN, NOISE_STD = 0.5, 0.5, 0.2


class Settings(NamedTuple):
    """Settings of the augmentation; the defaults are the published ones.

    Attributes:
        flip: Probability that an image is mirrored.
        crop_scale: Least and largest area of a crop, as a share of the image.
        noise: Whether to add noise to half of the images.
    """

    flip: float = 0.5
    crop_scale: tuple[float, float] = (0.08, 1.0)
    noise: bool = True


class Draw(NamedTuple):
    """Random numbers of the augmentation of a batch.

    Attributes:
        flip: Whether an image is mirrored `(B,)`.
        box: Left, top, width and height of its crop, as shares of the image `(B,4)`.
        noise: What is added to its pixels `(B,H,W,C)`; None for nothing.
    """

    flip: Array
    box: Array
    noise: Array | None


def draw(key: Array, shape: tuple[int, ...], settings: Settings = Settings()) -> Draw:
    """Draw the augmentations of a batch.

    Args:
        key: PRNG key.
        shape: Shape of the batch `(B,H,W,C)`.
        settings: The augmentation.
    """
    key_flip, key_area, key_aspect, key_place, key_noisy, key_noise = jax.random.split(key, 6)
    count, (least, most) = shape[0], settings.crop_scale
    area = jax.random.uniform(key_area, (count,), minval=least, maxval=most)
    low, high = jnp.log(jnp.asarray(ASPECT))
    aspect = jnp.exp(jax.random.uniform(key_aspect, (count,), minval=low, maxval=high))
    width, height = jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)
    place = jax.random.uniform(key_place, (count, 2))
    box = jnp.stack([place[:, 0] * (1 - width), place[:, 1] * (1 - height), width, height], axis=1)
    added = None
    if settings.noise:
        noisy = jax.random.bernoulli(key_noisy, NOISE, (count, 1, 1, 1))
        added = jnp.where(noisy, NOISE_MEAN + NOISE_STD * jax.random.normal(key_noise, shape), 0)
    return Draw(jax.random.bernoulli(key_flip, settings.flip, (count,)), box, added)


def apply(images: Array, drawn: Draw) -> Array:
    """Augment images. Differentiable.

    Args:
        images: Pixels `(B,H,W,C)`.
        drawn: From `draw`.

    Returns:
        Images of the same shape. Outside of an image there are zeros, as in PyTorch's `grid_sample`.
    """
    images = jnp.asarray(images)
    chex.assert_rank(images, 4)
    images = jnp.where(drawn.flip[:, None, None, None], images[:, :, ::-1], images)
    cropped = jax.vmap(_crop)(images, drawn.box)
    return cropped if drawn.noise is None else cropped + drawn.noise


def _crop(image: Array, box: Array) -> Array:
    """Resample a part of an image `(H,W,C)` to its size, bilinearly."""
    height, width, _ = image.shape
    left, top, wide, high = box
    # Rows and columns are resampled one after the other, each by a matrix of two weights a row.
    rows = _weights(top * height + high * (jnp.arange(height, dtype=box.dtype) + 0.5) - 0.5, height)
    columns = _weights(left * width + wide * (jnp.arange(width, dtype=box.dtype) + 0.5) - 0.5, width)
    return jnp.einsum("rh,hwc,sw->rsc", rows, image, columns, precision="highest")


def _weights(positions: Array, size: int) -> Array:
    """Return the weights `(k,size)` of bilinear interpolation at positions `(k,)` in pixels, 0 outside."""
    return jnp.maximum(0, 1 - jnp.abs(positions[:, None] - jnp.arange(size, dtype=positions.dtype)[None]))
