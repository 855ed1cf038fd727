"""Agreement with the published PyTorch code of KRR-ST: outer loss, its gradients, three inner steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit, relative

from ssdd_jax import inner, krr, outer

# Largest relative distance (Euclidean) allowed. The kernel's condition number is 1e6: that is where float32's errors
# come from.
ALLOWED = {
    "float64": {"loss": 1e-8, "prediction": 1e-8, "grad_x": 1e-8, "grad_y": 1e-8, "inner": 1e-8},
    "float32": {"loss": 2e-4, "prediction": 4e-3, "grad_x": 6e-3, "grad_y": 8e-3, "inner": 5e-6},
}


@pytest.fixture(params=ALLOWED)
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


@pytest.fixture
def arrays(fixture_arrays, dtype):
    return {name: jnp.asarray(value, dtype) for name, value in fixture_arrays("krr_st").items()}


def variables(arrays, prefix):
    """The network's variables out of the stored arrays."""
    params, stats = {}, {}
    for i in range(3):
        conv, norm = f"{prefix}_conv{i}", f"{prefix}_bn{i}"
        params[f"conv{i}"] = {"kernel": arrays[f"{conv}_kernel_hwio"], "bias": arrays[f"{conv}_bias"]}
        params[f"bn{i}"] = {name: arrays[f"{norm}_{name}"] for name in ("scale", "bias")}
        stats[f"bn{i}"] = {name: arrays[f"{norm}_{name}"] for name in ("mean", "var")}
    params["fc"] = {name: arrays[f"{prefix}_fc_{name}"] for name in ("kernel", "bias")}
    return {"params": params, "batch_stats": stats}


def check(found, dtype):
    allowed = ALLOWED[dtype.name]
    assert {name: value for name, value in found.items() if not value < allowed[name]} == {}


def test_outer_loss_and_gradients(arrays, dtype, fixture_arrays):
    expected, model = fixture_arrays("krr_st"), variables(arrays, "before")

    @jit
    def outer_loss(pairs):
        return jax.value_and_grad(outer.loss)(
            pairs, model, arrays["x_real"], arrays["y_real"], decode=lambda pairs: pairs
        )

    value, (grad_x, grad_y) = outer_loss((arrays["x_syn"], arrays["y_syn"]))
    found = {"loss": value, "grad_x": grad_x, "grad_y": grad_y}
    assert all(array.dtype == dtype for array in found.values())
    check({name: relative(array, expected[f"outer_{name}"]) for name, array in found.items()}, dtype)


def test_prediction(arrays, dtype, fixture_arrays):
    model = variables(arrays, "before")

    @jit
    def features(x):
        found = inner.features(model, x)
        return jnp.concatenate([found, jnp.ones((len(x), 1), dtype)], 1)

    f_syn, f_real = features(arrays["x_syn"]), features(arrays["x_real"])
    prediction = jit(krr.predict)(f_syn, arrays["y_syn"], f_real)
    check({"prediction": relative(prediction, fixture_arrays("krr_st")["outer_prediction"])}, dtype)
    ridge = 1e-6 * np.square(np.asarray(f_syn, np.float64)).sum()
    np.testing.assert_allclose(ridge, fixture_arrays("krr_st")["outer_lambda"], rtol=1e-5)


def test_three_inner_steps(arrays, dtype, fixture_arrays):
    """Losses, every parameter and the running statistics, whose variance is PyTorch's unbiased one."""
    before = variables(arrays, "before")
    state = inner.State(before, inner.optimizer(inner.Settings()).init(before["params"]))
    state, losses = jit(inner.train, static_argnums=3)(state, arrays["x_syn"], arrays["y_syn"], 3)
    check({"inner": relative(losses, fixture_arrays("krr_st")["inner_losses"])}, dtype)
    after = variables(fixture_arrays("krr_st"), "after3")
    distances = jax.tree.map(relative, state.variables, after)
    check({"inner": max(jax.tree.leaves(distances))}, dtype)
