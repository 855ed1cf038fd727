"""Regression of the teacher's features from frozen features."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from ssdd_jax.evaluate.protocols.probes import common

Array = jax.Array

# Candidates for the ridge, relative to the mean of the covariance's diagonal.
RIDGES = tuple(10.0**power for power in range(-6, 3))
# Share of the training images that the ridge is chosen on.
HELD_OUT = 0.1
# Smallest variance of a principal component of the teacher's features, relative to the largest, that is scaled to 1.
FLOOR = 1e-3


class R2(NamedTuple):
    """Shares of the variance of the teacher's features that are explained, at most 1, scalars.

    Attributes:
        plain: Of the features as they are; a few principal components may hold most of their variance.
        whitened: Of the whitened features, in which every component has the same variance.
    """

    plain: Array
    whitened: Array


def feature_r2(train: tuple[Array, Array], test: tuple[Array, Array]) -> R2:
    """Compute the R2 of ridge regression from features to the teacher's features of test images.

    The ridge is chosen on a tenth of the training images; the regression is then fitted to all training images. The
    whitened features are the principal components of the teacher's features of the training images, scaled to unit
    variance; components with less than `FLOOR` of the largest variance keep a smaller one, since they may be noise.

    Args:
        train: Features `(n,F)` and the teacher's features `(n,D)` of the training images.
        test: Features `(m,F)` and the teacher's features `(m,D)` of the test images.

    Returns:
        Both R2 over all D dimensions together, each with the ridge that is best for it.
    """
    train, test = jax.tree.map(jnp.asarray, (train, test))
    chex.assert_equal_shape_prefix(train, 1)
    chex.assert_equal_shape_prefix(test, 1)
    held_out, ridges = common.held_out(len(train[0]), HELD_OUT), jnp.array(RIDGES)
    centred = train[1] - train[1].mean(0)[None]
    whitening_ = whitening(_product(centred.T, centred) / len(centred))
    fitted, rest = Regression.of(train[0][~held_out], train[1][~held_out]), (train[0][held_out], train[1][held_out])

    def errors_of(ridge: Array) -> tuple[Array, Array]:
        residual = fitted.predict(rest[0], fitted.solve(ridge)) - rest[1]
        return jnp.mean(jnp.square(residual)), jnp.mean(jnp.square(_product(residual, whitening_)))

    # Errors of the smallest ridges are NaN if the covariance is singular.
    best = jnp.stack([ridges[jnp.nanargmin(errors)] for errors in lax.map(errors_of, ridges)])
    whole = Regression.of(*train)
    # Regression is linear in its targets: whitened predictions are those of the plain features, whitened.
    plain, whitened = lax.map(lambda ridge: whole.predict(test[0], whole.solve(ridge)) - test[1], best)
    spread = test[1] - test[1].mean(0)[None]
    return R2(_explained(plain, spread), _explained(_product(whitened, whitening_), _product(spread, whitening_)))


def whitening(covariance: Array) -> Array:
    """Return the matrix `(D,D)` that whitens centred targets `(n,D)` of a covariance `(D,D)` from the right."""
    variances, directions = jnp.linalg.eigh(covariance)
    largest = jnp.maximum(variances[-1], jnp.finfo(variances.dtype).tiny)
    return directions / jnp.sqrt(jnp.maximum(variances, FLOOR * largest))[None]


def _explained(residual: Array, spread: Array) -> Array:
    return 1 - jnp.sum(jnp.square(residual)) / jnp.sum(jnp.square(spread))


def _product(a: Array, b: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return a @ b


class Regression(NamedTuple):
    """Sufficient statistics of ridge regression.

    Attributes:
        mean_x: Mean of the features `(1,F)`.
        mean_y: Mean of the targets `(1,D)`.
        within: Covariance of the features `(F,F)`, summed, not averaged, over the images.
        across: Covariance of features and targets `(F,D)`, likewise.
    """

    mean_x: Array
    mean_y: Array
    within: Array
    across: Array

    @classmethod
    def of(cls, x: Array, y: Array) -> Regression:
        """Compute the statistics of features `(n,F)` and targets `(n,D)`."""
        mean_x, mean_y = x.mean(0)[None], y.mean(0)[None]
        x, y = x - mean_x, y - mean_y
        return cls(mean_x, mean_y, _product(x.T, x), _product(x.T, y))

    def solve(self, ridge: Array) -> Array:
        """Fit the linear map `(F,D)` from centred features to centred targets."""
        with jax.default_matmul_precision("highest"):
            scaled = ridge * jnp.trace(self.within) / len(self.within)
            eye = jnp.eye(len(self.within), dtype=self.within.dtype)
            factor = jnp.linalg.cholesky(self.within + scaled * eye)
            return cho_solve((factor, True), self.across)

    def predict(self, x: Array, linear_map: Array) -> Array:
        """Predict targets `(n,D)` from features `(n,F)` by a map from `solve`."""
        return _product(x - self.mean_x, linear_map) + self.mean_y
