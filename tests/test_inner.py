"""Training an inner model. (That it is PyTorch's SGD and batch norm: `test_published`.)"""

import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import WIDTHS, network, pairs
from tiny_runs import ROOT, TIMEOUT

from ssdd_jax import inner
from ssdd_jax.models import convnet

train = jax.jit(inner.train, static_argnums=3, static_argnames="settings")
step = jax.jit(inner.step, static_argnames="settings")
gradient = jax.jit(jax.grad(inner.loss, has_aux=True))


@pytest.mark.medium
def test_train_is_so_many_steps():
    state, (x, y) = network(0), pairs()
    trained, losses = train(state, x, y, 4)
    assert losses.shape == (4,)
    for expected in losses:
        state, loss = step(state, x, y)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), trained, state)


def test_same_key_same_bits():
    one, same, other = (train(network(k), *pairs(), 4)[1] for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_loss_decreases():
    state, losses = network(0), []
    for _ in range(5):
        state, some = train(state, *pairs(), 4)
        losses += list(np.asarray(some))
    assert losses[-1] < 0.5 * losses[0]


def test_loss_is_the_mean_over_all_entries():
    """By hand: the network in train mode, squared errors averaged over images and numbers."""
    state, (x, y) = network(0), pairs()
    value, stats = jax.jit(inner.loss)(state.variables["params"], state.variables["batch_stats"], x, y)
    network_ = convnet.from_variables(state.variables)
    apply = jax.jit(lambda variables: network_.apply(variables, x, train=True, mutable=["batch_stats"])[0])
    _, prediction = apply(state.variables)
    np.testing.assert_allclose(value, np.mean((np.asarray(prediction) - np.asarray(y)) ** 2), rtol=1e-5)
    assert not np.array_equal(stats["bn0"]["mean"], state.variables["batch_stats"]["bn0"]["mean"])


@pytest.mark.medium
@pytest.mark.parametrize(
    ("settings", "decay", "momentum"),
    [(inner.Settings(0.05, 0.0, 0.01), 0.01, 0.0), (inner.Settings(0.05, 0.7, 0.0), 0.0, 0.7)],
)
def test_settings_mean_what_they_say(settings, decay, momentum):
    """Two steps by hand: decay added to every gradient, then momentum, then the rate."""
    state = network(1)
    state = inner.State(state.variables, inner.optimizer(settings).init(state.variables["params"]))
    x, y = pairs()
    velocity = jax.tree.map(np.zeros_like, state.variables["params"])
    for _ in range(2):
        params, stats = (jax.tree.map(np.asarray, state.variables[name]) for name in ("params", "batch_stats"))
        slope = jax.tree.map(np.asarray, gradient(params, stats, x, y)[0])
        velocity = jax.tree.map(lambda v, g, p: momentum * v + g + decay * p, velocity, slope, params)
        expected = jax.tree.map(lambda p, v: p - 0.05 * v, params, velocity)
        state, _ = step(state, x, y, settings=settings)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
        jax.tree.map(close, state.variables["params"], expected)


def test_eval_mode_treats_images_one_by_one():
    state, (x, _) = train(network(0), *pairs(), 4)[0], pairs()
    features = jax.jit(inner.features)
    together = np.asarray(features(state.variables, x))
    assert together.shape == (len(x), 2 * 2 * WIDTHS[-1])
    np.testing.assert_allclose(features(state.variables, np.asarray(x)[3:5]), together[3:5], rtol=1e-4, atol=1e-5)
    linear = jax.tree.map(np.asarray, state.variables["params"]["fc"])
    expected = together @ linear["kernel"] + linear["bias"]
    np.testing.assert_allclose(jax.jit(inner.predict)(state.variables, x), expected, rtol=1e-4, atol=1e-5)


def test_wrong_shapes_are_refused():
    x, y = pairs()
    state = network(0)
    for wrong in (y[:-1], y[:, :-1], y[:, 0]):
        with pytest.raises(AssertionError):
            jax.eval_shape(inner.step, state, x, wrong)


PROGRAM = """
import jax
from ssdd_jax import inner
print(jax.jit(lambda key: inner.init(key, (8, 8, 3), 6, widths=(4, 8))).lower(jax.random.key(0)).as_text())
"""


@pytest.mark.slow
def test_the_program_is_the_same_in_every_process():
    """Otherwise a second run would not find it among the compiled programs of the first."""
    texts = set()
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )
        assert done.returncode == 0, done.stderr
        texts.add(done.stdout)
    assert len(texts) == 1
