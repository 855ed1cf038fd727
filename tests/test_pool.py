"""The pool of inner models: ages, drawing, training, renewal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDTHS, pairs

from ssdd_jax import inner, pool
from ssdd_jax.models import conv
from ssdd_jax.runtime import signs

SETTINGS = pool.Settings(size=4, steps=6, vectorize=1, widths=WIDTHS)
init = jax.jit(pool.init, static_argnames="settings")
step = jax.jit(pool.step, static_argnames="settings")
inner_step = jax.jit(inner.step)
close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def start():
    return init(jax.random.key(0), *pairs(), settings=SETTINGS)


def model(models, index):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], models)


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def test_ages_are_spread_over_1_to_z_minus_1(start):
    ages = [np.asarray(start.ages)]
    ages += [np.asarray(init(jax.random.key(k), *pairs(), settings=SETTINGS).ages) for k in range(1, 9)]
    assert all(found.shape == (4,) and found.dtype == np.int32 for found in ages)
    assert set(np.concatenate(ages)) == {1, 2, 3, 4, 5}


@pytest.mark.medium
@pytest.mark.parametrize("vectorize", [1, 2])
def test_models_that_are_counted_are_the_same(vectorize):
    settings = SETTINGS._replace(vectorize=vectorize)
    with signs.counting() as counted:
        told = jax.block_until_ready(init(jax.random.key(0), *pairs(), settings=settings._replace(counted=1)))
        jax.effects_barrier()
    assert counted.done == 4 and counted.text == "4 of 4 models trained"
    with signs.counting() as counted:
        silent = init(jax.random.key(0), *pairs(), settings=settings._replace(counted=10**9))
    assert equal(told.models, silent.models) and not counted.text


@pytest.mark.medium
def test_models_are_as_old_as_they_say():
    """With the rate 0 the running mean is `(1 - 0.9**age)` of the batch's, which the weights tell."""
    x, y = pairs()
    settings = SETTINGS._replace(size=3, inner=inner.Settings(learning_rate=0.0))
    made = init(jax.random.key(1), x, y, settings=settings)
    assert len(set(made.ages.tolist())) > 1
    for index, age in enumerate(made.ages):
        variables = model(made.models.variables, index)
        layer = variables["params"]["conv0"]
        batch_mean = np.asarray(jax.jit(conv)(x, layer["kernel"])).mean((0, 1, 2)) + layer["bias"]
        share = variables["batch_stats"]["bn0"]["mean"] / batch_mean
        np.testing.assert_allclose(share, 1 - 0.9 ** int(age), rtol=1e-2)


def test_models_differ_and_the_key_decides(start):
    assert not equal(model(start.models, 0), model(start.models, 1))
    raw = [
        p._replace(key=jax.random.key_data(p.key))
        for p in (start, init(jax.random.key(0), *pairs(), settings=SETTINGS))
    ]
    assert equal(*raw)
    assert not equal(start.models, init(jax.random.key(5), *pairs(), settings=SETTINGS).models)


@pytest.mark.medium
def test_only_drawn_models_are_trained_by_one_inner_step(start):
    x, y = pairs(7)
    young = start._replace(ages=jnp.array([1, 5, 2, 3], jnp.int32))
    after = step(young, jnp.array([2, 0, 3]), x, y, settings=SETTINGS)
    np.testing.assert_array_equal(after.ages, [2, 5, 3, 4])
    for index in range(4):
        before, now = model(young.models, index), model(after.models, index)
        if index in (0, 2, 3):
            jax.tree.map(close, now, inner_step(before, x, y)[0])
            assert not equal(before, now)
        else:
            assert equal(before, now)


def test_old_models_are_renewed(start):
    """Models 1 and 3 are at age Z: fresh and different weights, zero momentum; model 0 is trained as ever."""
    x, y = pairs()
    old = start._replace(ages=jnp.array([1, 6, 5, 6], jnp.int32))
    after = step(old, jnp.array([0, 1, 3]), x, y, settings=SETTINGS)
    np.testing.assert_array_equal(after.ages, [2, 0, 5, 0])
    jax.tree.map(close, model(after.models, 0), inner_step(model(old.models, 0), x, y)[0])
    assert equal(model(old.models, 2), model(after.models, 2))
    kernels = after.models.variables["params"]["conv1"]["kernel"]
    bound = (9 * WIDTHS[0]) ** -0.5
    for index in (1, 3):
        before, now = model(old.models, index), model(after.models, index)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(now.opt_state))
        assert any(np.any(leaf) for leaf in jax.tree.leaves(before.opt_state))
        np.testing.assert_array_equal(now.variables["batch_stats"]["bn0"]["mean"], 0.0)
        np.testing.assert_array_equal(now.variables["batch_stats"]["bn0"]["var"], 1.0)
        assert not np.any(kernels[index] == before.variables["params"]["conv1"]["kernel"])
        assert 0.9 * bound < np.abs(kernels[index]).max() <= bound
    assert not np.any(kernels[1] == kernels[3])
    later = step(old._replace(key=after.key), jnp.array([0, 1, 3]), x, y, settings=SETTINGS)
    assert not np.any(later.models.variables["params"]["conv1"]["kernel"][1] == kernels[1])


@pytest.mark.medium
def test_vectorize_changes_rounding_only(start):
    x, y = pairs()
    indices, settings = jnp.array([0, 1, 3]), SETTINGS._replace(vectorize=4)
    # Ages that are not in ascending order: models are grown side by side in that of their ages.
    made, one_by_one = (init(jax.random.key(5), x, y, settings=s) for s in (settings, SETTINGS))
    assert (np.diff(made.ages) < 0).any()
    found, expected = (step(start, indices, x, y, settings=s) for s in (settings, SETTINGS))
    for one, other in ((made, one_by_one), (found, expected)):
        np.testing.assert_array_equal(one.ages, other.ages)
        jax.tree.map(close, one.models, other.models)


@pytest.mark.slow
def test_models_with_instance_norm():
    """As trained one by one, without running statistics; renewed ones are of the same kind."""
    x, y = pairs()
    settings = SETTINGS._replace(size=2, steps=3, norm="instance")
    made = init(jax.random.key(0), x, y, settings=settings)
    assert made.models.variables["batch_stats"] == {} and "in0" in made.models.variables["params"]
    after = step(made._replace(ages=jnp.array([1, 3], jnp.int32)), jnp.arange(2), x, y, settings=settings)
    jax.tree.map(close, model(after.models, 0), inner_step(model(made.models, 0), x, y)[0])
    np.testing.assert_array_equal(after.ages, [2, 0])
    np.testing.assert_array_equal(after.models.variables["params"]["in0"]["scale"][1], 1.0)
    assert np.any(made.models.variables["params"]["in0"]["scale"][1] != 1.0)


def test_draw():
    draw = jax.jit(pool.draw, static_argnums=(1, 2))
    draws = np.stack([draw(jax.random.key(k), 5, 2) for k in range(40)])
    assert draws.shape == (40, 2) and set(draws.ravel()) == {0, 1, 2, 3, 4}
    assert np.all(draws[:, 0] != draws[:, 1])
    np.testing.assert_array_equal(draw(jax.random.key(0), 3, 3), [0, 1, 2])
