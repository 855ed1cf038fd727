"""The outer step on toy data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import network, pairs, params

from ssdd_jax import decoder, outer

SETTINGS = outer.Settings(learning_rate=1e-2, steps=20)
step = jax.jit(outer.step, static_argnames=("settings", "decode"))
value_and_grad = jax.jit(jax.value_and_grad(outer.loss))
close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def batch():
    """Two models and six real images."""
    models = [network(seed).variables for seed in (0, 1)]
    return outer.Batch(jax.tree.map(lambda *leaves: jnp.stack(leaves), *models), *pairs(3, 6))


@pytest.fixture(scope="module")
def start():
    return params(M=4, views=("rot0", "rot90"))


def one_model(batch, index):
    return jax.tree.map(lambda leaf: leaf[index], batch.models)


@pytest.mark.medium
@pytest.mark.parametrize("vectorize", [1, 2])
def test_step_is_adamw_on_the_mean_gradient(batch, start, vectorize):
    settings = SETTINGS._replace(vectorize=vectorize)
    after, info = step(outer.init(start, settings=settings), batch, settings=settings)
    values, gradients = zip(
        *(value_and_grad(start, one_model(batch, k), batch.x_real, batch.y_real) for k in (0, 1)), strict=True
    )
    gradient = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
    np.testing.assert_allclose(info.loss, np.mean(values), rtol=1e-4)
    squares = [np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)]
    np.testing.assert_allclose(info.gradient_norm, np.sqrt(sum(squares)), rtol=1e-3)
    moments = after.opt_state[0].mu
    jax.tree.map(lambda m, g: close(m, 0.1 * np.asarray(g)), moments, gradient)
    # Adam's first step is the rate times the sign, where the gradient is not about zero.
    for name in ("image_bases", "feature_coefficients"):
        moved = np.asarray(getattr(after.params, name) - getattr(start, name))
        slope = np.asarray(getattr(gradient, name))
        clear = np.abs(slope) > 1e-3
        assert clear.mean() > 0.5
        np.testing.assert_allclose(moved[clear], -1e-2 * np.sign(slope[clear]), rtol=2e-2)


def test_loss_decreases(batch, start):
    state, losses = outer.init(start, settings=SETTINGS), []
    for _ in range(20):
        state, info = step(state, batch, settings=SETTINGS)
        losses.append(float(info.loss))
    assert np.mean(losses[-3:]) < 0.7 * losses[0]


def test_weights_are_held_fixed(batch, start):
    model = one_model(batch, 0)
    gradient = jax.jit(jax.grad(lambda model: outer.loss(start, model, batch.x_real, batch.y_real)))(model)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.medium
@pytest.mark.parametrize("masked", [True, False])
def test_weight_decay_leaves_the_means_alone(batch, start, masked):
    """With the mask of what is learned; without one they would move, which is what makes this a test."""
    settings = SETTINGS._replace(weight_decay=0.5)
    mask = decoder.learned(start) if masked else None
    decaying = jax.jit(functools.partial(outer.step, settings=settings, mask=mask))
    after, _ = decaying(outer.init(start, settings=settings, mask=mask), batch)
    for name in ("image_mean", "feature_mean"):
        assert np.array_equal(getattr(after.params, name), getattr(start, name)) == masked
    plain, _ = step(outer.init(start, settings=SETTINGS), batch, settings=SETTINGS)
    difference = np.asarray(plain.params.image_bases - after.params.image_bases)
    np.testing.assert_allclose(difference, 1e-2 * 0.5 * np.asarray(start.image_bases), rtol=1e-2, atol=1e-5)


def test_rate_decays_linearly():
    """A constant gradient makes Adam's steps the rate itself."""
    optimizer = outer.optimizer(outer.Settings(learning_rate=1.0, steps=10))
    weights, moved = jnp.zeros(()), []
    opt_state = optimizer.init(weights)
    for _ in range(12):
        with jax.numpy_dtype_promotion("standard"):
            updated, opt_state = optimizer.update(jnp.ones(()), opt_state, weights)
        moved.append(-float(updated))
    expected = [1 - (1 - outer.FINAL_SHARE) * k / 10 for k in range(10)] + [outer.FINAL_SHARE] * 2
    np.testing.assert_allclose(moved, expected, rtol=1e-3)


def test_wrong_targets_are_refused(batch, start):
    wrong = batch._replace(y_real=batch.y_real[:, :-1])
    with pytest.raises(AssertionError):
        jax.eval_shape(outer.step, outer.init(start), wrong)
