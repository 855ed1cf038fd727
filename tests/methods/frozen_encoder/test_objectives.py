"""The losses for a frozen encoder; the pyramid; the crops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.methods.frozen_encoder import distortions, objectives, pyramid

CLASSES, COUNT, DIM, REAL = 3, 6, 5, 9
LABELS = np.repeat(np.arange(CLASSES), COUNT // CLASSES)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_the_gradient_of_a_head_is_that_of_its_cross_entropy():
    head, features, labels = numbers(DIM, CLASSES), numbers(7, DIM, seed=1), np.arange(7) % CLASSES

    def entropy(head, bias):
        scores = jax.nn.log_softmax(features.astype(np.float32) @ head + bias[None])
        return -jnp.take_along_axis(scores, labels[:, None], 1).mean()

    expected = jax.grad(entropy, (0, 1))(jnp.asarray(head, jnp.float32), jnp.zeros(CLASSES))
    found = objectives.head_gradient(head.astype(np.float32), features.astype(np.float32), labels)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert float(objectives.gradient_matching(found, found)) == pytest.approx(0, abs=1e-6)
    opposite = jax.tree.map(lambda part: -part, found)
    assert float(objectives.gradient_matching(found, opposite)) == pytest.approx(2, abs=1e-6)


def test_the_head_in_closed_form_is_ridge_regression(x64):
    """The same predictions as the normal equations' in feature space."""
    own, real = numbers(COUNT, DIM), numbers(REAL, DIM, seed=1)
    wanted, scale, temperature = np.eye(CLASSES)[LABELS] - 1 / CLASSES, 1e-2, 0.3
    ridge = scale * np.trace(own @ own.T)
    head = np.linalg.solve(own.T @ own + ridge * np.eye(DIM), own.T @ wanted)
    scores = real @ head / temperature
    labels = np.arange(REAL) % CLASSES
    expected = np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(REAL), labels])
    found = objectives.closed_form(
        (jnp.asarray(own), jnp.asarray(LABELS)), (jnp.asarray(real), jnp.asarray(labels)),
        classes=CLASSES, ridge_scale=scale, temperature=temperature,
    )  # fmt: skip
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_sizes_of_a_pyramid():
    assert pyramid.sizes(8, 8) == ((1, 1), (2, 2), (4, 4), (8, 8))
    assert pyramid.sizes(12, 6) == ((1, 1), (2, 1), (4, 2), (8, 4), (12, 6))
    assert pyramid.sizes(1, 1) == ((1, 1),)


def test_levels_join_as_published():
    """After every 200 steps, first before step 201; the sum keeps its size."""
    used = [int(pyramid.used(step, every=200, most=3)) for step in (0, 1, 200, 201, 400, 401, 9999)]
    assert used == [1, 1, 1, 2, 2, 3, 3]
    levels = pyramid.init(jax.random.key(0), 50, (4, 4, 3))
    assert np.any(levels[0]) and not any(np.any(level) for level in levels[1:])
    more = pyramid.extend(jax.random.key(1), levels, jnp.int32(1))
    np.testing.assert_allclose(more[0], levels[0] / 2, rtol=1e-6)
    assert abs(float(more[1].std()) - 0.5) < 0.05 and not np.any(more[2])


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_pixels(channels):
    """And a grey picture has no colours to decorrelate."""
    levels = pyramid.init(jax.random.key(0), 4, (5, 4, channels))
    images = pyramid.decode(levels, 1)
    assert images.shape == (4, 5, 4, channels) and 0 < float(images.min()) < float(images.max()) < 1
    if channels == 1:
        np.testing.assert_allclose(images[:, 0, 0], jax.nn.sigmoid(2 * levels[0][:, 0, 0]), rtol=1e-6)


def test_a_whole_crop_changes_nothing():
    images = numbers(2, 6, 8, 3).astype(np.float32)
    whole = distortions.Draw(jnp.array([False, True]), jnp.tile(jnp.array([0.0, 0, 1, 1]), (2, 1)), None)
    found = distortions.apply(images, whole)
    np.testing.assert_allclose(found[0], images[0], atol=1e-6)
    np.testing.assert_allclose(found[1], images[1, :, ::-1], atol=1e-6)


def test_draws_are_within_their_bounds():
    drawn = distortions.draw(jax.random.key(0), (2000, 4, 4, 3), distortions.Settings(noise=False))
    left, top, width, height = np.asarray(drawn.box).T
    area, aspect = width * height, width / height
    assert drawn.noise is None and 0.4 < drawn.flip.mean() < 0.6
    assert area.min() >= 0.08 - 1e-6 and area.max() <= 1 + 1e-6 and aspect.min() >= 0.75 - 1e-6
    # As published, a wide crop of nearly the whole area may begin outside of the image.
    assert (left + width <= np.maximum(1, width) + 1e-6).all() and (top + height <= np.maximum(1, height) + 1e-6).all()
