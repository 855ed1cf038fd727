"""Closed-form kernel ridge regression with a linear kernel: the inner solution that the outer loss is based on.

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

    The kernel's condition number is about `1 / ridge_scale`, at the limit of float32. The system is therefore solved
    by a Cholesky factorisation at the highest matmul precision, followed by one step of iterative refinement whose
    residual is computed from the features instead of the rounded kernel. Gradients are those of the exact solution
    (implicit differentiation).

    Args:
        f_syn: Synthetic features `(S,F)`.
        y_syn: Synthetic targets `(S,D)`.
        f_real: Real features `(B,F)`.
        ridge_scale: Ridge as a share of the kernel's trace.

    Returns:
        Predicted targets `(B,D)`, in the inputs' precision but at least float32.
    """
    chex.assert_rank([f_syn, y_syn, f_real], 2)
    chex.assert_equal_shape_prefix([f_syn, y_syn], 1)
    chex.assert_equal_shape_suffix([f_syn, f_real], 1)
    # Features may be bfloat16 and targets float32: both are promoted before the solve.
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(f_syn, y_syn, f_real, jnp.float32)
    f_syn, y_syn, f_real = (jnp.asarray(value).astype(dtype) for value in (f_syn, y_syn, f_real))
    with jax.default_matmul_precision("highest"):
        return f_real @ (f_syn.T @ _dual_weights(f_syn, y_syn, ridge_scale))


def _dual_weights(f_syn: Array, y_syn: Array, ridge_scale: float) -> Array:
    """Solve `(f_syn f_syn^T + ridge I) weights = y_syn` for the weights `(S,D)`."""
    # The factorisation is only a solver: the gradient flows through `matvec`, which sees the features themselves.
    fixed = lax.stop_gradient(f_syn)
    kernel = fixed @ fixed.T
    ridge = ridge_scale * jnp.trace(kernel)
    factor = jnp.linalg.cholesky(kernel + ridge * jnp.eye(len(kernel), dtype=kernel.dtype))

    def matvec(weights: Array) -> Array:
        return f_syn @ (f_syn.T @ weights) + ridge * weights

    def solve(_: object, right: Array) -> Array:
        first = cho_solve((factor, True), right)
        # One refinement: the residual does not contain the rounding error of forming the kernel.
        residual = right - (fixed @ (fixed.T @ first) + ridge * first)
        return first + cho_solve((factor, True), residual)

    return lax.custom_linear_solve(matvec, y_syn, solve, symmetric=True)
