"""Training and probing networks on a set, and the baselines beside it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIM, WIDTHS, bytes_and_features, jit, network, pairs

from ssdd_jax import distilled, epochs, evaluate, inner, preprocess, probes
from ssdd_jax.errors import UserError

SETTINGS = evaluate.Settings(
    seeds=2, widths=WIDTHS, epochs=3, full_epochs=1, batch_size=4, probe=probes.Settings(20, 16, 0.1)
)


@pytest.fixture(scope="module")
def benchmark():
    """60 training and 30 test images in two classes."""
    images, features = bytes_and_features(90)
    labels = np.arange(90) % 2
    return evaluate.Benchmark(
        train_images=jnp.asarray(images[:60]),
        train_features=jnp.asarray(features[:60]),
        test_images=jnp.asarray(images[60:]),
        test_features=jnp.asarray(features[60:]),
        train_labels=jnp.asarray(labels[:60], jnp.int32),
        test_labels=jnp.asarray(labels[60:], jnp.int32),
        classes=2,
        preprocessing=preprocess.fit(images[:60], features[:60]),
    )


@pytest.fixture(scope="module")
def small_set(benchmark):
    return distilled.from_pairs(*pairs(0, 6), benchmark.preprocessing)


def test_seeds_side_by_side_are_those_one_by_one(benchmark):
    x, y = pairs(0, 6)
    options = {"preprocessing": benchmark.preprocessing, "passes": 3, "settings": SETTINGS}
    keys = jax.random.split(jax.random.key(0), 2)
    together = evaluate.train_seeds(keys, x, y, **options)
    alone = jit(evaluate.train, static_argnames=("passes", "settings"))
    for index in range(2):
        one = alone(keys[index], x, y, **options)
        found = jax.tree.map(lambda leaf: np.asarray(leaf)[index], together)  # noqa: B023, used at once
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4), found, one)
    kernels = together["params"]["conv0"]["kernel"]
    assert not np.array_equal(kernels[0], kernels[1])


def test_training_on_bytes_is_training_on_their_normalised_images(benchmark):
    images, data = benchmark.train_images[:6], benchmark.preprocessing
    targets = data.targets(benchmark.train_features[:6])
    alone = jit(evaluate.train, static_argnames=("passes", "settings"))
    options = {"preprocessing": data, "passes": 2, "settings": SETTINGS}
    found, expected = (alone(jax.random.key(0), x, targets, **options) for x in (images, data.images(images)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4), found, expected)


@pytest.mark.parametrize(("count", "batch_size"), [(6, 4), (6, 3), (5, 9)])
def test_every_example_comes_up_in_every_epoch(count, batch_size):
    """In another order each time; the last batch is filled up from the beginning of the order."""
    size, per_epoch = epochs.batch_of(count, batch_size)
    assert size == min(count, batch_size) and (per_epoch - 1) * size < count <= per_epoch * size

    def step(carry, rows):
        seen, number = carry
        return seen.at[number].set(rows), number + 1

    def run(key):
        start = (jnp.full((4 * per_epoch, size), -1, jnp.int32), jnp.int32(0))
        return epochs.run(key, start, step, count=count, batch_size=batch_size, epochs=4)

    seen, number = jit(run)(jax.random.key(0))
    orders = np.asarray(seen).reshape(4, -1)
    assert int(number) == 4 * per_epoch
    for order in orders:
        np.testing.assert_array_equal(np.sort(order[:count]), np.arange(count))
        np.testing.assert_array_equal(order[count:], order[: len(order) - count])
    assert len({order.tobytes() for order in orders}) > 1


def test_extract_handles_a_remainder(benchmark, monkeypatch):
    monkeypatch.setattr(evaluate, "EXTRACT", 8)
    variables, images = network(0).variables, benchmark.train_images[:19]
    found = evaluate.extract(variables, images, benchmark.preprocessing)
    expected = jit(inner.features)(variables, benchmark.preprocessing.images(images))
    assert found.shape == (19, 2 * 2 * WIDTHS[-1])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_entries(benchmark, small_set):
    """Their names, what the baselines are fed, and that the same seed gives each entry the same start."""
    names = ["distilled", "random_real", "random_init", "full_data", "teacher"]
    found = {entry.name: entry for entry in evaluate.entries(small_set, benchmark, 6, SETTINGS)}
    assert list(found) == names
    without = evaluate.entries(small_set, benchmark._replace(test_features=None), 6, SETTINGS)
    assert [entry.name for entry in without] == names[:-1]
    keys = jax.random.split(jax.random.key(0), 2)
    for train, test in found["teacher"].features(keys):
        assert train is benchmark.train_features and test is benchmark.test_features


@pytest.mark.parametrize(("name", "expected"), [("distilled", (6, 3)), ("random_real", (5, 3)), ("full_data", (60, 1))])
def test_what_a_baseline_trains_on(benchmark, small_set, monkeypatch, name, expected):
    """`(pairs, passes)`; random images come with their own features, drawn anew per seed without repetition."""
    calls = []

    def fake(keys, images, targets, *, passes, **_):
        calls.append((images, targets, passes))
        return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), network(0).variables)

    monkeypatch.setattr(evaluate, "train_seeds", fake)
    entry = next(e for e in evaluate.entries(small_set, benchmark, 5, SETTINGS) if e.name == name)
    features = list(entry.features(jax.random.split(jax.random.key(0), 2)))
    assert [(len(train), len(test)) for train, test in features] == [(60, 30), (60, 30)]
    ((images, targets, passes),) = calls
    assert (targets.shape[-2], passes) == expected and targets.shape[-1] == DIM
    if name == "random_real":
        all_images = np.asarray(benchmark.preprocessing.images(benchmark.train_images)).reshape(60, -1)
        all_targets = np.asarray(benchmark.preprocessing.targets(benchmark.train_features))
        drawn = []
        for seed in range(2):
            flat = np.asarray(images[seed]).reshape(5, -1)
            rows = [int(np.argmin(np.abs(all_images - image).sum(1))) for image in flat]
            np.testing.assert_allclose(flat, all_images[rows], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(targets[seed], all_targets[rows], rtol=1e-5, atol=1e-6)
            assert len(set(rows)) == 5
            drawn.append(rows)
        assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("carried", "own_rate", "expected"), [(0.03, True, 0.03), (0.03, False, 0.2), (None, True, 0.2)]
)
def test_only_the_set_is_trained_at_its_own_rate(benchmark, monkeypatch, carried, own_rate, expected):
    """And only where that is asked for, and there is one; the baselines never are."""
    settings = SETTINGS._replace(inner=inner.Settings(learning_rate=0.2, momentum=0.5), own_rate=own_rate)
    rates = []

    def fake(keys, images, targets, *, settings, **_):
        rates.append(settings.inner)
        return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), network(0).variables)

    monkeypatch.setattr(evaluate, "train_seeds", fake)
    made = distilled.from_pairs(*pairs(0, 6), benchmark.preprocessing, learning_rate=carried)
    entries = {entry.name: entry for entry in evaluate.entries(made, benchmark, 6, settings)}
    for name in ("distilled", "random_real", "full_data"):
        list(entries[name].features(jax.random.split(jax.random.key(0), 2)))
    assert rates == [settings.inner._replace(learning_rate=expected), settings.inner, settings.inner]


def test_students_with_instance_norm(benchmark, small_set):
    """Trained, and looked at in eval mode, without running statistics; the images alone decide."""
    settings = SETTINGS._replace(norm="instance", seeds=1)
    entries = {entry.name: entry for entry in evaluate.entries(small_set, benchmark, 6, settings)}
    keys = jax.random.split(jax.random.key(0), 1)
    options = {"preprocessing": benchmark.preprocessing, "passes": settings.epochs, "settings": settings}
    trained = evaluate.train_seeds(keys, *small_set.pairs(), **options)
    assert trained["batch_stats"] == {} and {"in0", "in1"} <= set(trained["params"])
    variables = jax.tree.map(lambda leaf: leaf[0], trained)
    ((train, test),) = entries["distilled"].features(keys)
    expected = jit(inner.features)(variables, benchmark.preprocessing.images(benchmark.test_images))
    np.testing.assert_allclose(test, expected, rtol=1e-3, atol=1e-4)
    ((fresh, _),) = entries["random_init"].features(keys)
    assert train.shape == fresh.shape and not np.allclose(train, fresh)


def test_evaluate_an_entry(benchmark, small_set):
    entries = {entry.name: entry for entry in evaluate.entries(small_set, benchmark, 6, SETTINGS)}
    found = evaluate.evaluate(entries["teacher"], benchmark, seed=0, settings=SETTINGS)
    assert set(found) == {"linear", "few_shot", "feature_r2"}
    assert found["feature_r2"]["mean"] > 0.999 and found["feature_r2"]["seeds"] == 2
    unlabelled = benchmark._replace(train_labels=None, test_labels=None, classes=0)
    found = evaluate.evaluate(entries["random_init"], unlabelled, seed=0, settings=SETTINGS)
    assert set(found) == {"feature_r2"} and len(set(found["feature_r2"]["values"])) == 2
    assert found == evaluate.evaluate(entries["random_init"], unlabelled, seed=0, settings=SETTINGS)


def test_a_network_that_diverged_is_told(benchmark):
    features = (jnp.ones((90, 3)), jnp.full((90, 3), jnp.nan))
    entry = evaluate.Entry("distilled", lambda keys: iter([features, features]))
    with pytest.raises(UserError, match="a network of the entry distilled diverged"):
        evaluate.evaluate(entry, benchmark, seed=0, settings=SETTINGS)


def test_too_few_labels_leave_few_shot_out(benchmark, small_set):
    few = benchmark._replace(train_labels=jnp.zeros(60, jnp.int32).at[:9].set(1))
    entry = evaluate.entries(small_set, few, 6, SETTINGS)[-1]
    assert set(evaluate.evaluate(entry, few, seed=0, settings=SETTINGS)) == {"linear", "feature_r2"}


def test_summary():
    found = evaluate.summary([1.0, 2.0, 4.00004])
    assert found == {"mean": 2.3333, "std": 1.5275, "seeds": 3, "values": [1.0, 2.0, 4.0]}
    assert evaluate.summary([3.0]) == {"mean": 3.0, "std": 0.0, "seeds": 1, "values": [3.0]}
