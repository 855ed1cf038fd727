"""Agreement with the published PyTorch code of KRR-ST: outer loss, its gradients, three inner steps,
and all of them in three steps of the method."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import relative, small_config

from ssdd_jax import inner, krr, methods, outer

# Largest relative distance (Euclidean) allowed. The kernel's condition number is 1e6: that is where float32's errors
# come from.
ALLOWED = {
    "float64": {"loss": 1e-8, "prediction": 1e-8, "grad_x": 1e-8, "grad_y": 1e-8, "inner": 1e-8},
    "float32": {"loss": 2e-4, "prediction": 4e-3, "grad_x": 6e-3, "grad_y": 8e-3, "inner": 5e-6},
}


@pytest.fixture(params=["float64", pytest.param("float32", marks=pytest.mark.slow)])
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


@pytest.mark.medium
def test_outer_loss_and_gradients(arrays, dtype, fixture_arrays):
    expected, model = fixture_arrays("krr_st"), variables(arrays, "before")

    @jax.jit
    def outer_loss(pairs):
        return jax.value_and_grad(outer.loss)(
            pairs, model, arrays["x_real"], arrays["y_real"], decode=lambda pairs: pairs
        )

    value, (grad_x, grad_y) = outer_loss((arrays["x_syn"], arrays["y_syn"]))
    found = {"loss": value, "grad_x": grad_x, "grad_y": grad_y}
    assert all(array.dtype == dtype for array in found.values())
    check({name: relative(array, expected[f"outer_{name}"]) for name, array in found.items()}, dtype)


@pytest.mark.medium
def test_prediction(arrays, dtype, fixture_arrays):
    model = variables(arrays, "before")

    @jax.jit
    def features(x):
        found = inner.features(model, x)
        return jnp.concatenate([found, jnp.ones((len(x), 1), dtype)], 1)

    f_syn, f_real = features(arrays["x_syn"]), features(arrays["x_real"])
    prediction = jax.jit(krr.predict)(f_syn, arrays["y_syn"], f_real)
    check({"prediction": relative(prediction, fixture_arrays("krr_st")["outer_prediction"])}, dtype)
    ridge = 1e-6 * np.square(np.asarray(f_syn, np.float64)).sum()
    np.testing.assert_allclose(ridge, fixture_arrays("krr_st")["outer_lambda"], rtol=1e-5)


@pytest.mark.medium
def test_three_inner_steps(arrays, dtype, fixture_arrays):
    """Losses, every parameter and the running statistics, whose variance is PyTorch's unbiased one."""
    before = variables(arrays, "before")
    state = inner.State(before, inner.optimizer(inner.Settings()).init(before["params"]))
    state, losses = jax.jit(inner.train, static_argnums=3)(state, arrays["x_syn"], arrays["y_syn"], 3)
    check({"inner": relative(losses, fixture_arrays("krr_st")["inner_losses"])}, dtype)
    after = variables(fixture_arrays("krr_st"), "after3")
    distances = jax.tree.map(relative, state.variables, after)
    check({"inner": max(jax.tree.leaves(distances))}, dtype)


class Source(NamedTuple):
    """The fixture's arrays as the data that the method distils; its real images are network inputs already."""

    images: jax.Array
    targets: jax.Array
    samples: jax.Array
    view_targets: jax.Array
    preprocessing: object


class AsTheyAre(NamedTuple):
    def images(self, images):
        return images


@pytest.mark.slow
def test_three_steps_of_the_method(arrays, dtype, fixture_arrays, monkeypatch):
    """`methods.krr_st` from the published pairs, with a pool of the one published model and every real image in turn.

    At the rate 0 the pairs stay, so that the pool's model takes the three published inner steps; AdamW's first moment
    is then a tenth of the published gradient.
    """
    settings = small_config("krr_st")
    settings.storage.N, settings.student.widths = 12, (8, 16, 32)
    settings.pool.size, settings.pool.steps, settings.distill.batch_size = 1, 9, 20
    settings.distill.learning_rate = 0.0
    method = methods.make(settings, methods.Problem((16, 16, 3), 24, images=32))
    # The method starts from the first 12 images of the data set, and its batches are the other 20.
    source = Source(
        images=jnp.concatenate([arrays["x_syn"], arrays["x_real"]]),
        targets=jnp.concatenate([arrays["y_syn"], arrays["y_real"]]),
        samples=jnp.arange(12),
        view_targets=arrays["y_syn"][None],
        preprocessing=AsTheyAre(),
    )
    with jax.numpy_dtype_promotion("standard"):  # a network's shapes are found in float32
        state = jax.jit(method.init)(jax.random.key(0), source)
    before = variables(arrays, "before")
    model = inner.State(before, inner.optimizer(inner.Settings()).init(before["params"]))
    state = state._replace(pool=state.pool._replace(models=jax.tree.map(lambda leaf: leaf[None], model)))
    ages, step = state.pool.ages, jax.jit(method.step)
    monkeypatch.setattr(jax.random, "randint", lambda *_: jnp.arange(12, 32))
    expected, found = fixture_arrays("krr_st"), {}
    for number in range(3):
        with jax.numpy_dtype_promotion("standard"):
            state, info = step(state, source)
        if not number:
            moments = optax.tree_utils.tree_get(state.outer.opt_state, "mu")
            found = {"loss": relative(info.loss, expected["outer_loss"])}
            for name, moment in zip(("grad_x", "grad_y"), moments, strict=True):
                found[name] = relative(np.asarray(moment) / 0.1, expected[f"outer_{name}"])
    trained = jax.tree.map(lambda leaf: leaf[0], state.pool.models.variables)
    found["inner"] = max(jax.tree.leaves(jax.tree.map(relative, trained, variables(expected, "after3"))))
    check(found, dtype)
    np.testing.assert_array_equal(state.pool.ages, ages + 3)
    for now, was in zip(state.outer.params, ("x_syn", "y_syn"), strict=True):
        assert now.dtype == dtype
        np.testing.assert_array_equal(now, arrays[was])
