"""The probes against brute force and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, r2_score

from ssdd_jax.evaluate.protocols import probes
from ssdd_jax.evaluate.protocols.probes import common
from ssdd_jax.evaluate.protocols.probes import neighbours as knn_module
from ssdd_jax.evaluate.protocols.probes import shots as shots_module

CLASSES = 3
linear = jax.jit(probes.linear, static_argnames=("classes", "settings"))
linear_krr_st = jax.jit(probes.linear_krr_st, static_argnames=("classes", "settings"))
fit_linear = jax.jit(probes.fit_linear, static_argnames=("classes", "settings"))
few_shot = jax.jit(probes.few_shot, static_argnames="classes")
feature_r2 = jax.jit(probes.feature_r2)
fit_lbfgs = jax.jit(probes.fit_lbfgs, static_argnames=("classes", "settings"))
few_labels = jax.jit(probes.few_labels, static_argnames=("classes", "settings"))
PENALTY = probes.LbfgsSettings().penalty


def blobs(seed, count=60, distance=8.0, width=5):
    """Features and labels; one blob per class, along an axis each."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    features = generator.normal(size=(count, width))
    features[np.arange(count), labels] += distance
    return jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)


SETTINGS = probes.SgdSettings(steps=40, batch_size=16, learning_rate=0.2)


@pytest.mark.medium
def test_linear_classifier_separates_what_is_separable():
    found = [
        float(linear_krr_st(jax.random.key(k), blobs(0), blobs(1), classes=CLASSES, settings=SETTINGS)) for k in (0, 0)
    ]
    assert found[0] == found[1]
    np.testing.assert_allclose(found[0], 100.0, rtol=1e-6)
    features, labels = blobs(1)
    # Wrong labels of a third of the test images are wrong predictions.
    wrong = (features, jnp.where(labels == 1, 2, labels))
    share = float(linear_krr_st(jax.random.key(0), blobs(0), wrong, classes=CLASSES, settings=SETTINGS))
    np.testing.assert_allclose(share, 100 * 2 / 3, rtol=1e-5)


def test_linear_classifier_has_a_bias():
    """Two classes along one axis far from zero: no line through the origin separates them."""
    labels = np.arange(48) % 2
    features = (3.0 + labels + 0.05 * np.random.default_rng(0).normal(size=48)).reshape(-1, 1)
    data = jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)
    settings = SETTINGS._replace(steps=1500, batch_size=48)
    found = linear_krr_st(jax.random.key(0), data, data, classes=2, settings=settings)
    np.testing.assert_allclose(found, 100.0, rtol=1e-6)


def test_the_linear_probe_is_logistic_regression_on_standardised_features():
    """Of scikit-learn, at the penalty with the fewest errors on the held-out labels, or the smallest loss of these."""
    train, test = blobs(0, 150, distance=1.5), blobs(1, 150, distance=1.5)
    settings = probes.LinearSettings(penalties=(0.3, 0.03, 0.003), patience=9, tolerance=1e-6, steps=200)
    (x, y), (x_test, y_test) = (tuple(map(np.asarray, part)) for part in (train, test))
    mean, std = x.mean(0), x.std(0)
    x, x_test, held = (x - mean) / std, (x_test - mean) / std, common.held_out(150, settings.share)

    def fitted(penalty, rows):
        inverse = 1 / (penalty * rows.sum())
        return LogisticRegression(C=inverse, tol=1e-9, max_iter=10_000).fit(x[rows], y[rows])

    tried = [fitted(penalty, ~held) for penalty in settings.penalties]
    errors = [(one.score(x[held], y[held]), -log_loss(y[held], one.predict_proba(x[held]))) for one in tried]
    best = fitted(settings.penalties[errors.index(max(errors))], np.ones(150, bool))
    weights = np.asarray(fit_linear(train, classes=CLASSES, settings=settings))
    np.testing.assert_allclose(weights[:-1] * std[:, None], best.coef_.T, atol=2e-3)
    expected = 100 * best.score(x_test, y_test)
    np.testing.assert_allclose(linear(train, test, classes=CLASSES, settings=settings), expected, atol=0.7)


def test_the_linear_probe_does_not_depend_on_scales():
    """Features in other units, and one that is constant, change nothing; SGD on raw features fails on them."""
    train, test = blobs(0, 150), blobs(1, 150)
    scale, shift = jnp.array([1e-3, 1.0, 1e3, 30.0, 0.0]), jnp.array([5.0, 0.0, -2e3, 1.0, 3.0])
    moved = [(features * scale[None] + shift[None], labels) for features, labels in (train, test)]
    np.testing.assert_allclose(linear(*moved, classes=CLASSES), linear(train, test, classes=CLASSES), atol=0.7)
    np.testing.assert_allclose(linear(*moved, classes=CLASSES), 100.0, atol=1.0)
    assert float(linear_krr_st(jax.random.key(0), *moved, classes=CLASSES, settings=SETTINGS)) < 90


