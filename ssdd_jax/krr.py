"""Closed-form kernel ridge regression with a linear kernel, the inner solution of the outer loss.

`prediction = f_real f_syn^T (f_syn f_syn^T + ridge I)^{-1} Y` (KRR-ST, equation 6; Boost-SSDD, section 3.1), with
`ridge = ridge_scale trace(f_syn f_syn^T)`, through which no gradient flows.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

Array = jax.Array


def predict(f_syn: Array, y_syn: Array, f_real: Array, ridge_scale: float = 1e-6) -> Array:
    """Predict targets of real images from the features and targets of synthetic ones. Differentiable.

    The kernel's condition number is about `1 / ridge_scale`, at the edge of float32. The system is therefore solved
    by Cholesky at the highest matmul precision and corrected once with a residual that is formed from the features
    rather than from the rounded kernel. Gradients are those of the exact solution (implicit differentiation).

    Args:
        f_syn: Synthetic features `(S,F)`.
        y_syn: Synthetic targets `(S,D)`.
        f_real: Real features `(B,F)`.
        ridge_scale: Ridge over the kernel's trace.

    Returns:
        Predicted targets `(B,D)`, in the inputs' precision and never below float32.
    """
    chex.assert_rank([f_syn, y_syn, f_real], 2)
    chex.assert_equal_shape_prefix([f_syn, y_syn], 1)
    chex.assert_equal_shape_suffix([f_syn, f_real], 1)
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(f_syn, y_syn, f_real, jnp.float32)
    f_syn, y_syn, f_real = (value.astype(dtype) for value in (f_syn, y_syn, f_real))
    with jax.default_matmul_precision("highest"):
        return f_real @ (f_syn.T @ _dual_weights(f_syn, y_syn, ridge_scale))


def _dual_weights(f_syn: Array, y_syn: Array, ridge_scale: float) -> Array:
    """`(f_syn f_syn^T + ridge I)^{-1} y_syn`, `(S,D)`."""
    fixed = lax.stop_gradient(f_syn)
    kernel = fixed @ fixed.T
    ridge = ridge_scale * jnp.trace(kernel)
    factor = jnp.linalg.cholesky(kernel + ridge * jnp.eye(len(kernel), dtype=kernel.dtype))

    def matvec(weights: Array) -> Array:
        return f_syn @ (f_syn.T @ weights) + ridge * weights

    def solve(_: object, right: Array) -> Array:
        first = cho_solve((factor, True), right)
        residual = right - (fixed @ (fixed.T @ first) + ridge * first)
        return first + cho_solve((factor, True), residual)

    return lax.custom_linear_solve(matvec, y_syn, solve, symmetric=True)
