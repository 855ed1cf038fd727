"""The scale-free probe on few labels: ridge regression with a ridge chosen by leave-one-out."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve

from ssdd_jax.data.labels import rare
from ssdd_jax.evaluate.protocols.probes.common import Standard, accuracy

Array = jax.Array

# Labels per class of the few-shot probe, and the number of random draws that it is averaged over.
SHOTS, DRAWS = 10, 3
# Candidates for the ridge, relative to the mean of the kernel's diagonal.
RIDGES = tuple(10.0**power for power in range(-6, 3))


def draw_shots(seed: int, labels: np.ndarray, classes: int) -> np.ndarray | None:
    """Draw `SHOTS` labelled training images per class, `DRAWS` times.

    Args:
        seed: Seed of the draws.
        labels: Labels `(n,)`.
        classes: Number of classes.

    Returns:
        Indices, int32 `(DRAWS, classes * SHOTS)`, or None if a class has fewer than `SHOTS` images.
    """
    generator = np.random.default_rng(seed)
    by_class = [np.flatnonzero(labels == label) for label in range(classes)]
    if min(len(indices) for indices in by_class) < SHOTS:
        return None
    draws = [
        np.concatenate([generator.choice(indices, SHOTS, replace=False) for indices in by_class]) for _ in range(DRAWS)
    ]
    return np.stack(draws).astype(np.int32)


def few_shot(train: tuple[Array, Array], test: tuple[Array, Array], shots: Array, *, classes: int) -> Array:
    """Fit ridge regression to few labels and test it, averaged over the draws.

    Features are standardised by the mean and standard deviation of all training images, labelled or not. The ridge
    minimises the leave-one-out error on the few labels.

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        shots: Indices of the labelled images, int32 `(draws,k)`, from `draw_shots`.
        classes: Number of classes.

    Returns:
        Test accuracy in percent, a scalar.
    """
    train, test = jax.tree.map(jnp.asarray, (train, test))
    standardise = Standard.of(train[0]).apply

    def accuracy_of(indices: Array) -> Array:
        fitted = weights(standardise(train[0][indices]), train[1][indices], classes=classes)
        with jax.default_matmul_precision("highest"):
            return accuracy(standardise(test[0]) @ fitted, test[1])

    return lax.map(accuracy_of, shots).mean()


def weights(features: Array, labels: Array, *, classes: int) -> Array:
    """Fit ridge regression of the one-hot labels.

    Args:
        features: Standardised features of the labelled images `(k,F)`.
        labels: Labels int32 `(k,)`.
        classes: Number of classes.

    Returns:
        Weights `(F,classes)`.
    """
    targets = jax.nn.one_hot(labels, classes) - 1 / classes
    with jax.default_matmul_precision("highest"):
        # The dual form, whose size is the number of labels, which are few.
        return features.T @ _leave_one_out(features @ features.T, targets)


def _leave_one_out(kernel: Array, targets: Array) -> Array:
    """Dual weights `(k,classes)` of the ridge with the smallest leave-one-out error, in closed form."""
    eye = jnp.eye(len(kernel), dtype=kernel.dtype)

    def fit(ridge: Array) -> tuple[Array, Array]:
        factor = jnp.linalg.cholesky(kernel + ridge * jnp.trace(kernel) / len(kernel) * eye)
        inverse = cho_solve((factor, True), eye)
        weights = inverse @ targets
        # Residual of each example under the fit to all others, without refitting.
        residual = weights / jnp.diag(inverse)[:, None]
        return weights, jnp.mean(jnp.square(residual))

    weights, errors = lax.map(fit, jnp.array(RIDGES, kernel.dtype))
    return weights[jnp.nanargmin(errors)]


def too_few(labels: np.ndarray, names: Sequence[str]) -> str:
    """Explain why `few_shot` is left out for labels, int32 `(n,)`, of the classes `names`; empty if it is not."""
    few = rare(labels, names, SHOTS)
    if not few:
        return ""
    return (
        f"it takes {SHOTS} training images of every class, and {len(few):,} of {len(names):,} classes have fewer, such "
        f"as {few[0]!r}"
    )
