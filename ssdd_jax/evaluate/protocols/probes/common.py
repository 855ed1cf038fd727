"""Parts that the probes share: standardisation, held-out examples, logits and accuracy."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Standard(NamedTuple):
    """Affine map to features of zero mean and unit variance.

    Attributes:
        mean: Mean of each feature `(F,)`.
        scale: Standard deviation of each feature `(F,)`, 1 for constant ones.
    """

    mean: Array
    scale: Array

    @classmethod
    def of(cls, features: Array) -> Standard:
        """Fit the map to features `(n,F)`."""
        return cls.of_moments(features.mean(0), features.std(0))

    @classmethod
    def of_moments(cls, mean: Array, deviation: Array) -> Standard:
        """Fit the map to features of the mean and the standard deviation `(F,)`."""
        # Constant features are centred only: their rounding errors would be scaled up.
        return cls(mean, jnp.where(deviation > 1e-6 * deviation.max(), deviation, 1.0))

    def apply(self, features: Array) -> Array:
        """Standardise features `(n,F)`."""
        return (features - self.mean[None]) / self.scale[None]

    def raw(self, weights: Array) -> Array:
        """Convert weights `(F+1,classes)` for standardised features to weights for the features as they are."""
        scaled = weights[:-1] / self.scale[:, None]
        return jnp.concatenate([scaled, weights[-1:] - self.mean[None] @ scaled])


def held_out(count: int, share: float) -> np.ndarray:
    """Choose the examples that hyperparameters are chosen on.

    The choice is random, because data may be sorted by class, and the same for every network.

    Args:
        count: Number of examples.
        share: Share to hold out, in (0, 1); at least one example is held out, and one is left.

    Returns:
        Mask, bool `(count,)`.
    """
    size = min(max(1, round(share * count)), max(1, count - 1))
    return np.random.default_rng(0).permutation(count) < size


def logits(weights: Array, features: Array) -> Array:
    """Compute the logits of a linear classifier.

    Args:
        weights: Weights `(F+1,classes)`; the last row is the bias.
        features: Features `(n,F)`.

    Returns:
        Logits `(n,classes)`.
    """
    features, weights = jnp.asarray(features), jnp.asarray(weights)
    # A single pass of bfloat16, an accelerator's default, loses what features with a large mean differ in.
    return jnp.matmul(features, weights[:-1], precision="highest") + weights[-1][None]


def accuracy(scores: Array, labels: Array) -> Array:
    """Compute the accuracy in percent, a scalar, of scores `(n,classes)` for labels int32 `(n,)`."""
    return 100.0 * jnp.mean((jnp.argmax(scores, -1) == labels).astype(jnp.float32))
