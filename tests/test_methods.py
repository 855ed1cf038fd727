"""The contract that every distillation method keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CHANNELS, DIM, SIZE, jit, problem, small_config, source

from ssdd_jax import distilled, methods
from ssdd_jax.errors import UserError


@functools.cache
def make(name):
    """Config, method, data, and `init` and `step`, compiled once."""
    config = small_config(name)
    method = methods.make(config, problem())
    data = source(method)
    return config, method, data, jit(method.init), jit(method.step, donate_argnums=0)


@pytest.fixture(scope="module", params=methods.METHODS)
def made(request):
    return make(request.param)


def two_steps(made, seed):
    """The state after two steps, and the infos."""
    _, _, data, init, step = made
    state = init(jax.random.key(seed), data)
    infos = []
    for _ in range(2):
        state, info = step(state, data)
        infos.append(info)
    return state, infos


@pytest.fixture(scope="module")
def trained(made):
    return two_steps(made, 0)


def bits(tree):
    """Leaves as bytes, PRNG keys included."""
    leaves = jax.tree.leaves(tree)
    raw = (jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf for leaf in leaves)
    return [np.asarray(leaf).tobytes() for leaf in raw]


def test_what_it_declares(made):
    config, method, *_ = made
    assert isinstance(method, methods.Method)
    assert method.steps >= 0 and isinstance(method.steps, int)
    assert 1 <= method.samples <= problem().images
    assert method.views[0] == "rot0" and set(method.views) <= set(config.views)


def test_state_and_info(made, trained):
    _, _, data, init, step = made
    state, infos = trained
    assert state.step.shape == () and state.step.dtype == jnp.int32 and int(state.step) == 2
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
    for info in infos:
        assert hasattr(info, "_asdict") and all(np.shape(value) == () for value in info._asdict().values())
        assert np.isfinite(info.loss)
    # One structure throughout: a state that is loaded from a checkpoint is like a fresh one.
    fresh = jax.eval_shape(init, jax.random.key(0), data)
    after = jax.eval_shape(step, fresh, data)[0]
    assert jax.tree.structure(fresh) == jax.tree.structure(after)
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (fresh, after))
    assert like[0] == like[1]


def test_donated_state_is_gone(made):
    """Every buffer of the old state is used for the new one, or at least given back."""
    _, _, data, init, step = made
    state = init(jax.random.key(3), data)
    step(state, data)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state) if leaf.size > 1)


def test_same_key_same_bits(made, trained):
    assert bits(two_steps(made, 0)) == bits(trained)
    other, _ = two_steps(made, 1)
    assert bits(other) != bits(trained[0])


def test_export(made, trained, tmp_path):
    """Within the budget, bit-identical after a round trip, and pairs of the shapes that networks are trained on."""
    config, method, data, *_ = made
    state, _ = trained
    export = method.export(jax.random.key(5), state, data)
    assert isinstance(export, distilled.DistilledSet)
    assert 0 < export.numbers_stored() <= config.storage.N * (SIZE * SIZE * CHANNELS + DIM)
    images, targets = export.pairs()
    assert images.shape == (len(targets), SIZE, SIZE, CHANNELS) and targets.shape[1:] == (DIM,)
    assert images.dtype == targets.dtype == jnp.float32
    assert np.isfinite(images).all() and np.isfinite(targets).all()
    assert 1 <= len(export.images()) <= len(images)
    export.save(tmp_path)
    loaded = distilled.load(tmp_path)
    assert bits(dict(loaded.arrays)) == bits(dict(export.arrays))
    assert bits(loaded.pairs()) == bits(export.pairs())
    assert loaded.numbers_stored() == export.numbers_stored()
    again = method.export(jax.random.key(5), state, data)
    assert bits(dict(again.arrays)) == bits(dict(export.arrays))


def test_boost_learns_the_bases_and_leaves_the_means():
    """Bases and coefficients move, the means do not, whatever the weight decay."""
    config, _, data, init, step = make("boost")
    assert config.distill.weight_decay > 0
    start = init(jax.random.key(0), data)
    before, ages = jax.tree.map(np.array, (start.outer.params, start.pool.ages))
    after, _ = step(start, data)
    for name in ("image_bases", "image_coefficients", "feature_bases", "feature_coefficients"):
        assert not np.array_equal(getattr(before, name), getattr(after.outer.params, name))
    for name in ("image_mean", "feature_mean"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after.outer.params, name))
    assert int((after.pool.ages != ages).sum()) == config.pool.models_per_step == 1


def test_too_large_a_budget_is_refused():
    config = small_config("boost")
    config.storage.N = 41
    with pytest.raises(UserError, match="storage.N=41 asks for more images than the 40 there are"):
        methods.make(config, problem())
