"""Differentiable augmentation: one random family of transforms per batch, with random parameters per image.

Zhao and Bilen, "Dataset condensation with differentiable Siamese augmentation", ICML 2021, in the single mode and with
the parameters of KRR-ST's published code (`data/augmentation.py`, `ParamDiffAug`), which are the usual ones. It acts on
network inputs, so that pixels outside of an image, or cut out of it, are 0: the mean colour, not black.

A family is a function of uniform random numbers in [0, 1) and images. `augment` draws the numbers once for all
families: each separate draw would add a third of a second of compilation on a CPU.
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

# Uniform random numbers per image that are available to a family.
DRAWS = 3


def color(draws: Array, images: Array) -> Array:
    """Change brightness, then saturation, then contrast.

    Brightness adds a value in [-0.5, 0.5); saturation scales the distance to each pixel's mean over the channels by a
    factor in [0, 2), contrast the distance to the image's mean by a factor in [0.5, 1.5).

    Args:
        draws: Uniform random numbers in [0, 1) `(B,3)`.
        images: Network inputs `(B,H,W,C)`.

    Returns:
        Augmented images `(B,H,W,C)`.
    """
    shift, saturation, contrast = (draws[:, i].reshape(-1, 1, 1, 1) for i in range(3))
    images = images + (shift - 0.5) * BRIGHTNESS
    grey = images.mean(3, keepdims=True)
    images = (images - grey) * (saturation * SATURATION) + grey
    mean = images.mean((1, 2, 3), keepdims=True)
    return (images - mean) * (contrast + CONTRAST) + mean


def crop(draws: Array, images: Array) -> Array:
    """Shift by whole pixels, up to an eighth of the side in each direction; vacated pixels are zero.

    Args:
        draws: Uniform random numbers in [0, 1) `(B,3)`: for rows, for columns, unused.
        images: Network inputs `(B,H,W,C)`.

    Returns:
        Augmented images `(B,H,W,C)`: pixel (i, j) is the input's pixel (i + s, j + t), s and t uniform integers.
    """
    _, height, width, channels = images.shape
    rows, columns = (_nearest(side * CROP) for side in (height, width))
    padded = jnp.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    corners = jnp.stack([_integers(draws[:, 0], 2 * rows + 1), _integers(draws[:, 1], 2 * columns + 1)], 1)

    def cut(image: Array, corner: Array) -> Array:
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(cut)(padded, corners)


def cutout(draws: Array, images: Array) -> Array:
    """Zero a box of half the image's sides around a uniformly drawn pixel, clipped to the image.

    Args:
        draws: Uniform random numbers in [0, 1) `(B,3)`: for rows, for columns, unused.
        images: Network inputs `(B,H,W,C)`.

    Returns:
        Augmented images `(B,H,W,C)`.
    """

    def inside(draw: Array, side: int) -> Array:
        size = _nearest(side * CUTOUT)
        # The centre of an even box lies between two pixels, so there is one more position.
        begin = _integers(draw, side + 1 - size % 2) - size // 2
        pixel = jnp.arange(side)[None]
        return (pixel >= begin[:, None]) & (pixel < begin[:, None] + size)

    rows, columns = inside(draws[:, 0], images.shape[1]), inside(draws[:, 1], images.shape[2])
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], jnp.zeros((), images.dtype), images)


def flip(draws: Array, images: Array) -> Array:
    """Flip each image horizontally with probability 0.5.

    Args:
        draws: Uniform random numbers in [0, 1) `(B,3)`; an image is flipped if the first is below 0.5.
        images: Network inputs `(B,H,W,C)`.

    Returns:
        Augmented images `(B,H,W,C)`.
    """
    return jnp.where(draws[:, 0].reshape(-1, 1, 1, 1) < FLIP, images[:, :, ::-1], images)


def scale(draws: Array, images: Array) -> Array:
    """Scale width and height independently about the centre, by factors from 1/1.2 to 1.2.

    Args:
        draws: Uniform random numbers in [0, 1) `(B,3)`: for the width, for the height, unused.
        images: Network inputs `(B,H,W,C)`.

    Returns:
        Augmented images `(B,H,W,C)`.
    """
    factor = draws * (SCALE - 1.0 / SCALE) + 1.0 / SCALE
    zero = jnp.zeros_like(factor[:, 0])
    return _resample(images, _matrices((factor[:, 0], zero), (zero, factor[:, 1])))


def rotate(draws: Array, images: Array) -> Array:
    """Rotate about the centre by up to 15 degrees in either direction.

    Args:
        draws: Uniform random numbers in [0, 1) `(B,3)`, of which the first is used.
        images: Network inputs `(B,H,W,C)`.

    Returns:
        Augmented images `(B,H,W,C)`.
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
    """Apply one family, drawn uniformly for the batch, with random parameters per image.

    Under `vmap` over keys all families are computed and one is selected.

    Args:
        key: PRNG key.
        images: Network inputs `(B,H,W,C)`.
        names: Families to draw from, keys of `FAMILIES`.

    Returns:
        Augmented images `(B,H,W,C)`.

    Raises:
        ValueError: If `names` is empty or contains an unknown name.
    """
    chex.assert_rank(images, 4)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown or not names:
        raise ValueError(f"names must be among {', '.join(FAMILIES)}, got {', '.join(names) or 'none'}")
    key_family, key_draws = jax.random.split(key)
    draws = jax.random.uniform(key_draws, (len(images), DRAWS), images.dtype)
    family = jax.random.randint(key_family, (), 0, len(names))
    return lax.switch(family, [FAMILIES[name] for name in names], draws, images)


