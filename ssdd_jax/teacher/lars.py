"""LARS as configured in self-supervised learning.

You, Gitman, Ginsburg, "Large batch training of convolutional networks", 2017 (https://arxiv.org/abs/1708.03888),
with the local rate clipped at the global one ("LARC") and without decay or scaling on biases and norms.
`optax.lars` does not clip, and takes the norm of the gradient after adding the decay.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

Array = jax.Array


class LocalRateState(NamedTuple):
    """State of `scale_by_local_rate`.

    Attributes:
        step: Number of updates so far, a scalar int32.
    """

    step: Array


def scale_by_local_rate(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 1e-4,
    eta: float = 0.02,
    epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    """Add weight decay to each gradient and scale it by the relative rate of its layer.

    For parameters p with gradient g the update is `min(local / learning_rate, 1) * (g + weight_decay * p)`,
    where `local = eta * |p| / (|g| + weight_decay * |p| + epsilon)`. If p or g is zero, g is left unchanged.

    Args:
        learning_rate: The global rate that later multiplies the updates: a scalar or a schedule of the step.
        weight_decay: Coefficient of the decay.
        eta: Trust coefficient (Eq. 6 of the paper).
        epsilon: Keeps the quotient finite.

    Returns:
        A transformation that needs `params` in its update.
    """

    def init(params: Any) -> LocalRateState:
        del params
        return LocalRateState(step=jnp.zeros((), jnp.int32))

    def update(updates: Any, state: LocalRateState, params: Any = None) -> tuple[Any, LocalRateState]:
        if params is None:
            raise ValueError("scale_by_local_rate needs the params: call update(updates, state, params)")
        rate = learning_rate(state.step) if callable(learning_rate) else learning_rate

        def scaled(gradient: Array, parameter: Array) -> Array:
            p_norm, g_norm = _norm(parameter), _norm(gradient)
            local = eta * p_norm / (g_norm + weight_decay * p_norm + epsilon)
            ratio = jnp.minimum(local / jnp.asarray(rate, local.dtype), 1.0)
            # Division by the global rate cancels its later multiplication: the step is `min(local, rate)`.
            decayed = ratio * (gradient + weight_decay * parameter)
            return jnp.where((p_norm > 0.0) & (g_norm > 0.0), decayed, gradient)

        return jax.tree.map(scaled, updates, params), LocalRateState(step=state.step + 1)

    return optax.GradientTransformation(init, update)


def lars(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 1e-4,
    momentum: float = 0.9,
    eta: float = 0.02,
) -> optax.GradientTransformation:
    """Clipped LARS with heavy-ball momentum; vectors (biases, norms) are trained by plain momentum SGD.

    Args:
        learning_rate: The global rate: a positive scalar or a schedule of the step.
        weight_decay: Coupled decay of every parameter that is not a vector.
        momentum: Momentum before the learning rate, as in PyTorch's SGD.
        eta: Trust coefficient.

    Returns:
        An optax transformation.
    """
    return optax.chain(
        optax.masked(scale_by_local_rate(learning_rate, weight_decay=weight_decay, eta=eta), _not_vectors),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def _not_vectors(params: chex.ArrayTree) -> chex.ArrayTree:
    """Map parameters to a mask that is true for the leaves with weight decay and scaling."""
    return jax.tree.map(lambda leaf: leaf.ndim != 1, params)


def _norm(x: Array) -> Array:
    """Compute the Euclidean norm over all entries."""
    return jnp.sqrt(jnp.sum(jnp.square(x)))
