"""Differentiable augmentation: one family of random changes for a whole batch, each image with its own random numbers.

Zhao and Bilen, "Dataset condensation with differentiable Siamese augmentation", ICML 2021, in the single mode and with
the parameters of KRR-ST's published code (`data/augmentation.py`, `ParamDiffAug`), which are those of the field. It
acts on network inputs, so what is outside an image, or cut out of it, is 0: the mean colour, not black.

A family is a function of uniform numbers in [0, 1) and images. `augment` draws the numbers, for all families at once:
every draw of its own would cost a third of a second of compilation on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

BRIGHTNESS = 1.0
SATURATION = 2.0
CONTRAST = 0.5
CROP = 0.125
CUTOUT = 0.5
FLIP = 0.5
SCALE = 1.2
ROTATE = 15.0

# Uniform numbers that a family may use for one image.
DRAWS = 3


def color(draws: Array, images: Array) -> Array:
    """Brightness, then saturation, then contrast.

    Brightness adds one number from [-0.5, 0.5); saturation scales the distance to each pixel's mean over the channels
    by [0, 2), contrast that to the image's mean by [0.5, 1.5).

    Args:
        draws: Numbers in [0, 1) `(B,3)`.
        images: `(B,H,W,C)`.

    Returns:
        `(B,H,W,C)`.
    """
    shift, saturation, contrast = (draws[:, i].reshape(-1, 1, 1, 1) for i in range(3))
    images = images + (shift - 0.5) * BRIGHTNESS
    grey = images.mean(3, keepdims=True)
    images = (images - grey) * (saturation * SATURATION) + grey
    mean = images.mean((1, 2, 3), keepdims=True)
    return (images - mean) * (contrast + CONTRAST) + mean


def crop(draws: Array, images: Array) -> Array:
    """Shift by whole pixels, up to an eighth of the side each way; zeros come in.

    Args:
        draws: Numbers in [0, 1) `(B,3)`: for rows, for columns, unused.
        images: `(B,H,W,C)`.

    Returns:
        `(B,H,W,C)`: pixel (i, j) is what was at (i + s, j + t), s and t uniform integers.
    """
    _, height, width, channels = images.shape
    rows, columns = (_nearest(side * CROP) for side in (height, width))
    padded = jnp.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    corners = jnp.stack([_integers(draws[:, 0], 2 * rows + 1), _integers(draws[:, 1], 2 * columns + 1)], 1)

    def cut(image: Array, corner: Array) -> Array:
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(cut)(padded, corners)


def cutout(draws: Array, images: Array) -> Array:
    """Zero a box of half the image's sides around a uniformly drawn pixel, as far as it lies in the image.

    Args:
        draws: Numbers in [0, 1) `(B,3)`: for rows, for columns, unused.
        images: `(B,H,W,C)`.

    Returns:
        `(B,H,W,C)`.
    """

    def inside(draw: Array, side: int) -> Array:
        size = _nearest(side * CUTOUT)
        # An even box has its middle between two pixels, so there is one place more.
        begin = _integers(draw, side + 1 - size % 2) - size // 2
        place = jnp.arange(side)[None]
        return (place >= begin[:, None]) & (place < begin[:, None] + size)

    rows, columns = inside(draws[:, 0], images.shape[1]), inside(draws[:, 1], images.shape[2])
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], jnp.zeros((), images.dtype), images)


def flip(draws: Array, images: Array) -> Array:
    """Exchange left and right of every other image.

    Args:
        draws: Numbers in [0, 1) `(B,3)`; an image is flipped where the first is below a half.
        images: `(B,H,W,C)`.

    Returns:
        `(B,H,W,C)`.
    """
    return jnp.where(draws[:, 0].reshape(-1, 1, 1, 1) < FLIP, images[:, :, ::-1], images)


def scale(draws: Array, images: Array) -> Array:
    """Shrink or enlarge about the centre, width and height on their own, by factors from 1/1.2 to 1.2.

    Args:
        draws: Numbers in [0, 1) `(B,3)`: for the width, for the height, unused.
        images: `(B,H,W,C)`.

    Returns:
        `(B,H,W,C)`.
    """
    factor = draws * (SCALE - 1.0 / SCALE) + 1.0 / SCALE
    nothing = jnp.zeros_like(factor[:, 0])
    return _resample(images, _matrices((factor[:, 0], nothing), (nothing, factor[:, 1])))


def rotate(draws: Array, images: Array) -> Array:
    """Rotate about the centre by up to 15 degrees either way.

    Args:
        draws: Numbers in [0, 1) `(B,3)`, of which the first is used.
        images: `(B,H,W,C)`.

    Returns:
        `(B,H,W,C)`.
    """
    angle = (draws[:, 0] - 0.5) * (2.0 * ROTATE / 180.0 * math.pi)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return _resample(images, _matrices((cosine, -sine), (sine, cosine)))


FAMILIES: dict[str, Callable[[Array, Array], Array]] = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}


def augment(key: Array, images: Array, *, names: tuple[str, ...] = tuple(FAMILIES)) -> Array:
    """One family, drawn uniformly for the whole batch, with random numbers of its own for each image.

    Under `vmap` over keys all families are computed, and one is kept.

    Args:
        key: PRNG key.
        images: Network inputs `(B,H,W,C)`.
        names: The families to draw from, of `FAMILIES`.

    Returns:
        `(B,H,W,C)`.

    Raises:
        ValueError: If there is no name, or an unknown one.
    """
    chex.assert_rank(images, 4)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown or not names:
        raise ValueError(f"names must be some of {', '.join(FAMILIES)}, got {', '.join(names) or 'none'}")
    key_family, key_draws = jax.random.split(key)
    draws = jax.random.uniform(key_draws, (len(images), DRAWS), images.dtype)
    family = jax.random.randint(key_family, (), 0, len(names))
    return lax.switch(family, [FAMILIES[name] for name in names], draws, images)


def _nearest(size: float) -> int:
    """The nearest integer, a half upwards (Python's own `round` takes a half to the even one)."""
    return int(size + 0.5)


def _integers(draws: Array, count: int) -> Array:
    """Numbers in [0, 1) to integers below `count`."""
    return jnp.floor(draws * count).astype(jnp.int32)


def _matrices(*rows: tuple[Array, Array]) -> Array:
    """Matrices `(B,2,2)` of their entries `(B,)`."""
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def _resample(images: Array, theta: Array) -> Array:
    """Bilinear interpolation of images `(B,H,W,C)` at the places that a linear map `(B,2,2)` takes their pixels to.

    The map acts on (x, y), x along the width, both -1 and 1 in the middle of the outermost pixels; outside there are
    zeros. That is `affine_grid` and `grid_sample` of `torch.nn.functional` with `align_corners=True`.
    """
    _, height, width, channels = images.shape
    x = jnp.linspace(-1.0, 1.0, width, dtype=images.dtype)[None, None, :]
    y = jnp.linspace(-1.0, 1.0, height, dtype=images.dtype)[None, :, None]
    along, across = (theta[:, i, 0, None, None] * x + theta[:, i, 1, None, None] * y for i in range(2))
    column, row = (along + 1.0) * (0.5 * (width - 1)), (across + 1.0) * (0.5 * (height - 1))
    left, top = jnp.floor(column), jnp.floor(row)
    flat = images.reshape(len(images), height * width, channels)
    total = jnp.zeros_like(images)
    for i, j in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        weight = (1 - jnp.abs(row - i)) * (1 - jnp.abs(column - j))
        weight = jnp.where((i >= 0) & (i < height) & (j >= 0) & (j < width), weight, 0)
        places = (jnp.clip(i, 0, height - 1) * width + jnp.clip(j, 0, width - 1)).astype(jnp.int32)
        found = jnp.take_along_axis(flat, places.reshape(len(images), -1, 1), axis=1, mode="clip")
        total = total + weight[..., None] * found.reshape(images.shape)
    return total
