"""The scale-free linear probe: logistic regression on standardised features, its penalty chosen on held-out labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.scipy.linalg import solve_triangular

from ssdd_jax.evaluate.protocols.probes.common import Standard, accuracy, held_out, logits
from ssdd_jax.evaluate.protocols.probes.lbfgs import minimize

Array = jax.Array


class LinearSettings(NamedTuple):
    """Settings of the linear probe.

    Attributes:
        penalties: Candidates for the coefficient of half the sum of the squared weights, without the bias, from strong
            to weak; each fit starts from the one before.
        patience: Weaker penalties, whose fits take longest, are skipped after this many fits without an improvement.
        share: Share of the training labels that the penalty is chosen on.
        tolerance: A fit ends when the norm of the gradient is this fraction of its norm at zero weights.
        steps: Largest number of iterations of a fit.
    """

    penalties: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)
    patience: int = 2
    share: float = 0.2
    tolerance: float = 1e-2
    steps: int = 50


class _Best(NamedTuple):
    """The fit with the fewest errors on held-out labels so far.

    Attributes:
        weights: Weights for standardised features `(F+1,classes)`.
        error: Share of held-out images that it classifies wrongly, plus a small multiple of the cross-entropy, which
            decides between equal shares.
        penalty: Its penalty.
        waited: Number of fits since.
    """

    weights: Array
    error: Array
    penalty: Array
    waited: Array


def linear(
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    *,
    classes: int,
    settings: LinearSettings = LinearSettings(),
) -> Array:
    """Fit the scale-free linear probe to all labels and test it; see `fit_linear`.

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        classes: Number of classes.
        settings: Settings of the fit.

    Returns:
        Test accuracy in percent, a scalar.
    """
    return accuracy(logits(fit_linear(train, classes=classes, settings=settings), test[0]), test[1])


def fit_linear(train: tuple[Array, Array], *, classes: int, settings: LinearSettings = LinearSettings()) -> Array:
    """Fit multinomial logistic regression to standardised features.

    Features are standardised by their mean and standard deviation over the training images, so that the result does
    not depend on the scale of any feature. The penalty with the fewest errors on held-out training labels is used to
    fit all training labels. Ridge regression of one-hot labels is faster, but worse if there are few features: see
    docs/guides/evaluation.md.

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        classes: Number of classes.
        settings: Settings of the fit.

    Returns:
        Weights `(F+1,classes)` for the features as they are; the last row is the bias.
    """
    features, labels = map(jnp.asarray, train)
    chex.assert_rank([features, labels], [2, 1])
    chex.assert_equal_shape_prefix([features, labels], 1)
    standard = Standard.of(features)
    inputs = standard.apply(features)
    held = jnp.asarray(held_out(len(features), settings.share), inputs.dtype)

    def losses(weights: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(weights, inputs), labels)

    def loss(weights: Array, final: Array) -> Array:
        share = jnp.where(final > 0, 1, 1 - held)
        return jnp.sum(share * losses(weights)) / jnp.sum(share)

    def error(weights: Array) -> Array:
        wrong = (jnp.argmax(logits(weights, inputs), -1) != labels).astype(inputs.dtype)
        return jnp.sum(held * (wrong + 1e-6 * losses(weights))) / jnp.sum(held)

    with jax.default_matmul_precision("highest"):
        within = inputs.T @ inputs / len(inputs)
        return standard.raw(search(Objective(loss, error, within), classes=classes, settings=settings))


class Objective(NamedTuple):
    """Logistic regression on standardised features, in functions of the weights `(F+1,classes)`.

    Attributes:
        loss: `(weights, final) -> loss`: mean cross-entropy of the examples that are not held out, and of all if
            `final` is 1 instead of 0.
        error: `weights -> error` of the held-out examples, as in `_Best`.
        within: Covariance of the features `(F,F)`.
    """

    loss: Callable[[Array, Array], Array]
    error: Callable[[Array], Array]
    within: Array


def search(problem: Objective, *, classes: int, settings: LinearSettings) -> Array:
    """Choose the penalty on the held-out examples, and fit all examples with it.

    Args:
        problem: The loss and the error to minimise.
        classes: Number of classes.
        settings: Settings of the fit.

    Returns:
        Weights for standardised features `(F+1,classes)`.
    """
    within = problem.within
    penalties = jnp.array(settings.penalties, within.dtype)
    start = jnp.zeros((len(within) + 1, classes), within.dtype)

    def fit(start: Array, penalty: Array, final: Array) -> Array:
        """Minimise the loss with the penalty."""

        # Preconditioner: with the Hessian at zero weights as the metric a few iterations suffice instead of hundreds.
        root = jnp.linalg.cholesky(within / classes + penalty * jnp.eye(len(within), dtype=within.dtype))

        def outer(inner: Array) -> Array:
            return jnp.concatenate([solve_triangular(root.T, inner[:-1]), classes**0.5 * inner[-1:]])

        def objective(inner: Array) -> Array:
            weights = outer(inner)
            return problem.loss(weights, final) + 0.5 * penalty * jnp.sum(jnp.square(weights[:-1]))

        # Relative to zero weights and not to the start, so that a warm start takes fewer iterations.
        norm = jnp.linalg.norm(jax.grad(objective)(jnp.zeros_like(start)))
        inner = jnp.concatenate([root.T @ start[:-1], start[-1:] / classes**0.5])
        return outer(minimize(objective, inner, enough=settings.tolerance * norm, steps=settings.steps))

    def step(carry: tuple[Array, _Best], index: Array) -> tuple[tuple[Array, _Best], None]:
        weights, best = carry
        # The last step fits all labels with the best penalty: as a step of the same loop it is compiled only once.
        final = index == len(penalties)
        start = jnp.where(final, best.weights, weights)
        penalty = jnp.where(final, best.penalty, penalties[jnp.minimum(index, len(penalties) - 1)])
        skip = ~final & (best.waited >= settings.patience)
        weights = lax.cond(skip, lambda: start, lambda: fit(start, penalty, final.astype(start.dtype)))
        error = problem.error(weights)
        better = ~skip & ~final & (error < best.error)
        best = _Best(
            jnp.where(better | final, weights, best.weights),
            jnp.where(better, error, best.error),
            jnp.where(better, penalty, best.penalty),
            jnp.where(better, 0, best.waited + 1),
        )
        return (weights, best), None

    none = _Best(start, jnp.full((), jnp.inf, start.dtype), penalties[0], jnp.zeros((), jnp.int32))
    (_, best), _ = lax.scan(step, (start, none), jnp.arange(len(penalties) + 1))
    return best.weights
