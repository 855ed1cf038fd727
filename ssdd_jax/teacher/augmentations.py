"""Random views for self-supervised training, drawn on the device inside the compiled step.

The recipe is solo-learn's "asymmetric" one for CIFAR (da Costa et al., JMLR 2022): random resized crop with
bicubic interpolation, colour jitter, grayscale, solarisation of the second view only, horizontal flip. Each
operation follows torchvision's definition on PIL images, without the rounding to 8 bits in between. Hue and
solarisation are those of dm_pix. Its brightness (additive), contrast (per channel) and saturation (in HSV) differ
from torchvision's and are not used.

The private functions work on one image in planes, `(C, H, W)`, which vectorise better than interleaved channels.
`random_views` lifts them over batch and views by `vmap`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import chex
import dm_pix
import jax
import jax.numpy as jnp

Array = jax.Array

CROP_ATTEMPTS = 10
"""Number of boxes drawn before torchvision's random resized crop falls back to a central one."""
LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601 weights of red, green and blue in a grey value."""

# Uniform numbers per view: area and ratio of each attempt and the corner; three factors, three sort keys of the order,
# hue and its position; flip, jitter, grayscale and solarisation.
_BOX_DRAWS = 2 * CROP_ATTEMPTS + 2
_JITTER_DRAWS = 8
_SWITCH_DRAWS = 4


class Augmentation(NamedTuple):
    """Settings of the random views; the defaults are solo-learn's for CIFAR.

    Attributes:
        crop_scale: Smallest and largest area of the crop, as a share of the image.
        crop_ratio: Smallest and largest width over height of the crop.
        jitter_probability: Probability of changing brightness, contrast, saturation and hue, in random order.
        brightness: Largest deviation of the brightness factor from 1.
        contrast: Largest deviation of the contrast factor from 1.
        saturation: Largest deviation of the saturation factor from 1 (three-channel images).
        hue: Largest shift of the hue, in turns of the colour circle (three-channel images).
        grayscale_probability: Probability of removing colour (three-channel images).
        solarize_probability: Probability of inverting values from 0.5 up, in the first and in the second view.
        flip_probability: Probability of a horizontal flip.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3.0 / 4.0, 4.0 / 3.0)
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale_probability: float = 0.2
    solarize_probability: tuple[float, float] = (0.0, 0.2)
    flip_probability: float = 0.5


def random_views(key: Array, images: Array, *, settings: Augmentation | None = None) -> Array:
    """Draw two random views of every image.

    Args:
        key: PRNG key.
        images: `(B, H, W, C)`, floating point in [0, 1], with one channel or three.
        settings: Settings of the augmentation; None for the defaults of `Augmentation`.

    Returns:
        Views `(2, B, H, W, C)` in [0, 1].

    Raises:
        ValueError: If the images have neither one channel nor three.
    """
    chex.assert_rank(images, 4)
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"views are defined for images of 1 or 3 channels, not {images.shape[-1]}")
    settings = settings or Augmentation()
    # One draw for everything: each call of the generator costs 0.3 s of compilation on a CPU.
    draws = jax.random.uniform(key, (2, images.shape[0], _BOX_DRAWS + _JITTER_DRAWS + _SWITCH_DRAWS))
    solarize = jnp.asarray(settings.solarize_probability, images.dtype)

    def view(draws: Array, image: Array, solarize_probability: Array) -> Array:
        return _view(draws, image, solarize_probability, settings)

    # Both views share the images; the probability of solarisation differs between them.
    over_batch = jax.vmap(view, in_axes=(0, 0, None))
    return jax.vmap(over_batch, in_axes=(0, None, 0))(draws, images, solarize)


def resized_crop(image: Array, box: Array, flip: Array | bool = False) -> Array:
    """Crop a box of an image and resize it to the size of the image.

    The interpolation is bicubic (Keys, a = -1/2) as in Pillow: pixels outside the box have no weight, and the weights
    of the others sum to one. It is one matrix per axis and runs as two small matrix products.

    Args:
        image: `(H, W, C)`.
        box: `(4,)`: top, left, height and width in pixels.
        flip: Whether to flip horizontally afterwards.

    Returns:
        Planes `(C, H, W)`, clipped to [0, 1].
    """
    height, width, _ = image.shape
    rows = _interpolation(height, box[0], box[2]).astype(image.dtype)
    columns = _interpolation(width, box[1], box[3]).astype(image.dtype)
    # Reversing the output axis of the matrix flips the image at no cost.
    columns = jnp.where(flip, columns[::-1], columns)
    # Accelerators would otherwise round the pixels to bfloat16 or TF32.
    high = jax.lax.Precision.HIGHEST
    planes = jnp.einsum("oh,hwc->cow", rows, image, precision=high)
    # Bicubic interpolation overshoots at edges.
    return jnp.clip(jnp.einsum("cow,pw->cop", planes, columns, precision=high), 0.0, 1.0)


def _view(draws: Array, image: Array, solarize_probability: Array, settings: Augmentation) -> Array:
    """Compute one view `(H, W, C)` of one image from uniform numbers in [0, 1)."""
    box_draws, jitter_draws, switch = jnp.split(draws, (_BOX_DRAWS, _BOX_DRAWS + _JITTER_DRAWS))
    height, width, channels = image.shape
    box = _box(box_draws, height, width, settings)
    # The colour operations do not depend on pixel positions: flipping within the crop equals flipping last.
    planes = resized_crop(image, box, switch[0] < settings.flip_probability)
    planes = _color_jitter(jitter_draws, planes, switch[1] < settings.jitter_probability, settings)
    if channels == 3:
        gray = jnp.broadcast_to(_gray(planes), planes.shape)
        planes = jnp.where(switch[2] < settings.grayscale_probability, gray, planes)
    planes = jnp.where(switch[3] < solarize_probability, dm_pix.solarize(planes, 0.5), planes)
    return jnp.transpose(planes, (1, 2, 0))


