"""Minimisation by L-BFGS inside a compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

Array = jax.Array


def minimize(
    objective: Callable[[Array], Array], start: Array, *, enough: Array, steps: int, memory: int = 10
) -> Array:
    """Minimise a smooth function with L-BFGS and optax's zoom line search.

    Args:
        objective: Maps an array to a scalar.
        start: Initial array.
        enough: Iteration ends when the norm of the gradient is at most this, a scalar.
        steps: Largest number of iterations.
        memory: Pairs of steps and gradients from which the curvature is estimated.

    Returns:
        The array after the last iteration.
    """
    solver = optax.lbfgs(memory_size=memory)

    def has_not_converged(carry: tuple[Array, Any, Array, Array]) -> Array:
        _, _, count, norm = carry
        return (count < steps) & (norm > enough)

    def step(carry: tuple[Array, Any, Array, Array]) -> tuple[Array, Any, Array, Array]:
        weights, state, count, _ = carry
        value, gradient = value_and_grad(weights, state=state)
        updates, state = solver.update(gradient, state, weights, value=value, grad=gradient, value_fn=objective)
        # The last element is the state of the line search, which holds the gradient at its final point.
        return optax.apply_updates(weights, updates), state, count + 1, jnp.linalg.norm(state[-1].grad)

    # optax mixes integers with floats, and scalars with arrays.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        value_and_grad = optax.value_and_grad_from_state(objective)
        carry = (start, solver.init(start), jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, start.dtype))
        return lax.while_loop(has_not_converged, step, carry)[0]
