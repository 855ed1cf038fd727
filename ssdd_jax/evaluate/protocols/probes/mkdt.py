"""MKDT's linear probe: L-BFGS on the features as they are, on all labels or on a fraction (Joshi et al., ICLR 2025)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ssdd_jax.evaluate.protocols.probes.common import accuracy, logits
from ssdd_jax.evaluate.protocols.probes.lbfgs import minimize

Array = jax.Array

# Fractions of the labels in MKDT's evaluation.
FRACTIONS = (0.01, 0.05, 0.1, 0.5)


class LbfgsSettings(NamedTuple):
    """Settings of the linear classifier trained by L-BFGS.

    Attributes:
        penalty: Coefficient of the sum of the squared weights, without the bias (MKDT,
            `evaluation/linear_evaluation.py`).
        tolerance: Training ends when the norm of the gradient is this fraction of its initial value.
        steps: Largest number of iterations.
        memory: Pairs of steps and gradients from which the curvature is estimated.
    """

    penalty: float = 1e-3
    tolerance: float = 1e-5
    steps: int = 1000
    memory: int = 10


def lbfgs(
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    *,
    classes: int,
    settings: LbfgsSettings = LbfgsSettings(),
) -> Array:
    """Train a linear classifier to convergence by L-BFGS and test it; see `fit_lbfgs`.

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        classes: Number of classes.
        settings: Training settings.

    Returns:
        Test accuracy in percent, a scalar.
    """
    weights = fit_lbfgs(train, classes=classes, settings=settings)
    return accuracy(logits(weights, test[0]), test[1])


def fit_lbfgs(train: tuple[Array, Array], *, classes: int, settings: LbfgsSettings = LbfgsSettings()) -> Array:
    """Minimise cross-entropy plus `penalty * sum(weights ** 2)` of a linear classifier on raw features, by L-BFGS.

    MKDT's probe (Joshi et al., ICLR 2025; `evaluation/linear_evaluation.py`). Its code runs up to 400 iterations of
    L-BFGS from random weights without a line search, which may not converge, or may diverge, if the scales of the
    features differ much. The problem is convex and its solution is unique up to a constant added to all biases: this
    function starts at zero and iterates to convergence. Internally, features are centred and scaled, and the bias with
    them, which takes ten times fewer iterations and does not change the objective.

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        classes: Number of classes.
        settings: Training settings.

    Returns:
        Weights `(F+1,classes)` for the raw features; the last row is the bias.
    """
    features, labels = map(jnp.asarray, train)
    chex.assert_rank([features, labels], [2, 1])
    chex.assert_equal_shape_prefix([features, labels], 1)

    def loss(weights: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(weights, features), labels).mean()

    return search(loss, (features.mean(0), features.var(0)), classes=classes, settings=settings)


def search(
    loss: Callable[[Array], Array], moments: tuple[Array, Array], *, classes: int, settings: LbfgsSettings
) -> Array:
    """Minimise the loss of a linear classifier plus the penalty, starting at zero.

    Args:
        loss: Maps weights `(F+1,classes)` to the mean cross-entropy, a scalar.
        moments: Mean and variance of each feature `(F,)`.
        classes: Number of classes.
        settings: Training settings.

    Returns:
        Weights `(F+1,classes)`; the last row is the bias.
    """
    mean, variance = moments
    # Preconditioner: approximately the inverse root of the Hessian's diagonal when all classes are equally likely.
    scale = lax.rsqrt(variance / classes + 2 * settings.penalty)

    def raw(inner: Array) -> Array:
        weights = scale[:, None] * inner[:-1]
        return jnp.concatenate([weights, classes**0.5 * inner[-1:] - mean[None] @ weights])

    def objective(inner: Array) -> Array:
        weights = raw(inner)
        return loss(weights) + settings.penalty * jnp.sum(jnp.square(weights[:-1]))

    with jax.default_matmul_precision("highest"):
        start = jnp.zeros((len(mean) + 1, classes), mean.dtype)
        enough = settings.tolerance * jnp.linalg.norm(jax.grad(objective)(start))
        return raw(minimize(objective, start, enough=enough, steps=settings.steps, memory=settings.memory))


def draw_fraction(seed: int, labels: np.ndarray, fraction: float) -> np.ndarray:
    """Draw the training images that keep their label, a fraction of all.

    As in MKDT (`utils.py`), the draw is not stratified, so that classes may be rare or missing. For one seed, smaller
    draws are prefixes of larger ones, which reduces the noise between fractions.

    Args:
        seed: Seed of the draw.
        labels: Labels `(n,)`; only their number matters.
        fraction: Fraction of the images, in (0, 1]; see `FRACTIONS`.

    Returns:
        Indices, int32 `(max(1, int(n * fraction)),)`.

    Raises:
        ValueError: If the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of the labels must be in (0, 1], got {fraction}")
    order = np.random.default_rng(seed).permutation(len(labels))
    return order[: max(1, int(len(labels) * fraction))].astype(np.int32)


def few_labels(
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    rows: Array,
    *,
    classes: int,
    settings: LbfgsSettings = LbfgsSettings(),
) -> Array:
    """Run the probe `lbfgs` on a subset of the labelled training images.

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        rows: Indices of the subset, int32 `(k,)`, from `draw_fraction`.
        classes: Number of classes.
        settings: Training settings.

    Returns:
        Test accuracy in percent, a scalar.
    """
    return lbfgs((train[0][rows], train[1][rows]), test, classes=classes, settings=settings)
