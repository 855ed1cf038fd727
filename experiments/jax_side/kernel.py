"""Kernel regression at a run's sizes: seconds of its parts, and accuracy of each precision of its products."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve

from experiments.measure import tables
from ssdd_jax import krr


class Sizes(NamedTuple):
    """Number of synthetic and of real images, length of a feature, and length of a target."""

    synthetic: int
    real: int
    features: int
    targets: int


# Four views of 401 images, the last block of 128-256-512 at 32x32 with the appended 1, the teacher's 512.
PAPER = Sizes(1604, 1024, 8193, 512)
QUICK = Sizes(12, 8, 20, 4)
RIDGE = 1e-6
CALLS = 20
# Systems that are factored and solved together, as many as a pool has models.
BATCH = 10
PRECISIONS = {
    "highest": lax.Precision.HIGHEST,
    "three passes of TF32": lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
    "six passes of bfloat16": lax.DotAlgorithmPreset.BF16_BF16_F32_X6,
    "one pass": lax.Precision.DEFAULT,
}


def measure(sizes: Sizes) -> dict[str, list[dict[str, Any]]]:
    """Measure the regression, the products that it consists of in each precision, and its factor and solve.

    Args:
        sizes: Sizes of the problem.

    Returns:
        `regression`: rows with the seconds of the prediction, and with the gradient; the relative errors of both in the
        Frobenius norm against float64 on the host; and the condition number of the kernel with its ridge. `products`:
        rows with the seconds and the error of the kernel in a precision. `solves`: rows with the seconds of a Cholesky
        factorisation and of a solve, alone and per system of a batch of `BATCH`.
    """
    f_syn, y_syn, f_real, y_real = problem(sizes)
    exact, exact_gradient, condition = reference(f_syn, y_syn, f_real, y_real)
    arrays = [jnp.asarray(array, jnp.float32) for array in (f_syn, y_syn, f_real, y_real)]
    variants: dict[str, Callable[..., jax.Array]] = {
        "krr.predict": krr.predict,
        # Only kernel and solve at the highest precision: what is multiplied with real features and targets is not.
        "three passes of TF32 after the solve": functools.partial(_relaxed, PRECISIONS["three passes of TF32"]),
        # What a careless default would compute, the kernel included.
        "one pass everywhere": _one_pass,
    }
    rows = []
    for name, predict in variants.items():
        forward = jax.jit(lambda f, y, x, _, predict=predict: predict(f, y, x, RIDGE))
        backward = jax.jit(jax.grad(functools.partial(_loss, predict), argnums=(0, 1)))
        row: dict[str, Any] = {"regression": name, "condition": condition}
        try:
            row["error"] = _relative(forward(*arrays), exact)
        except (RuntimeError, ValueError):  # not every platform has every algorithm
            continue
        row["gradient_error"] = max(map(_relative, backward(*arrays), exact_gradient))
        row["seconds"] = _seconds(forward, arrays)
        row["gradient_seconds"] = _seconds(backward, arrays)
        rows.append(row)
    return {"regression": rows, "products": _products(arrays[0], f_syn), "solves": _solves(arrays[0], arrays[1])}


def _products(f_syn: jax.Array, exact: np.ndarray) -> list[dict[str, Any]]:
    """Measure the kernel's product in each precision that the platform offers."""
    rounded = exact.astype(np.float32).astype(np.float64)
    kernel, rows = rounded @ rounded.T, []
    for name, precision in PRECISIONS.items():
        product = jax.jit(lambda f, precision=precision: jnp.matmul(f, f.T, precision=precision))
        try:
            row = {"precision": name, "error": _relative(product(f_syn), kernel), "seconds": _seconds(product, [f_syn])}
        except (RuntimeError, ValueError):  # not every platform has every algorithm
            continue
        rows.append(row)
    return rows


def _solves(f_syn: jax.Array, y_syn: jax.Array) -> list[dict[str, Any]]:
    """Measure factorisation and solve, of one system and of a batch."""
    kernel = f_syn @ f_syn.T + jnp.eye(len(f_syn))
    solve = jax.jit(jax.vmap(lambda factor, right: cho_solve((factor, True), right)))
    factorise, rows = jax.jit(jnp.linalg.cholesky), []
    for count in (1, BATCH):
        kernels, rights = (jnp.stack([array] * count) for array in (kernel, y_syn))
        factors = factorise(kernels)
        row = {"systems": count, "factor_seconds": _seconds(factorise, [kernels]) / count}
        rows.append(row | {"solve_seconds": _seconds(solve, [factors, rights]) / count})
    return rows


