"""Outer steps on some of the pairs, drawn anew in each."""

import jax
import numpy as np
import pytest
from helpers import make_run, prepare, small_config

from ssdd_jax import inner, outer
from ssdd_jax.methods import bilevel

pytestmark = pytest.mark.medium

PAIRS = 6


class Made:
    """KRR-ST, whose parameters are the pairs themselves, with `pairs_per_step`."""

    def __init__(self, folder, count):
        self.config = small_config("krr_st")
        self.config.distill.weight_decay = 0.0
        self.config.distill.pairs_per_step = count
        run = prepare(make_run(folder, self.config))
        self.method, self.data = run.method, run.source()
        self.init, self.step = jax.jit(self.method.init), jax.jit(self.method.step)

    def start(self):
        return self.init(jax.random.key(0), self.data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made[n]`: with n pairs a step."""
    return {count: Made(tmp_path_factory.mktemp("run"), count) for count in (0, 4, PAIRS)}


def moved(before, after):
    """The indices of the pairs that a step has changed."""
    one, other = (np.asarray(state.outer.params[0]) for state in (before, after))
    return set(np.flatnonzero((one != other).any((1, 2, 3))).tolist())


def test_a_step_changes_the_pairs_that_it_draws(made):
    """AdamW's first step moves what has a gradient, and without decay nothing else."""
    start = made[4].start()
    drawn = []
    for number in range(4):
        state = start._replace(step=start.step + number)
        after, _ = made[4].step(state, made[4].data)
        drawn.append(moved(state, after))
        assert len(drawn[-1]) == 4
        assert moved(state, made[4].step(state, made[4].data)[0]) == drawn[-1]
    assert len(set(map(frozenset, drawn))) > 1


def test_loss_and_model_are_those_of_the_drawn_pairs(made):
    """The loss is that of these pairs alone, and the model drawn is trained on them after their change."""
    start, of = made[4].start(), bilevel.outer_settings(made[4].config)
    after, info = made[4].step(start, made[4].data)
    chosen = sorted(moved(start, after))
    x, y = (array[np.array(chosen)] for array in start.outer.params)
    trained = [index for index in range(2) if after.pool.ages[index] != start.pool.ages[index]]
    assert len(trained) == 1
    model = jax.tree.map(lambda leaf: leaf[trained[0]], start.pool.models)
    key_batch = jax.random.split(jax.random.fold_in(start.key, 0))[1]
    batch = jax.random.randint(key_batch, (8,), 0, len(made[4].data.images))
    real = made[4].data.preprocessing.images(made[4].data.images[batch]), made[4].data.targets[batch]
    expected = jax.jit(outer.loss, static_argnames=("decode", "ridge_scale"))(
        (x, y), model.variables, *real, decode=tuple, ridge_scale=of.ridge_scale
    )
    np.testing.assert_allclose(info.loss, expected, rtol=1e-3)
    new = [array[np.array(chosen)] for array in after.outer.params]
    settings = bilevel.pool_settings(made[4].config).inner
    again, _ = jax.jit(inner.step, static_argnames="settings")(model, *new, settings=settings)
    found = jax.tree.map(lambda leaf: leaf[trained[0]], after.pool.models)
    for one, other in zip(*map(jax.tree.leaves, (found, again)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_as_many_as_there_are_is_all(made):
    states = []
    for count in (0, PAIRS):
        start = made[count].start()
        states.append((start, made[count].step(start, made[count].data)[0]))
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        if not jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(one, other)


def test_the_start_of_the_pool_draws_too(made):
    """Models of the same keys and ages, trained on some of the pairs instead of all."""
    every, some = made[0].start().pool, made[4].start().pool
    np.testing.assert_array_equal(every.ages, some.ages)
    statistics = [pool.models.variables["batch_stats"]["bn0"]["mean"] for pool in (every, some)]
    assert all(np.isfinite(values).all() for values in statistics)
    assert not np.allclose(*statistics, rtol=1e-3)


def test_views_are_drawn_apart(tmp_path):
    """Boost-SSDD draws pairs, not images: a step on as many pairs as images has pairs of both views."""
    config = small_config("boost")
    config.distill.pairs_per_step = 6
    run = prepare(make_run(tmp_path, config))
    method, data = run.method, run.source()
    before = jax.jit(method.init)(jax.random.key(0), data)
    after, _ = jax.jit(method.step)(before, data)
    was, now = (np.asarray(state.outer.params.feature_coefficients) for state in (before, after))
    # Coefficients (views, M, V) belong to a single pair each; decay is told by its size from AdamW's first step.
    jump = np.abs(now - was * (1 - config.distill.learning_rate * config.distill.weight_decay)).max(-1)
    assert (jump > 0.5 * config.distill.learning_rate).sum() == 6
    assert (jump > 0.5 * config.distill.learning_rate).any(1).all()
