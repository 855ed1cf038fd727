"""Random image transforms shared by several training recipes: padded crop, horizontal flip, mixup.

All transforms take a PRNG key and network inputs `(B,H,W,C)`, and return an array of the same shape.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def random_crop(key: Array, images: Array, low: Array, *, padding: int) -> Array:
    """Pad every image with black and crop it to its original size at a random position.

    Args:
        key: PRNG key.
        images: Network inputs `(B,H,W,C)`.
        low: Network input that represents black `(C,)`.
        padding: Pixels added on every side.

    Returns:
        An array like `images`.
    """
    chex.assert_rank([images, low], [4, 1])
    count, height, width, channels = images.shape
    shape = (count, height + 2 * padding, width + 2 * padding, channels)
    # Black is not zero in the network's input space, so `jnp.pad` with a scalar cannot be used.
    black = jnp.broadcast_to(low.astype(images.dtype).reshape(1, 1, 1, -1), shape)
    padded = lax.dynamic_update_slice(black, images, (0, padding, padding, 0))
    corners = jax.random.randint(key, (count, 2), 0, 2 * padding + 1)

    def crop(image: Array, corner: Array) -> Array:
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(crop)(padded, corners)


def random_flip(key: Array, images: Array, *, probability: float = 0.5) -> Array:
    """Mirror each image of `(B,H,W,C)` left to right with the given probability."""
    flipped = jax.random.bernoulli(key, probability, (len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def mixup(key: Array, images: Array, *, concentration: float = 0.8) -> Array:
    """Mix the images with a random permutation of themselves, with one mixing coefficient for the whole batch.

    Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond empirical risk minimization", ICLR 2018.

    Args:
        key: PRNG key.
        images: Network inputs `(B,H,W,C)`.
        concentration: Both parameters of the coefficient's beta distribution.

    Returns:
        An array like `images`.
    """
    key_share, key_order = jax.random.split(key)
    share = jax.random.beta(key_share, concentration, concentration, dtype=images.dtype)
    return share * images + (1.0 - share) * jax.random.permutation(key_order, images)