def problem(sizes: Sizes) -> tuple[np.ndarray, ...]:
    """Draw features whose kernel is badly conditioned, as a trained network's: few directions hold all but noise."""
    generator = np.random.default_rng(0)
    rank = max(2, sizes.synthetic // 8)
    directions = generator.normal(size=(rank, sizes.features)) * np.logspace(0, -3, rank)[:, None]

    def features(count: int) -> np.ndarray:
        values = generator.normal(size=(count, rank)) @ directions + 1e-4 * generator.normal(
            size=(count, sizes.features)
        )
        return np.concatenate([np.maximum(values[:, :-1], 0), np.ones((count, 1))], axis=1)

    f_syn, f_real = features(sizes.synthetic), features(sizes.real)
    return (
        f_syn,
        generator.normal(size=(sizes.synthetic, sizes.targets)),
        f_real,
        generator.normal(size=(sizes.real, sizes.targets)),
    )


def reference(
    f_syn: np.ndarray, y_syn: np.ndarray, f_real: np.ndarray, y_real: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], float]:
    """Compute prediction, gradients in synthetic features and targets, and condition number in float64."""
    # Both sides start from the same float32 numbers.
    arrays = (f_syn, y_syn, f_real, y_real)
    f_syn, y_syn, f_real, y_real = (array.astype(np.float32).astype(np.float64) for array in arrays)
    kernel = f_syn @ f_syn.T
    regular = kernel + RIDGE * np.trace(kernel) * np.eye(len(kernel))
    weights = np.linalg.solve(regular, y_syn)
    cross = f_real @ f_syn.T
    prediction = cross @ weights
    out = 2 * (prediction - y_real) / prediction.size
    # Adjoint of the solve; the ridge is a constant.
    adjoint = np.linalg.solve(regular, cross.T @ out)
    in_kernel = -adjoint @ weights.T
    in_features = weights @ (out.T @ f_real) + (in_kernel + in_kernel.T) @ f_syn
    return prediction, (in_features, adjoint), float(np.linalg.cond(regular))


def _loss(predict: Callable[..., jax.Array], f: jax.Array, y: jax.Array, x: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(predict(f, y, x, RIDGE) - target))


def _relaxed(precision: Any, f_syn: jax.Array, y_syn: jax.Array, f_real: jax.Array, ridge: float) -> jax.Array:
    """Compute the same with kernel, factor and solve at the highest precision, and the other products in another."""
    with jax.default_matmul_precision("highest"):
        weights = krr._dual_weights(f_syn, y_syn, ridge)
    product = functools.partial(jnp.matmul, precision=precision)
    return product(f_real, product(f_syn.T, weights))


def _one_pass(f_syn: jax.Array, y_syn: jax.Array, f_real: jax.Array, ridge: float) -> jax.Array:
    """Compute the same with every product in the backend's fastest precision for float32."""
    with jax.default_matmul_precision("default"):
        kernel = jnp.matmul(f_syn, f_syn.T)
        regular = kernel + ridge * lax.stop_gradient(jnp.trace(kernel)) * jnp.eye(len(kernel))
        return jnp.matmul(f_real, jnp.matmul(f_syn.T, jnp.linalg.solve(regular, y_syn)))


def _relative(found: jax.Array, exact: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact))


def _seconds(function: Callable[..., Any], arrays: list[jax.Array]) -> float:
    jax.block_until_ready(function(*arrays))
    began = time.perf_counter()
    jax.block_until_ready([function(*arrays) for _ in range(CALLS)])
    return (time.perf_counter() - began) / CALLS


def table(report: dict[str, list[dict[str, Any]]]) -> str:
    """Format the rows as three tables."""
    head = ["regression", "ms", "ms with gradient", "error", "error of the gradient", "condition number"]
    lines = [
        [
            row["regression"],
            tables.figures(1e3 * row["seconds"]),
            tables.figures(1e3 * row["gradient_seconds"]),
            *(f"{row[name]:.1e}" for name in ("error", "gradient_error", "condition")),
        ]
        for row in report["regression"]
    ]
    products = [
        [row["precision"], tables.figures(1e3 * row["seconds"]), f"{row['error']:.1e}"] for row in report["products"]
    ]
    solves = [
        [str(row["systems"]), *(tables.figures(1e3 * row[name]) for name in ("factor_seconds", "solve_seconds"))]
        for row in report["solves"]
    ]
    return "\n\n".join(
        [
            tables.markdown(head, lines),
            tables.markdown(["the kernel's product", "ms", "error"], products),
            tables.markdown(["systems in a batch", "ms per factor", "ms per solve"], solves),
        ]
    )
