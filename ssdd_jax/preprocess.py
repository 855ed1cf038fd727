"""The constants of a data set that every method and baseline shares: how pixels and features are normalised."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Preprocessing(NamedTuple):
    """From bytes to a network's input, and from a teacher's features to what a network regresses.

    Attributes:
        image_mean: Mean of each channel `(C,)`, of pixels in 0..1.
        image_std: Standard deviation of each channel `(C,)`.
        target_mean: Mean of the teacher's features `(D,)`.
        target_scale: One standard deviation for all of them, a scalar.
    """

    image_mean: Array
    image_std: Array
    target_mean: Array
    target_scale: Array

    def images(self, images: Array) -> Array:
        """Network input `(...,C)` of uint8 images `(...,C)`."""
        return from_bytes(images, self.image_mean, self.image_std)

    def pixels(self, inputs: Array) -> Array:
        """Pixels in 0..1 `(...,C)` of network inputs `(...,C)`, clipped."""
        shape = (1,) * (inputs.ndim - 1) + (-1,)
        pixels = inputs * self.image_std.reshape(shape) + self.image_mean.reshape(shape)
        return jnp.clip(pixels, 0.0, 1.0)

    def targets(self, features: Array) -> Array:
        """Regression targets `(...,D)` of a teacher's features `(...,D)`: centred, and over one scalar."""
        shape = (1,) * (features.ndim - 1) + (-1,)
        return (features - self.target_mean.reshape(shape)) / self.target_scale

    def features(self, targets: Array) -> Array:
        """A teacher's features `(...,D)` of regression targets `(...,D)`."""
        shape = (1,) * (targets.ndim - 1) + (-1,)
        return targets * self.target_scale + self.target_mean.reshape(shape)


def from_bytes(images: Array, mean: Array, std: Array) -> Array:
    """Network input of uint8 images `(...,C)`: pixels in 0..1, less the mean `(C,)`, over the deviation `(C,)`."""
    shape = (1,) * (images.ndim - 1) + (-1,)
    return (images.astype(jnp.float32) / 255.0 - mean.reshape(shape)) / std.reshape(shape)


def fit(images: np.ndarray, features: np.ndarray) -> Preprocessing:
    """The constants of a training set.

    Args:
        images: uint8 `(n,H,W,C)`.
        features: The teacher's features `(n,D)`.

    Returns:
        Float32 constants; a channel or a teacher without variance gets the scale 1.
    """
    mean, std = channel_moments(images)
    scale = float(features.astype(np.float64).std(0).mean())
    return Preprocessing(
        image_mean=jnp.asarray(mean),
        image_std=jnp.asarray(std),
        target_mean=jnp.asarray(features.mean(0, dtype=np.float64), jnp.float32),
        target_scale=jnp.asarray(scale or 1.0, jnp.float32),
    )


def channel_moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, float32 `(C,)`, of pixels in 0..1; `images` uint8 `(n,H,W,C)`."""
    channels = images.shape[-1]
    # A histogram of 256 values is exact and needs no copy of the images in floats.
    counts = np.zeros((channels, 256), np.int64)
    for begin in range(0, len(images), 10_000):  # NumPy counts in eight bytes per pixel
        part = images[begin : begin + 10_000]
        counts += np.stack([np.bincount(part[..., c].ravel(), minlength=256) for c in range(channels)])
    values = np.arange(256) / 255.0
    mean = counts @ values / counts.sum(1)
    variance = counts @ values**2 / counts.sum(1) - mean**2
    std = np.sqrt(np.maximum(variance, 0.0))
    return mean.astype(np.float32), np.where(std > 0, std, 1.0).astype(np.float32)
