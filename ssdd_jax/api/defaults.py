"""Default settings chosen from the data and the hardware; each of them can be overridden."""

from __future__ import annotations

import math
from typing import Any

from ml_collections import ConfigDict

from ssdd_jax import config as configuration
from ssdd_jax import methods
from ssdd_jax.errors import UserError
from ssdd_jax.methods.frozen_encoder import pyramid

# Largest default of N: that of the published tables at 32x32.
MOST_IMAGES = 100


def choose(
    image_shape: tuple[int, int, int],
    images: int,
    *,
    method: str = "boost",
    N: int | None = None,
    steps: int | None = None,
    accelerator: bool = True,
) -> ConfigDict:
    """Choose a config for the size and number of the images.

    On an accelerator the config has the published settings, if there are any for the size. On a CPU it has narrower
    networks, half as many images, and fewer and larger steps.

    Args:
        image_shape: `(H,W,C)`.
        images: Number n of images.
        method: A name in `config.EDITIONS` or `methods.METHODS`.
        N: Budget in images; default n / 50, at least 10 and at most 100.
        steps: Outer steps; chosen by default. The learning rate depends on them: short runs need a larger one.
        accelerator: Whether the run uses an accelerator instead of a CPU.

    Returns:
        The config. It is not validated beyond the errors listed here.

    Raises:
        UserError: If there is no such method, or a side of the images is odd.
    """
    if method not in configuration.EDITIONS:
        methods.check(method)
    side, config = min(image_shape[:2]), configuration.default()
    config.method = method if method in methods.METHODS else config.method
    configuration.edit(config, method if method in configuration.EDITIONS else "")
    # Sizes follow from the images; the published values hold for 32x32 and 64x64.
    blocks = _blocks(image_shape[:2])
    published = config.distill.learning_rate
    config.storage.N = N or min(max(images // 50, 10), MOST_IMAGES, images)
    config.storage.hidden = 16 if side >= 64 else 4
    config.student.widths = _widths(side, blocks, accelerator)
    # Rotations by 90 and 270 degrees need square images.
    if image_shape[0] != image_shape[1]:
        config.views = ("rot0", "rot180")
    config.experts.widths = ((128 if accelerator else 32),) * min(blocks, 3)
    if not accelerator:
        config.update_from_flattened_dict(_for_cpu(config, side, images))
    if steps:
        config.distill.steps = steps
    # All resolutions of the images join before the end.
    levels = len(pyramid.sizes(*image_shape[:2]))
    config.encoder.extend_every = max(1, min(config.encoder.extend_every, config.distill.steps // (levels + 1)))
    if methods.METHODS[config.method].pooled and config.distill.steps < 10_000:
        # Published rates belong to 30,000 steps and more; in between, the geometric mean.
        small = 3e-2 if side < 32 else 1e-2
        config.distill.learning_rate = small if config.distill.steps <= 1000 else math.sqrt(small * published)
    # No batch may be larger than the data set.
    for group in ("distill", "experts"):
        config[group].batch_size = min(config[group].batch_size, images)
    config.distill.steps_per_call = min(config.distill.steps_per_call, config.distill.steps)
    return config


def _for_cpu(config: ConfigDict, side: int, images: int) -> dict[str, Any]:
    small = side < 32
    # Chosen so that a few hundred to a few thousand images take minutes on two cores.
    changes = {
        "pool.size": 5 if small else 4,
        "pool.steps": 200 if small else 150,
        "distill.batch_size": 256,
        "experts.count": 10 if small else 5,
        "experts.batch_size": 128,
        "mkdt.unroll": 20 if small else 10,
    }
    steps = methods.METHODS[config.method].cpu_steps
    if steps is not None:
        changes["distill.steps"] = steps[0 if small else 1]
    return changes


def _blocks(size: tuple[int, ...]) -> int:
    """Number of times that the student halves the images, one per block.

    Images of at least 32 pixels are halved down to 4 pixels, smaller ones down to 1, while both sides are even.

    Raises:
        UserError: If they cannot be halved at all.
    """
    least, blocks = (4 if min(size) >= 32 else 1), 0
    while min(size) >> blocks > least and not any(side % 2 ** (blocks + 1) for side in size):
        blocks += 1
    if not blocks:
        raise UserError(
            f"images of {size[0]}x{size[1]} (height x width) cannot be halved by the networks: pad, crop or resize "
            "them to sides that are multiples of 8 or 16"
        )
    return blocks


def _widths(side: int, blocks: int, accelerator: bool) -> tuple[int, ...]:
    """Channels of the student's blocks; on an accelerator the published 128-256-512 (32x32), 64-128-256-512 (64x64)."""
    if side >= 32:
        top = 512 if accelerator else 128
        return tuple(max(top >> (blocks - 1 - block), 16) for block in range(blocks))
    top = 256 if accelerator else 64
    return tuple(min(top, (top // 4) << block) for block in range(blocks))