def test_the_penalty_is_chosen_on_training_labels_alone():
    """Held-out examples of every class, sorted or in turn, and never the test's labels."""
    held = common.held_out(100, 0.2)
    assert held.sum() == 20 and {*np.bincount(np.flatnonzero(held) % 10, minlength=10)} != {0}
    assert np.abs(np.bincount(np.flatnonzero(held) // 25) - 5).max() <= 4
    assert common.held_out(2, 0.2).sum() == 1
    train, test = blobs(0), blobs(1)
    other = test[0], (test[1] + 1) % CLASSES
    scores = [float(linear(train, part, classes=CLASSES)) for part in (test, other)]
    np.testing.assert_allclose(scores, [100.0, 0.0], atol=1e-3)


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
    found = jax.jit(shots_module._leave_one_out)(kernel, targets)
    np.testing.assert_allclose(found, fit(np.arange(9), best), rtol=1e-7)


def regression(seed, noise, count=100, width=6):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, width)) + 2
    mapping = np.random.default_rng(99).normal(size=(width, 4)) * [1, 1, 5, 0.1]
    return x.astype(np.float32), (x @ mapping + 3 + noise * generator.normal(size=(count, 4))).astype(np.float32)


def test_feature_r2_of_a_linear_map_and_of_noise():
    assert min(map(float, feature_r2(regression(0, 0.0), regression(1, 0.0)))) > 0.9999
    (x, _), (z, _) = regression(0, 0.0), regression(1, 0.0)
    noise = (np.random.default_rng(k).normal(size=(100, 4)).astype(np.float32) for k in (5, 6))
    assert max(map(abs, map(float, feature_r2((x, next(noise)), (z, next(noise)))))) < 0.15


@pytest.mark.parametrize(("noise", "count", "width"), [(0.5, 100, 6), (20.0, 50, 40)])
def test_feature_r2_equals_sklearn(noise, count, width):
    """The ridge chosen on a tenth of the training rows, then `r2_score(variance_weighted)`."""
    data = [regression(k, noise, count, width) for k in (0, 1)]
    (x, y), (x_test, y_test) = (tuple(array.astype(np.float64) for array in pair) for pair in data)
    held = common.held_out(count, 0.1)

    def fit(ridge, x, y):
        centred = x - x.mean(0)
        return Ridge(alpha=ridge * np.sum(centred**2) / x.shape[1]).fit(x, y)

    errors = []
    for ridge in probes.RIDGES:
        predicted = fit(ridge, x[~held], y[~held]).predict(x[held])
        errors.append(np.mean((predicted - y[held]) ** 2))
    predicted = fit(probes.RIDGES[int(np.argmin(errors))], x, y).predict(x_test)
    expected = r2_score(y_test, predicted, multioutput="variance_weighted")
    found = float(feature_r2(*data).plain)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_ridge_of_r2_does_not_depend_on_the_order_of_the_images():
    """Labels in turn: every tenth image would be of one class, here of one with little noise."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(150, 10))

    def data(count):
        first = (np.arange(count) % 10 == 0)[:, None]
        x = generator.normal(size=(count, 150))
        y = x @ weights * np.where(first, 1, 0.1) + generator.normal(size=(count, 10)) * np.where(first, 0.1, 3.0)
        return x.astype(np.float32), y.astype(np.float32)

    (x, y), test = data(400), data(1000)
    in_turn = float(feature_r2((x, y), test).plain)
    shuffled = generator.permutation(400)
    np.testing.assert_allclose(in_turn, float(feature_r2((x[shuffled], y[shuffled]), test).plain), atol=0.02)


def test_whitened_r2_weighs_all_components_alike():
    """One direction holds nearly all variance and is predicted, the other three are noise: plain R2 sees one only."""
    generator = np.random.default_rng(0)
    rotation = np.linalg.qr(generator.normal(size=(4, 4)))[0]

    def data(count):
        x = generator.normal(size=(count, 4))
        components = np.concatenate([30 * x[:, :1], generator.normal(size=(count, 3))], 1)
        return x.astype(np.float32), (components @ rotation + 7).astype(np.float32)

    found = feature_r2(data(400), data(400))
    assert float(found.plain) > 0.98
    np.testing.assert_allclose(float(found.whitened), 0.25, atol=0.1)
    # Components below the floor hardly count: with almost no variance they would be noise of the teacher itself.
    x, y = data(400)
    x_test, y_test = data(400)
    tiny = [y_part @ rotation.T * np.array([1, 1e-4, 1e-4, 1e-4], np.float32) for y_part in (y, y_test)]
    assert float(feature_r2((x, tiny[0]), (x_test, tiny[1])).whitened) > 0.98


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


@pytest.fixture(scope="module")
def uneven():
    """Overlapping classes; features far from zero, of very different sizes, one of them constant."""
    features, labels = blobs(3, count=90, distance=1.0, width=8)
    size = np.array([0.02, 0.1, 1.0, 3.0, 10.0, 30.0, 1.0, 0.0])
    return (np.asarray(features) * size + 5.0 * np.sqrt(size) + 1.0).astype(np.float32), np.asarray(labels)


@pytest.fixture(scope="module")
def solution(uneven):
    return np.asarray(fit_lbfgs(tuple(map(jnp.asarray, uneven)), classes=CLASSES), np.float64)


def objective(data, weights):
    """MKDT's loss and its gradient, in float64."""
    design = np.concatenate([data[0].astype(np.float64), np.ones((len(data[0]), 1))], 1)
    found = design @ weights
    found -= found.max(1, keepdims=True)
    share = np.exp(found) / np.exp(found).sum(1, keepdims=True)
    known = np.eye(CLASSES)[data[1]]
    decay = np.concatenate([weights[:-1], 0 * weights[-1:]])
    loss = -np.log((share * known).sum(1)).mean() + PENALTY * np.sum(decay**2)
    return loss, design.T @ (share - known) / len(design) + 2 * PENALTY * decay