def _box(draws: Array, height: int, width: int, settings: Augmentation) -> Array:
    """Draw top, left, height and width, int32 `(4,)`, as torchvision's `RandomResizedCrop.get_params`."""
    # All attempts at once: a loop with a data-dependent end would not vectorise under `vmap`.
    for_area, for_ratio, place = jnp.split(draws, (CROP_ATTEMPTS, 2 * CROP_ATTEMPTS))
    area = height * width * _between(for_area, *settings.crop_scale)
    ratio = jnp.exp(_between(for_ratio, *map(math.log, settings.crop_ratio)))
    sizes = jnp.stack([jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)], axis=1)
    sizes = jnp.round(sizes).astype(jnp.int32)
    whole = jnp.asarray((height, width), jnp.int32)
    fits = jnp.all((sizes > 0) & (sizes <= whole[None, :]), axis=1)
    # `argmax` gives the first attempt that fits, and 0 if none does: `fits[first]` is then false.
    first = jnp.argmax(fits)
    central = jnp.asarray(_central_size(height, width, settings.crop_ratio), jnp.int32)
    size = jnp.where(fits[first], sizes[first], central)
    room = whole - size
    corner = jnp.floor(place * (room + 1).astype(place.dtype)).astype(jnp.int32)
    corner = jnp.where(fits[first], corner, room // 2)
    return jnp.concatenate([corner, size])


def _central_size(height: int, width: int, ratios: tuple[float, float]) -> tuple[int, int]:
    """Return height and width of the largest box within the allowed ratios."""
    if width / height < ratios[0]:
        return round(width / ratios[0]), width
    if width / height > ratios[1]:
        return height, round(height * ratios[1])
    return height, width


def _interpolation(size: int, start: Array, length: Array) -> Array:
    """Compute bicubic weights `(size, size)`: row o holds the weights of the input pixels in output pixel o."""
    start, length = start.astype(jnp.float32), length.astype(jnp.float32)
    pixels = jnp.arange(size, dtype=jnp.float32)
    centers = start + (pixels + 0.5) * (length / size) - 0.5
    # A crop is never larger than the image, so the kernel is not widened as it is for downscaling.
    distance = jnp.abs(centers[:, None] - pixels[None, :])
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    weights = jnp.where(distance < 1.0, near, jnp.where(distance < 2.0, far, 0.0))
    inside = (pixels >= start) & (pixels < start + length)
    weights = jnp.where(inside[None, :], weights, 0.0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def _color_jitter(draws: Array, planes: Array, apply: Array, settings: Augmentation) -> Array:
    """Change brightness, contrast, saturation and hue of planes `(C, H, W)` in random order.

    The first three blend the image with a grey one, so that one function serves all. Hue is compiled only once,
    between two scans over these three: the first applies those that precede hue in the order, the second the others.
    """
    colored = planes.shape[0] == 3
    blends = 3 if colored else 2
    for_factor, for_order, for_hue, for_turn = jnp.split(draws, (3, 6, 7))
    # Torchvision draws factors from [max(0, 1 - reach), 1 + reach]; the factor 1 leaves an image unchanged.
    reach = jnp.asarray((settings.brightness, settings.contrast, settings.saturation), draws.dtype)
    factors = _between(for_factor, jnp.maximum(1.0 - reach, 0.0), 1.0 + reach).astype(planes.dtype)
    factors = jnp.where(apply, factors, 1.0)
    # Sorting uniform numbers gives a random permutation; `turn` is the position of hue in it.
    order = jnp.argsort(for_order[:blends])
    turn = jnp.floor(for_turn[0] * (blends + 1)).astype(jnp.int32)

    def blend(planes: Array, slot: tuple[Array, Array]) -> tuple[Array, None]:
        kind, active = slot
        return _blend(planes, kind, jnp.where(active, factors[kind], 1.0)), None

    before_hue = jnp.arange(blends) < turn
    planes, _ = jax.lax.scan(blend, planes, (order, before_hue))
    if colored:
        shift = _between(for_hue[0], -settings.hue, settings.hue)
        with jax.numpy_dtype_promotion("standard"):  # dm_pix adds booleans to floats
            shifted = dm_pix.adjust_hue(planes, shift, channel_axis=0)
        planes = jnp.where(apply, shifted, planes)
    planes, _ = jax.lax.scan(blend, planes, (order, ~before_hue))
    return planes


def _blend(planes: Array, kind: Array, factor: Array) -> Array:
    """Blend with black (kind 0, brightness), the mean grey (1, contrast) or the grey image (2, saturation)."""
    gray = _gray(planes)
    target = jnp.where(kind == 0, 0.0, jnp.where(kind == 1, jnp.mean(gray), gray))
    return jnp.clip(factor * planes + (1.0 - factor) * target, 0.0, 1.0)


def _gray(planes: Array) -> Array:
    """Convert planes `(C, H, W)` to grey values `(1, H, W)`."""
    if planes.shape[0] == 1:
        return planes
    red, green, blue = LUMA
    return red * planes[:1] + green * planes[1:2] + blue * planes[2:]


def _between(uniform: Array, low: Array | float, high: Array | float) -> Array:
    """Map uniform numbers in [0, 1) to [low, high)."""
    return low + uniform * (high - low)
