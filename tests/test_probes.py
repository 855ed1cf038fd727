"""The probes against brute force and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from ssdd_jax import probes

CLASSES = 3
linear = jit(probes.linear, static_argnames=("classes", "settings"))
few_shot = jit(probes.few_shot, static_argnames="classes")
feature_r2 = jit(probes.feature_r2)


def blobs(seed, count=60, distance=8.0, width=5):
    """Features and labels; one blob per class, along an axis each."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    features = generator.normal(size=(count, width))
    features[np.arange(count), labels] += distance
    return jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)


SETTINGS = probes.Settings(steps=40, batch_size=16, learning_rate=0.2)


def test_linear_classifier_separates_what_is_separable():
    found = [float(linear(jax.random.key(k), blobs(0), blobs(1), classes=CLASSES, settings=SETTINGS)) for k in (0, 0)]
    assert found[0] == found[1]
    np.testing.assert_allclose(found[0], 100.0, rtol=1e-6)
    features, labels = blobs(1)
    # Wrong labels of a third of the test images are wrong predictions.
    wrong = (features, jnp.where(labels == 1, 2, labels))
    share = float(linear(jax.random.key(0), blobs(0), wrong, classes=CLASSES, settings=SETTINGS))
    np.testing.assert_allclose(share, 100 * 2 / 3, rtol=1e-5)


def test_linear_classifier_has_a_bias():
    """Two classes along one axis far from zero: no line through the origin separates them."""
    labels = np.arange(48) % 2
    features = (3.0 + labels + 0.05 * np.random.default_rng(0).normal(size=48)).reshape(-1, 1)
    data = jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)
    settings = SETTINGS._replace(steps=1500, batch_size=48)
    found = linear(jax.random.key(0), data, data, classes=2, settings=settings)
    np.testing.assert_allclose(found, 100.0, rtol=1e-6)


def test_few_shot_separates_blobs():
    train, test = blobs(0), blobs(1)
    shots = probes.draw_shots(0, np.asarray(train[1]), CLASSES)
    np.testing.assert_allclose(few_shot(train, test, shots, classes=CLASSES), 100.0, rtol=1e-6)
    # Features off by a scale and a shift per number are the same features.
    scale, shift = jnp.array([[1e-2, 1.0, 30.0, 2.0, 5.0]]), jnp.array([[3.0, -1.0, 0.0, 9.0, 2.0]])
    moved = ((features * scale + shift, labels) for features, labels in (train, test))
    np.testing.assert_allclose(few_shot(*moved, shots, classes=CLASSES), 100.0, rtol=1e-6)


def test_few_shot_uses_only_the_drawn_labels():
    train, test = blobs(0), blobs(1)
    shots = probes.draw_shots(0, np.asarray(train[1]), CLASSES)
    kept = np.isin(np.arange(60), shots)
    hidden = (train[0], jnp.where(kept, train[1], 0))
    found = [float(few_shot(data, test, shots, classes=CLASSES)) for data in (train, hidden)]
    assert found[0] == found[1]


def test_few_shot_is_the_mean_over_draws():
    train, test = (blobs(k, distance=1.0) for k in (0, 1))
    shots = probes.draw_shots(0, np.asarray(train[1]), CLASSES)
    one_by_one = [float(few_shot(train, test, draw[None], classes=CLASSES)) for draw in shots]
    assert len(set(one_by_one)) > 1
    np.testing.assert_allclose(few_shot(train, test, shots, classes=CLASSES), np.mean(one_by_one), rtol=1e-5)


def test_leave_one_out_equals_brute_force(x64):
    """Every row left out and predicted from the others, for every ridge; the best ridge's weights on all rows."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(9, 4))
    targets = features @ generator.normal(size=(4, 2)) + generator.normal(size=(9, 2))
    kernel = features @ features.T

    def fit(rows, ridge):
        return np.linalg.solve(kernel[np.ix_(rows, rows)] + ridge * np.eye(len(rows)), targets[rows])

    errors = []
    for ridge in np.array(probes.RIDGES) * np.trace(kernel) / 9:
        others = [np.delete(np.arange(9), row) for row in range(9)]
        residual = [targets[i] - kernel[i, rows] @ fit(rows, ridge) for i, rows in enumerate(others)]
        errors.append(np.mean(np.square(residual)))
    best = np.array(probes.RIDGES)[np.argmin(errors)] * np.trace(kernel) / 9
    assert 0 < np.argmin(errors) < len(errors) - 1
    found = jit(probes._leave_one_out)(kernel, targets)
    np.testing.assert_allclose(found, fit(np.arange(9), best), rtol=1e-7)


def regression(seed, noise, count=100, width=6):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, width)) + 2
    mapping = np.random.default_rng(99).normal(size=(width, 4)) * [1, 1, 5, 0.1]
    return x.astype(np.float32), (x @ mapping + 3 + noise * generator.normal(size=(count, 4))).astype(np.float32)


def test_feature_r2_of_a_linear_map_and_of_noise():
    assert float(feature_r2(regression(0, 0.0), regression(1, 0.0))) > 0.9999
    (x, _), (z, _) = regression(0, 0.0), regression(1, 0.0)
    noise = (np.random.default_rng(k).normal(size=(100, 4)).astype(np.float32) for k in (5, 6))
    assert abs(float(feature_r2((x, next(noise)), (z, next(noise))))) < 0.15


@pytest.mark.parametrize(("noise", "count", "width"), [(0.5, 100, 6), (20.0, 50, 40)])
def test_feature_r2_equals_sklearn(noise, count, width):
    """The ridge chosen on every tenth training row, then `r2_score(variance_weighted)`."""
    data = [regression(k, noise, count, width) for k in (0, 1)]
    (x, y), (x_test, y_test) = (tuple(array.astype(np.float64) for array in pair) for pair in data)
    held = np.arange(count) % 10 == 0

    def fit(ridge, x, y):
        centred = x - x.mean(0)
        return Ridge(alpha=ridge * np.sum(centred**2) / x.shape[1]).fit(x, y)

    errors = []
    for ridge in probes.RIDGES:
        predicted = fit(ridge, x[~held], y[~held]).predict(x[held])
        errors.append(np.mean((predicted - y[held]) ** 2))
    predicted = fit(probes.RIDGES[int(np.argmin(errors))], x, y).predict(x_test)
    expected = r2_score(y_test, predicted, multioutput="variance_weighted")
    found = float(feature_r2(*data))
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_draw_shots():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 25))
    shots = probes.draw_shots(7, labels, 4)
    assert shots.shape == (probes.DRAWS, 4 * probes.SHOTS) and shots.dtype == np.int32
    for draw in shots:
        assert len(set(draw)) == len(draw)
        np.testing.assert_array_equal(np.bincount(labels[draw]), [probes.SHOTS] * 4)
    np.testing.assert_array_equal(shots, probes.draw_shots(7, labels, 4))
    assert not np.array_equal(shots[0], shots[1])
    assert not np.array_equal(shots, probes.draw_shots(8, labels, 4))
    assert probes.draw_shots(7, labels[labels < 3], 4) is None
    assert probes.draw_shots(7, np.repeat(np.arange(2), (9, 30)), 2) is None
