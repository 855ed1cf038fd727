"""Trajectory matching. (That loss and gradients are those of the published code: `test_published_mkdt`.)"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CHANNELS, DIM, SIZE, WIDTHS, pairs
from jax import lax

from ssdd_jax import inner
from ssdd_jax.methods.mkdt import matching
from ssdd_jax.models import chunks, convolution, layers

pytestmark = pytest.mark.medium

SETTINGS = matching.Settings(3, 4, image_learning_rate=2.0, target_learning_rate=0.5, rate_learning_rate=0.01)
RATE = jnp.float32(0.1)
start_at = jax.jit(
    lambda key: inner.init(key, (SIZE, SIZE, CHANNELS), DIM, widths=WIDTHS, norm="instance").variables["params"]
)
loss = jax.jit(matching.loss)
gradient = jax.jit(jax.grad(matching.loss, argnums=(0, 1)))
step = jax.jit(matching.step, static_argnames="settings")


@pytest.fixture(scope="module")
def task():
    """Pairs, a start, a target that plain training on other pairs reached, and rows."""
    start, rows = start_at(jax.random.key(0)), matching.draw_rows(jax.random.key(1), 8, settings=SETTINGS)
    target = sgd(start, *pairs(5), rows, 0.2)
    return pairs(), start, target, rows


slope = jax.jit(jax.grad(lambda params, x, y: inner.loss(params, {}, x, y)[0]))


def sgd(student, images, targets, rows, rate):
    """Plain SGD, one step after the other."""
    for row in np.asarray(rows):
        found = slope(student, images[row], targets[row])
        student = jax.tree.map(lambda weight, change: weight - rate * change, student, found)
    return student


def squared(one, other):
    return sum(float(jnp.sum(jnp.square(a - b))) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def test_loss_by_hand(task):
    both, start, target, rows = task
    expected = squared(sgd(start, *both, rows, 0.1), target) / squared(start, target)
    np.testing.assert_allclose(loss(both, RATE, start, target, rows), expected, rtol=1e-4)


def test_loss_is_zero_on_the_experts_own_path_and_one_without_a_rate(task):
    _, start, target, rows = task
    assert loss(pairs(5), jnp.float32(0.2), start, target, rows) < 1e-8
    np.testing.assert_allclose(loss(pairs(), jnp.float32(0.0), start, target, rows), 1.0, rtol=1e-6)


@pytest.mark.slow
def test_gradients_against_differences(x64, task):
    """In float64, along a random direction of the images, the targets and the rate."""
    both, start, target, rows = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, task
    )
    point = (*both, jnp.float64(0.1))
    # Not the images' own seed: along themselves the loss does not change, which is what instance norm does.
    generator = np.random.default_rng(9)
    for part in range(3):
        direction = jnp.asarray(generator.normal(size=point[part].shape))
        moved = [
            tuple(value + sign * 1e-6 * direction if i == part else value for i, value in enumerate(point))
            for sign in (1.0, -1.0)
        ]
        ends = [float(loss((images, targets), rate, start, target, rows)) for images, targets, rate in moved]
        (images, targets), rate = gradient(both, point[2], start, target, rows)
        found = float(jnp.sum((images, targets, rate)[part] * direction))
        np.testing.assert_allclose(found, (ends[0] - ends[1]) / 2e-6, rtol=1e-5)


def test_half_precision_is_raised_to_float32(task):
    both, start, target, rows = task
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), both)
    found = jax.eval_shape(matching.loss, half, jnp.bfloat16(0.1), start, target, rows)
    assert found.dtype == jnp.float32


@pytest.mark.slow
def test_memory_grows_by_one_student_per_step(task):
    """Of the compiled gradient; kept activations would add many times a student of this kind."""
    start = start_at(jax.random.key(0))
    student = sum(leaf.nbytes for leaf in jax.tree.leaves(start))
    like = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    wide = (like((16, SIZE, SIZE, CHANNELS)), like((16, DIM)))

    def temporary(unroll):
        rows = jax.ShapeDtypeStruct((unroll, 16), jnp.int32)
        compiled = gradient.lower(wide, like(()), start, start, rows).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    activations = 16 * SIZE * SIZE * WIDTHS[0] * 4
    assert activations > 3 * student  # so that this would notice a single one of them
    assert (temporary(10) - temporary(2)) / 8 < 1.3 * student


def test_wrong_shapes_are_refused(task):
    (x, y), start, target, rows = task
    for wrong in ((x, y[:-1]), (x[0], y), (x, y[:, 0])):
        with pytest.raises(AssertionError):
            jax.eval_shape(matching.loss, wrong, RATE, start, target, rows)
    with pytest.raises(AssertionError):
        jax.eval_shape(matching.loss, (x, y), RATE, start, target | {"fc": {}}, rows)


@pytest.mark.parametrize(("count", "batch", "unroll"), [(12, 4, 7), (10, 4, 6), (5, 256, 3), (7, 3, 1)])
def test_rows(count, batch, unroll):
    """Whole epochs one after the other; the last batch of an epoch is filled up from the epoch's own beginning."""
    settings = matching.Settings(unroll=unroll, batch_size=batch)
    rows = matching.draw_rows(jax.random.key(2), count, settings=settings)
    size = min(batch, count)
    assert rows.shape == (unroll, size) and rows.dtype == jnp.int32
    per_epoch = -(-count // size)
    seen = []
    for first in range(0, unroll - per_epoch + 1, per_epoch):
        epoch = np.asarray(rows[first : first + per_epoch]).ravel()
        assert sorted(epoch[:count]) == list(range(count))
        np.testing.assert_array_equal(epoch[count:], epoch[: len(epoch) - count])
        seen.append(tuple(epoch))
    assert len(set(seen)) == len(seen)


def test_rows_depend_on_the_key_alone():
    one, same, other = (matching.draw_rows(jax.random.key(k), 50, settings=SETTINGS) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_rows_are_int32_in_double_precision(x64):
    assert matching.draw_rows(jax.random.key(0), 5, settings=SETTINGS).dtype == jnp.int32


@pytest.mark.slow
def test_two_steps_by_hand(task):
    """SGD with momentum, at each part's own rate."""
    both, start, target, rows = task
    state = matching.init(matching.Params(*both, RATE), settings=SETTINGS)
    params = [np.asarray(value, np.float64) for value in state.params]
    velocity = [np.zeros_like(value) for value in params]
    for _ in range(2):
        (images, targets), rate = gradient((state.params.images, state.params.targets), state.params.rate, *task[1:])
        slopes = [np.asarray(value, np.float64) for value in (images, targets, rate)]
        velocity = [0.5 * v + g for v, g in zip(velocity, slopes, strict=True)]
        params = [p - lr * v for p, lr, v in zip(params, (2.0, 0.5, 0.01), velocity, strict=True)]
        before = state.params
        state, info = step(state, start, target, rows, settings=SETTINGS)
        for found, expected in zip(state.params, params, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        value = loss((before.images, before.targets), before.rate, start, target, rows)
        np.testing.assert_allclose(info.loss, value, rtol=1e-5)
        np.testing.assert_allclose(info.gradient_norm, sum(np.sum(g**2) for g in slopes) ** 0.5, rtol=1e-4)
        assert info.rate == before.rate


def test_steps_lower_the_loss(task):
    both, start, target, rows = task
    state = matching.init(matching.Params(*both, RATE), settings=SETTINGS)
    losses = []
    for _ in range(15):
        state, info = step(state, start, target, rows, settings=SETTINGS)
        losses.append(float(info.loss))
    assert losses[-1] < 0.8 * losses[0]


def plain(x, kernel, stride=1, padding=1, form="auto"):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.slow
def test_gradients_through_convolutions_in_chunks(x64, task, monkeypatch):
    """The whole unrolled gradient with every convolution in small chunks, against XLA's own convolution."""
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, task)
    both, start, target, rows = wide

    def found():
        return jax.jit(jax.grad(lambda *a: matching.loss(*a), argnums=(0, 1)))(
            both, jnp.float64(0.1), start, target, rows
        )

    monkeypatch.setattr(convolution, "WINOGRAD_CHANNELS", 1)
    jax.clear_caches()  # of convolutions traced with larger chunks
    monkeypatch.setattr(chunks, "BYTES", 2 * 4 * SIZE * SIZE * 2 * CHANNELS * 8)
    chunked = found()
    monkeypatch.setattr(layers, "conv", plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), chunked, found())