@pytest.mark.medium
def test_lbfgs_ends_where_the_gradient_is_zero(uneven, solution):
    loss, gradient = objective(uneven, solution)
    start, slope = objective(uneven, np.zeros_like(solution))
    assert solution.shape == (9, CLASSES) and solution.dtype == np.float64
    assert loss < 0.9 * start
    # In float32, and relative to what it was: the features are as large as 60.
    assert np.linalg.norm(gradient) < 2e-5 * np.linalg.norm(slope)
    for direction in np.random.default_rng(0).normal(size=(5, 9, CLASSES)):
        assert objective(uneven, solution + 1e-2 * direction)[0] > loss


@pytest.mark.medium
def test_lbfgs_stops_after_its_steps(uneven, solution):
    settings = probes.LbfgsSettings(steps=2)
    early = fit_lbfgs(tuple(map(jnp.asarray, uneven)), classes=CLASSES, settings=settings)
    losses = [objective(uneven, np.asarray(weights, np.float64))[0] for weights in (0 * early, early, solution)]
    assert losses[0] > losses[1] > losses[2] + 1e-4


def test_lbfgs_equals_scikit_learn(uneven, solution):
    """Which minimises the sum, not the mean, and half of the squares: `C = 1 / (2 n penalty)`."""
    features, labels = (part.astype(np.float64) for part in uneven)
    judge = LogisticRegression(C=1 / (2 * len(features) * PENALTY), tol=1e-9, max_iter=10_000).fit(features, labels)
    assert objective(uneven, solution)[0] <= objective(uneven, _weights(judge.coef_, judge.intercept_))[0] + 1e-7
    np.testing.assert_allclose(solution[:-1], judge.coef_.T, atol=2e-3)
    # One number can be added to all biases.
    np.testing.assert_allclose(solution[-1] - solution[-1].mean(), judge.intercept_, atol=1e-2)


def _weights(kernel, bias):
    return np.concatenate([np.asarray(kernel, np.float64).T, np.asarray(bias, np.float64)[None]])


