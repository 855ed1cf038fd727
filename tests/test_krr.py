"""Kernel ridge regression against NumPy in float64, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdd_jax import krr

predict = jax.jit(krr.predict)


def problem(seed=0, count=6, width=9, dim=3, real=5, scale=1.0):
    generator = np.random.default_rng(seed)
    f_syn, f_real = (scale * generator.normal(size=(n, width)) for n in (count, real))
    return f_syn, generator.normal(size=(count, dim)), f_real


def reference(f_syn, y_syn, f_real, ridge_scale=1e-6, ridge=None):
    """The formula as it is written, in float64."""
    kernel = f_syn @ f_syn.T
    ridge = ridge_scale * np.trace(kernel) if ridge is None else ridge
    return f_real @ f_syn.T @ np.linalg.solve(kernel + ridge * np.eye(len(kernel)), y_syn)


def naive(f_syn, y_syn, f_real, ridge_scale):
    kernel = f_syn @ f_syn.T
    ridge = jax.lax.stop_gradient(ridge_scale * jnp.trace(kernel))
    return f_real @ f_syn.T @ jnp.linalg.solve(kernel + ridge * jnp.eye(len(kernel)), y_syn)


@settings(deadline=None, max_examples=20)
@given(
    shape=st.sampled_from(((1, 20, 4), (4, 20, 1), (11, 3, 4))),
    scale=st.floats(1e-3, 1e3),
    ridge_scale=st.sampled_from((1e-6, 1e-2)),
)
def test_equals_numpy(shape, scale, ridge_scale):
    """More images than features (a singular kernel) and fewer; any scale."""
    arrays = problem(0, *shape, scale=scale)
    expected = reference(*arrays, ridge_scale)
    with jax.enable_x64(True):
        found = predict(*(jnp.asarray(array) for array in arrays), ridge_scale)
        assert found.dtype == jnp.float64
        assert relative(found, expected) < 1e-8
    single = predict(*(jnp.asarray(array, jnp.float32) for array in arrays), ridge_scale)
    assert single.dtype == jnp.float32
    assert relative(single, expected) < 5e-2


@pytest.mark.parametrize("dtypes", [("bfloat16",) * 3, ("float16",) * 3, ("bfloat16", "float32", "bfloat16")])
def test_half_precision_is_solved_in_float32(dtypes):
    halves = [jnp.asarray(array, dtype) for array, dtype in zip(problem(), dtypes, strict=True)]
    found = predict(*halves)
    assert found.dtype == jnp.float32
    assert relative(found, reference(*(np.asarray(half, np.float64) for half in halves))) < 1e-4


def test_no_gradient_through_the_ridge(x64):
    """Against differences of the expression whose ridge is held fixed, at a ridge large enough to show."""
    f_syn, y_syn, f_real = problem()
    ridge_scale, direction = 1.0, np.random.default_rng(9).normal(size=f_syn.shape)
    fixed = ridge_scale * np.trace(f_syn @ f_syn.T)

    def slope(**ridge):
        ahead, behind = (reference(f_syn + h * direction, y_syn, f_real, ridge_scale, **ridge) for h in (1e-5, -1e-5))
        return np.sum(ahead - behind) / 2e-5

    gradient = jax.jit(jax.grad(lambda f: krr.predict(f, y_syn, f_real, ridge_scale).sum()))(f_syn)
    found = float(jnp.vdot(gradient, direction))
    np.testing.assert_allclose(found, slope(ridge=fixed), rtol=1e-6)
    assert abs(found - slope()) > 1e-4 * abs(found)


@pytest.mark.parametrize("count", [6, 14])
def test_gradients_equal_the_naive_formula(x64, count):
    arrays = tuple(jnp.asarray(array) for array in problem(count=count))
    weights = jnp.asarray(np.random.default_rng(5).normal(size=(5, 3)))

    def gradients(predict):
        def value(*arrays):
            return jnp.vdot(predict(*arrays, 1e-4), weights)

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))(*arrays)

    for found, expected in zip(*map(jax.tree.leaves, map(gradients, (krr.predict, naive))), strict=True):
        assert relative(found, expected) < 1e-8


def test_vmap():
    batches = [problem(seed) for seed in range(3)]
    stacked = [jnp.asarray(np.stack(arrays), jnp.float32) for arrays in zip(*batches, strict=True)]
    found = jax.jit(jax.vmap(krr.predict))(*stacked)
    for row, arrays in zip(found, batches, strict=True):
        assert relative(row, reference(*arrays)) < 1e-3


@pytest.mark.parametrize("shapes", [((3, 4), (2, 2), (5, 4)), ((3, 4), (3, 2), (5, 6)), ((3, 4), (3,), (5, 4))])
def test_wrong_shapes_are_refused(shapes):
    with pytest.raises(AssertionError):
        krr.predict(*map(jnp.ones, shapes))