def _nearest(size: float) -> int:
    """Round to the nearest integer, halves upwards (Python's `round` rounds halves to even)."""
    return int(size + 0.5)


def _integers(draws: Array, count: int) -> Array:
    """Map uniform numbers in [0, 1) to integers in `0 .. count - 1`."""
    return jnp.floor(draws * count).astype(jnp.int32)


def _matrices(*rows: tuple[Array, Array]) -> Array:
    """Stack entries `(B,)` to matrices `(B,2,2)`."""
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def _resample(images: Array, theta: Array) -> Array:
    """Resample images `(B,H,W,C)` bilinearly at the positions to which linear maps `(B,2,2)` take their pixels.

    A map acts on (x, y), x along the width; -1 and 1 are the centres of the outermost pixels, and pixels outside are
    zero, as with `affine_grid` and `grid_sample` of `torch.nn.functional` with `align_corners=True`.
    """
    _, height, width, channels = images.shape
    x = jnp.linspace(-1.0, 1.0, width, dtype=images.dtype)[None, None, :]
    y = jnp.linspace(-1.0, 1.0, height, dtype=images.dtype)[None, :, None]
    along, across = (theta[:, i, 0, None, None] * x + theta[:, i, 1, None, None] * y for i in range(2))
    column, row = (along + 1.0) * (0.5 * (width - 1)), (across + 1.0) * (0.5 * (height - 1))
    left, top = jnp.floor(column), jnp.floor(row)
    flat = images.reshape(len(images), height * width, channels)
    # Sum over the four neighbours. Those outside of the image get weight 0, and a clipped index only to be valid.
    total = jnp.zeros_like(images)
    for i, j in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        weight = (1 - jnp.abs(row - i)) * (1 - jnp.abs(column - j))
        weight = jnp.where((i >= 0) & (i < height) & (j >= 0) & (j < width), weight, 0)
        indices = (jnp.clip(i, 0, height - 1) * width + jnp.clip(j, 0, width - 1)).astype(jnp.int32)
        pixels = jnp.take_along_axis(flat, indices.reshape(len(images), -1, 1), axis=1, mode="clip")
        total = total + weight[..., None] * pixels.reshape(images.shape)
    return total
