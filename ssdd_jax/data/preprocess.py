"""The constants of a data set that every method and baseline shares: how pixels and features are normalised."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from ssdd_jax.data import Dataset

Array = jax.Array
Moments = tuple[np.ndarray, np.ndarray]

# Rows that statistics are computed of at a time.
PART = 10_000


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


def fit(images: np.ndarray, features: np.ndarray, *, moments: Moments | None = None) -> Preprocessing:
    """The constants of a training set.

    Args:
        images: uint8 `(n,H,W,C)`.
        features: The teacher's features `(n,D)`.
        moments: What `channel_moments` gave for the images, if it is known.

    Returns:
        Float32 constants; a channel or a teacher without variance gets the scale 1.
    """
    mean, std = moments or channel_moments(images)
    centre, deviation = column_moments(lambda: (features[part] for part in parts(len(features))))
    return Preprocessing(
        image_mean=jnp.asarray(mean),
        image_std=jnp.asarray(std),
        target_mean=jnp.asarray(centre, jnp.float32),
        target_scale=jnp.asarray(float(deviation.mean()) or 1.0, jnp.float32),
    )


def parts(count: int) -> Iterator[slice]:
    """Slices that go through `count` rows, so many at a time that what is computed of them takes little memory."""
    return (slice(begin, begin + PART) for begin in range(0, count, PART))


def column_moments(pieces: Callable[[], Iterable[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, in float64, of rows that are in memory a piece at a time.

    Args:
        pieces: Gives arrays `(k,D)` one after the other; called twice.

    Returns:
        `(D,)` and `(D,)`: the bits that NumPy's `mean` and `std` of all rows in float64 have.
    """
    mean = _column_means(piece.astype(np.float64) for piece in pieces())
    return mean, np.sqrt(_column_means(np.square(piece - mean[None]) for piece in pieces()))


def _column_means(pieces: Iterable[np.ndarray]) -> np.ndarray:
    """Means over all rows, which are added one after the other as those of a single array are."""
    total, count = None, 0
    for piece in pieces:
        total = piece.sum(0) if total is None else np.concatenate([total[None], piece]).sum(0)
        count += len(piece)
    assert total is not None
    return total / count


@functools.lru_cache(maxsize=4)
def dataset_moments(dataset: Dataset) -> Moments:
    """`channel_moments` of a data set's training images, computed once: over a minute for those of ImageNet 64x64."""
    return channel_moments(dataset.train_images)


def channel_moments(images: np.ndarray) -> Moments:
    """Mean and standard deviation of each channel, float32 `(C,)`, of pixels in 0..1; `images` uint8 `(n,H,W,C)`."""
    channels = images.shape[-1]
    # A histogram of 256 values is exact and needs no copy of the images in floats.
    counts = np.zeros((channels, 256), np.int64)
    for part in parts(len(images)):  # NumPy counts in eight bytes per pixel
        some = images[part]
        counts += np.stack([np.bincount(some[..., c].ravel(), minlength=256) for c in range(channels)])
    values = np.arange(256) / 255.0
    mean = counts @ values / counts.sum(1)
    variance = counts @ values**2 / counts.sum(1) - mean**2
    std = np.sqrt(np.maximum(variance, 0.0))
    return mean.astype(np.float32), np.where(std > 0, std, 1.0).astype(np.float32)