def test_lbfgs_is_no_worse_than_the_published_recipe():
    """On features of even sizes, that is: without a line search it diverges on the others."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    data = blobs(3, count=90, distance=1.0, width=8)
    solution = np.asarray(fit_lbfgs(data, classes=CLASSES), np.float64)
    data = tuple(map(np.asarray, data))
    features, labels = torch.tensor(data[0]), torch.tensor(data[1].tolist())
    classifier = torch.nn.Linear(8, CLASSES)
    optimizer = torch.optim.LBFGS(classifier.parameters())

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(classifier(features), labels)
        loss = loss + PENALTY * classifier.weight.square().sum()
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
    published = _weights(classifier.weight.detach().numpy(), classifier.bias.detach().numpy())
    assert objective(data, solution)[0] <= objective(data, published)[0] + 1e-7
    np.testing.assert_allclose(objective(data, published)[0], objective(data, solution)[0], rtol=1e-4)


@pytest.mark.slow
def test_few_labels_uses_only_its_rows():
    train, test = blobs(0), blobs(1, distance=2.0)
    rows = probes.draw_fraction(0, np.asarray(train[1]), 0.2)
    found = float(few_labels(train, test, jnp.asarray(rows), classes=CLASSES))
    part = tuple(array[rows] for array in train)
    expected = np.argmax(probes.logits(fit_lbfgs(part, classes=CLASSES), test[0]), -1) == np.asarray(test[1])
    np.testing.assert_allclose(found, 100 * expected.mean(), rtol=1e-5)
    assert 50 < found < 100
    kept = np.isin(np.arange(60), rows)
    hidden = (jnp.where(kept[:, None], train[0], -9.0), jnp.where(kept, train[1], 0))
    assert float(few_labels(hidden, test, jnp.asarray(rows), classes=CLASSES)) == found


def test_draw_fraction():
    labels = np.repeat(np.arange(4), 25)
    draws = [probes.draw_fraction(7, labels, fraction) for fraction in (*probes.FRACTIONS, 1.0)]
    assert [len(draw) for draw in draws] == [1, 5, 10, 50, 100]
    for smaller, larger in zip(draws, draws[1:], strict=False):
        np.testing.assert_array_equal(smaller, larger[: len(smaller)])
    assert draws[0].dtype == np.int32
    np.testing.assert_array_equal(np.sort(draws[-1]), np.arange(100))
    # Regardless of class.
    assert len({np.bincount(labels[probes.draw_fraction(seed, labels, 0.1)], minlength=4)[0] for seed in range(20)}) > 2
    assert not np.array_equal(draws[2], probes.draw_fraction(8, labels, 0.1))
    assert len(probes.draw_fraction(0, labels, 0.001)) == 1
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"got {wrong}"):
            probes.draw_fraction(0, labels, wrong)


@pytest.mark.parametrize("neighbours", [1, 7, 100])
def test_knn_equals_brute_force(neighbours, monkeypatch):
    monkeypatch.setattr(knn_module, "KNN_CHUNK", 16)  # 60 are three whole chunks and a rest
    train, test = (blobs(k, distance=1.5) for k in (0, 1))
    train = (train[0] * jnp.linspace(0.1, 9, 60)[:, None], train[1])
    x, z = (np.asarray(part[0], np.float64) for part in (train, test))
    similarity = (z / np.linalg.norm(z, axis=1, keepdims=True)) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    predicted = []
    for row in similarity:
        nearest = np.argsort(-row)[:neighbours]
        votes = np.bincount(np.asarray(train[1])[nearest], np.exp(row[nearest] / 0.2), minlength=CLASSES)
        predicted.append(np.argmax(votes))
    expected = 100 * np.mean(predicted == np.asarray(test[1]))
    assert 40 < expected < 95
    found = jax.jit(lambda: probes.knn(train, test, classes=CLASSES, neighbours=neighbours, temperature=0.2))()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.medium
def test_knn_weighs_its_neighbours():
    """Two far votes against one near one; and a feature without length has no direction, but is no error."""
    features = jnp.array([[1.0, 0.1], [1.0, 1.0], [1.0, -1.0], [0.0, 0.0]])
    train, test = (features, jnp.array([0, 1, 1, 2])), (jnp.array([[3.0, 0.0], [0.0, 0.0]]), jnp.array([0, 2]))
    options = {"classes": 3, "neighbours": 3}
    np.testing.assert_allclose(probes.knn(train, test, **options), 50.0)
    np.testing.assert_allclose(probes.knn(train, test, temperature=10.0, **options), 0.0)


@pytest.mark.parametrize("probe", ["linear", "linear_krr_st", "lbfgs"])
def test_products_are_exact_on_accelerators(probe):
    """Those of the test images too: in one pass of bfloat16, features with a large mean are all alike."""
    data = blobs(0), blobs(1)
    functions = {
        "linear": lambda: probes.linear(*data, classes=CLASSES),
        "linear_krr_st": lambda: probes.linear_krr_st(jax.random.key(0), *data, classes=CLASSES, settings=SETTINGS),
        "lbfgs": lambda: probes.lbfgs(*data, classes=CLASSES),
    }
    text = jax.jit(functions[probe]).trace().lower(lowering_platforms=("cuda",)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    # A step multiplies a vector with a matrix too, in the gradient.
    assert len(products) >= 3 and all("precision = [HIGHEST, HIGHEST]" in line for line in products)
