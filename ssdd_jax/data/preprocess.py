"""Normalisation of pixels and of teacher features, shared by every method and baseline."""

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

# Images or feature vectors per block when statistics are computed.
PART = 10_000


class Preprocessing(NamedTuple):
    """Constants that normalise uint8 images to network inputs and teacher features to regression targets.

    Attributes:
        image_mean: Mean of each channel `(C,)`, for pixels in 0..1.
        image_std: Standard deviation of each channel `(C,)`.
        target_mean: Mean of the teacher's features `(D,)`.
        target_scale: A scalar: the mean over the features of their standard deviations.
    """

    image_mean: Array
    image_std: Array
    target_mean: Array
    target_scale: Array

    def images(self, images: Array) -> Array:
        """Normalise uint8 images `(...,C)` to network inputs `(...,C)`."""
        return from_bytes(images, self.image_mean, self.image_std)

    def pixels(self, inputs: Array) -> Array:
        """Map network inputs `(...,C)` back to pixels in 0..1 `(...,C)`, clipped."""
        shape = (1,) * (inputs.ndim - 1) + (-1,)
        pixels = inputs * self.image_std.reshape(shape) + self.image_mean.reshape(shape)
        return jnp.clip(pixels, 0.0, 1.0)

    def inputs(self, pixels: Array) -> Array:
        """Normalise pixels in 0..1 `(...,C)` to network inputs `(...,C)`; the inverse of `pixels`."""
        shape = (1,) * (pixels.ndim - 1) + (-1,)
        return (pixels - self.image_mean.reshape(shape)) / self.image_std.reshape(shape)

    def targets(self, features: Array) -> Array:
        """Centre a teacher's features `(...,D)` and divide them by one scalar: regression targets `(...,D)`."""
        shape = (1,) * (features.ndim - 1) + (-1,)
        return (features - self.target_mean.reshape(shape)) / self.target_scale

    def features(self, targets: Array) -> Array:
        """Map regression targets `(...,D)` back to a teacher's features `(...,D)`."""
        shape = (1,) * (targets.ndim - 1) + (-1,)
        return targets * self.target_scale + self.target_mean.reshape(shape)


def from_bytes(images: Array, mean: Array, std: Array) -> Array:
    """Normalise uint8 images `(...,C)` by the mean `(C,)` and the standard deviation `(C,)` of pixels in 0..1."""
    shape = (1,) * (images.ndim - 1) + (-1,)
    return (images.astype(jnp.float32) / 255.0 - mean.reshape(shape)) / std.reshape(shape)


def fit(images: np.ndarray, features: np.ndarray, *, moments: Moments | None = None) -> Preprocessing:
    """Compute the normalisation constants of a training set.

    Args:
        images: uint8 `(n,H,W,C)`.
        features: The teacher's features `(n,D)`.
        moments: The result of `channel_moments` for the images, if already computed.

    Returns:
        Float32 constants; a channel or a teacher without variance gets the scale 1.
    """
    # One scale for all features keeps the teacher's geometry: a scale per feature would weight them equally.
    mean, std = moments or channel_moments(images)
    centre, deviation = column_moments(lambda: (features[part] for part in parts(len(features))))
    return Preprocessing(
        image_mean=jnp.asarray(mean),
        image_std=jnp.asarray(std),
        target_mean=jnp.asarray(centre, jnp.float32),
        target_scale=jnp.asarray(float(deviation.mean()) or 1.0, jnp.float32),
    )


def parts(count: int) -> Iterator[slice]:
    """Yield consecutive slices that cover `count` entries, in blocks small enough to bound temporary memory."""
    return (slice(begin, begin + PART) for begin in range(0, count, PART))


def column_moments(pieces: Callable[[], Iterable[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean and standard deviation of each column in float64, with one piece in memory at a time.

    Args:
        pieces: Returns an iterator over arrays `(k,D)`; called twice.

    Returns:
        `(D,)` and `(D,)`, bitwise equal to NumPy's `mean` and `std` over axis 0 of the concatenation in float64.
    """
    # Two passes: the one-pass formula loses digits where the mean is large, and has other bits.
    mean = _column_means(piece.astype(np.float64) for piece in pieces())
    return mean, np.sqrt(_column_means(np.square(piece - mean[None]) for piece in pieces()))


def _column_means(pieces: Iterable[np.ndarray]) -> np.ndarray:
    """Compute the column means of concatenated pieces, with the summation order of a single array."""
    # NumPy adds along axis 0 one entry after the other, so a running total reproduces its bits.
    total, count = None, 0
    for piece in pieces:
        total = piece.sum(0) if total is None else np.concatenate([total[None], piece]).sum(0)
        count += len(piece)
    assert total is not None
    return total / count


@functools.lru_cache(maxsize=4)
def dataset_moments(dataset: Dataset) -> Moments:
    """Cached `channel_moments` of a data set's training images: ImageNet 64x64 takes over a minute."""
    return channel_moments(dataset.train_images)


def channel_moments(images: np.ndarray) -> Moments:
    """Compute the mean and standard deviation of each channel for pixels in 0..1.

    Args:
        images: uint8 `(n,H,W,C)`.

    Returns:
        Float32 `(C,)` and `(C,)`; a constant channel gets the standard deviation 1.
    """
    channels = images.shape[-1]
    # A histogram of 256 values is exact and needs no float copy of the images.
    counts = np.zeros((channels, 256), np.int64)
    for part in parts(len(images)):  # `bincount` casts its input to eight bytes per pixel
        block = images[part]
        counts += np.stack([np.bincount(block[..., c].ravel(), minlength=256) for c in range(channels)])
    values = np.arange(256) / 255.0
    # Exact counts and float64 leave the difference of squares enough digits; rounding may make it negative.
    mean = counts @ values / counts.sum(1)
    variance = counts @ values**2 / counts.sum(1) - mean**2
    std = np.sqrt(np.maximum(variance, 0.0))
    return mean.astype(np.float32), np.where(std > 0, std, 1.0).astype(np.float32)
