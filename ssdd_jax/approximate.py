"""Approximation networks: predict the targets of the further views from those of the first (Boost-SSDD, section 3.3).

After distillation, one two-layer network per further view learns to predict the shift `Cy_v - Cy_0` from `Cy_0`. Only
`Cy_0` and the networks are stored.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

Array = jax.Array


class Networks(NamedTuple):
    """Parameters of one network per view except the first: `shift = relu(c W1 + b1) W2 + b2`.

    Attributes:
        hidden_kernel: W1 `(views-1,V,hidden)`.
        hidden_bias: b1 `(views-1,hidden)`.
        out_kernel: W2 `(views-1,hidden,V)`.
        out_bias: b2 `(views-1,V)`.
    """

    hidden_kernel: Array
    hidden_bias: Array
    out_kernel: Array
    out_bias: Array


class Settings(NamedTuple):
    """Settings of the fit.

    Attributes:
        hidden: Number of hidden units.
        steps: Number of full-batch Adam steps.
        learning_rate: Initial learning rate of Adam; decays to zero along a cosine.
    """

    hidden: int = 4
    steps: int = 3000
    learning_rate: float = 1e-2


def init(key: Array, views: int, bases: int, hidden: int) -> Networks:
    """Initialize networks whose predicted shift is zero.

    Args:
        key: PRNG key.
        views: Number of views, the first included.
        bases: Number of feature bases V.
        hidden: Number of hidden units.

    Returns:
        One network per view except the first. The output layer is zero; the hidden layer is He-initialized.
    """
    kernel = jax.random.normal(key, (views - 1, bases, hidden)) * (2 / bases) ** 0.5
    return Networks(
        hidden_kernel=kernel,
        hidden_bias=jnp.zeros((views - 1, hidden)),
        out_kernel=jnp.zeros((views - 1, hidden, bases)),
        out_bias=jnp.zeros((views - 1, bases)),
    )


def apply(networks: Networks, coefficients_0: Array) -> Array:
    """Compute the coefficients of every view.

    Args:
        networks: One network per view except the first.
        coefficients_0: Coefficients of the first view `(M,V)`.

    Returns:
        Coefficients `(views,M,V)`; the first entry is `coefficients_0` itself.
    """
    chex.assert_rank(coefficients_0, 2)
    # The stored set is decoded through these products, so they are as exact as float32 allows on every backend.
    with jax.default_matmul_precision("highest"):
        hidden = jnp.einsum("mk,vkh->vmh", coefficients_0, networks.hidden_kernel)
        hidden = jax.nn.relu(hidden + networks.hidden_bias[:, None])
        shift = jnp.einsum("vmh,vhk->vmk", hidden, networks.out_kernel) + networks.out_bias[:, None]
    return jnp.concatenate([coefficients_0[None], coefficients_0[None] + shift])


def error(networks: Networks, coefficients: Array, bases: Array | None = None) -> Array:
    """Compute the mean squared error over all views except the first.

    Args:
        networks: One network per view except the first.
        coefficients: Coefficients of every view `(views,M,V)`.
        bases: Feature bases `(V,D)`. If given, the error is measured on the targets instead of the coefficients.

    Returns:
        The error, a scalar.
    """
    residual = apply(networks, coefficients[0])[1:] - coefficients[1:]
    with jax.default_matmul_precision("highest"):
        return jnp.mean(jnp.square(residual if bases is None else residual @ bases))


def unexplained(networks: Networks, coefficients: Array, bases: Array) -> Array:
    """Compute the share of the targets' energy that the networks lose in each view except the first.

    Args:
        networks: One network per view except the first.
        coefficients: Coefficients of every view `(views,M,V)`.
        bases: Feature bases `(V,D)`.

    Returns:
        `(views-1,)`: the squared error of the targets over their squared distance from the feature mean.
    """
    residual = apply(networks, coefficients[0])[1:] - coefficients[1:]
    with jax.default_matmul_precision("highest"):
        lost, energy = (jnp.sum(jnp.square(part @ bases), axis=(1, 2)) for part in (residual, coefficients[1:]))
    return lost / jnp.maximum(energy, jnp.finfo(energy.dtype).tiny)


def fit(key: Array, coefficients: Array, *, bases: Array | None = None, settings: Settings = Settings()) -> Networks:
    """Fit the networks by full-batch Adam.

    Args:
        key: PRNG key.
        coefficients: Coefficients of every view `(views,M,V)`.
        bases: Feature bases `(V,D)`. If given, the error of the targets is minimised, so that the few hidden units
            serve the directions in which the targets vary, rather than all directions alike.
        settings: Hidden units, steps and learning rate.

    Returns:
        One network per view except the first; no network (leading axis 0) if there is a single view.
    """
    chex.assert_rank(coefficients, 3)
    views, _, count = coefficients.shape
    # The networks share the key but not the draw: one array holds the kernels of all of them.
    networks = init(key, views, count, settings.hidden)
    if views == 1:
        return networks
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.steps))

    def step(carry: tuple[Networks, optax.OptState], _: None) -> tuple[tuple[Networks, optax.OptState], None]:
        networks, opt_state = carry
        gradient = jax.grad(error)(networks, coefficients, bases)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of an integer
            updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(networks, updates), opt_state), None

    # The networks have independent errors: minimising their mean fits each of them separately.
    # One scan: thousands of steps on a problem this small would otherwise be dominated by dispatch.
    (networks, _), _ = lax.scan(step, (networks, optimizer.init(networks)), length=settings.steps)
    return networks


def numbers(views: int, bases: int, hidden: int) -> int:
    """Count the numbers that the networks of `views - 1` views store."""
    return (views - 1) * (bases * hidden + hidden + hidden * bases + bases)
