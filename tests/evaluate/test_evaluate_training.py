"""Networks trained on pairs, several side by side, and the features of what was trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CHANNELS, DIM, SIZE, WIDTHS, bytes_and_features, pairs, relative

from ssdd_jax import inner, models
from ssdd_jax.data import preprocess
from ssdd_jax.evaluate import extraction, training
from ssdd_jax.models import architectures
from ssdd_jax.training import epochs

NETWORK = models.ConvNet(WIDTHS, DIM)
SETTINGS = training.Settings(steps=5, batch_size=4)  # two and a half epochs of six pairs
IMAGES, FEATURES = bytes_and_features(60)
DATA = preprocess.fit(IMAGES, FEATURES)
KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.fixture(scope="module")
def trained():
    return training.train(KEYS, NETWORK, pairs(0, 6), preprocessing=DATA, settings=SETTINGS, together=2)


def close(found, expected, rtol=2e-3, atol=2e-4):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


@pytest.mark.medium
def test_networks_side_by_side_are_those_one_by_one(trained):
    alone = training.train(KEYS, NETWORK, pairs(0, 6), preprocessing=DATA, settings=SETTINGS, together=1)
    close(alone, trained)
    kernels = trained["params"]["conv0"]["kernel"]
    assert not np.array_equal(kernels[0], kernels[1])


@pytest.mark.medium
def test_training_is_the_inner_model_step_by_step(trained):
    """Mini-batches of shuffled epochs, in the order that the network's own key says, by `inner.step`."""
    x, y = pairs(0, 6)
    key_init, key_order = jax.random.split(KEYS[1])
    state = inner.init(key_init, x.shape[1:], DIM, widths=WIDTHS)
    step = jax.jit(inner.step)
    orders = [epochs.shuffled(jax.random.fold_in(key_order, number), count=6, batch_size=4) for number in range(3)]
    for rows in jnp.concatenate(orders)[: SETTINGS.steps]:
        state, _ = step(state, x[rows], y[rows])
    close(jax.tree.map(lambda leaf: leaf[1], trained), state.variables)


@pytest.mark.medium
def test_half_precision_is_that_of_the_inner_model(trained):
    """The same networks within the precision of bfloat16, with parameters in float32."""
    half = training.train(
        KEYS, NETWORK, pairs(0, 6), preprocessing=DATA, settings=SETTINGS._replace(precision="bfloat16")
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.float32)}
    kernels = [networks["params"]["conv1"]["kernel"] for networks in (half, trained)]
    assert 0 < relative(*kernels) < 0.1


@pytest.mark.medium
def test_networks_in_parallel_on_an_accelerator_use_patches(trained, monkeypatch):
    """The same networks; one alone keeps the backend's convolution."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert training._in_parallel(NETWORK, 2).form == "patches" and training._in_parallel(NETWORK, 1) is NETWORK
    found = training.train(KEYS, NETWORK, pairs(0, 6), preprocessing=DATA, settings=SETTINGS, together=2)
    close(found, trained)


def test_a_seed_is_the_same_network_however_many_there_are(trained):
    more = jax.random.split(jax.random.key(0), 5)
    assert np.array_equal(jax.random.key_data(more[:2]), jax.random.key_data(KEYS))


def test_the_number_of_pieces_changes_nothing(trained, monkeypatch):
    monkeypatch.setattr(training, "PIECES", 1)
    whole = training.train(KEYS, NETWORK, pairs(0, 6), preprocessing=DATA, settings=SETTINGS, together=2)
    jax.tree.map(np.testing.assert_array_equal, whole, trained)


@pytest.mark.medium
def test_training_on_bytes_is_training_on_their_normalised_images():
    targets = DATA.targets(jnp.asarray(FEATURES[:6]))
    images = jnp.asarray(IMAGES[:6])
    options = {"preprocessing": DATA, "settings": SETTINGS}
    found, expected = (training.train(KEYS, NETWORK, (x, targets), **options) for x in (images, DATA.images(images)))
    close(found, expected)


@pytest.mark.medium
def test_each_seed_may_have_pairs_of_its_own(trained):
    x, y = pairs(0, 6)
    both = jnp.stack([pairs(7, 6)[0], x]), jnp.stack([pairs(7, 6)[1], y])
    found = training.train(KEYS, NETWORK, both, preprocessing=DATA, settings=SETTINGS)
    close(jax.tree.map(lambda leaf: leaf[1], found), jax.tree.map(lambda leaf: leaf[1], trained))
    assert not np.allclose(found["params"]["fc"]["bias"][0], trained["params"]["fc"]["bias"][0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10_1", "convnet_4_in"])
def test_other_architectures_learn(name):
    """The error on the pairs falls well below that of predicting their mean."""
    network = architectures.make(name, DIM, (SIZE, SIZE, CHANNELS))
    x, y = pairs(0, 6)
    settings = training.Settings(steps=60, rates=(training.Rate(0.05, 0.0),))
    found = training.train(KEYS[:1], network, (x, y), preprocessing=DATA, settings=settings)
    one = jax.tree.map(lambda leaf: leaf[0], found)
    predicted = network.apply(one, x, train=True, mutable=["batch_stats"])[0][1]
    assert float(jnp.mean(jnp.square(predicted - y))) < 0.5 * float(jnp.var(y))


@pytest.mark.medium
def test_networks_side_by_side_may_have_their_own_rates(trained):
    """And a cosine ends at a rate of zero; neither is another program."""
    x, y = pairs(0, 6)
    rates = [training.Rate(0.02, 0.1), training.PUBLISHED]
    found = training.train(
        KEYS, NETWORK, (x, y), preprocessing=DATA, settings=SETTINGS._replace(cosine=True), rates=rates, together=2
    )
    key_init, key_order = jax.random.split(KEYS[0])
    state = inner.init(key_init, x.shape[1:], DIM, widths=WIDTHS)
    orders = [epochs.shuffled(jax.random.fold_in(key_order, number), count=6, batch_size=4) for number in range(3)]
    for number, rows in enumerate(jnp.concatenate(orders)[: SETTINGS.steps]):
        rate = 0.02 * 0.5 * (1 + np.cos(np.pi * number / SETTINGS.steps))
        state, _ = inner.step(state, x[rows], y[rows], settings=inner.Settings(rate, 0.9, 0.1))
    close(jax.tree.map(lambda leaf: leaf[0], found), state.variables)


def test_steps_or_epochs():
    assert training.Settings(steps=7).steps_on(1000) == 7
    assert training.Settings(epochs=3, batch_size=4).steps_on(6) == 6
    assert training.Settings(epochs=3, batch_size=4).steps_on(3) == 3


def test_calibrated_statistics_are_exact():
    """Of every layer on the images, where the layers before it are normalised by theirs."""
    one = jax.tree.map(lambda leaf: leaf[0], training.fresh(KEYS, NETWORK, (SIZE, SIZE, CHANNELS)))
    mean, std = preprocess.channel_moments(IMAGES)
    found = extraction.calibrate(NETWORK, one, IMAGES, mean=mean, std=std)
    x = DATA.images(jnp.asarray(IMAGES))
    # In eval mode the calibrated network does to these images what train mode does, up to n / (n - 1).
    expected = NETWORK.apply(one, x, train=True, mutable=["batch_stats"])[0][0]
    np.testing.assert_allclose(NETWORK.apply(found, x, train=False)[0], expected, rtol=2e-2, atol=2e-3)
    assert not np.allclose(NETWORK.apply(one, x, train=False)[0], expected, rtol=0.1)
    jax.tree.map(np.testing.assert_array_equal, found["params"], one["params"])
    plain = models.ConvNet(WIDTHS, DIM, "instance")
    without = jax.tree.map(lambda leaf: leaf[0], training.fresh(KEYS, plain, (SIZE, SIZE, CHANNELS)))
    assert extraction.calibrate(plain, without, IMAGES, mean=mean, std=std) is without


def test_fresh_networks_are_those_that_training_begins_with():
    fresh = training.fresh(KEYS, NETWORK, (SIZE, SIZE, CHANNELS))
    key_init, _ = jax.random.split(KEYS[0])
    close(jax.tree.map(lambda leaf: leaf[0], fresh), models.initialize(key_init, NETWORK, (SIZE, SIZE, CHANNELS)), 1e-6)


def test_extract_handles_a_remainder(trained, monkeypatch):
    monkeypatch.setattr(extraction, "EXTRACT", 8)
    one = jax.tree.map(lambda leaf: leaf[0], trained)
    mean, std = preprocess.channel_moments(IMAGES)
    found = extraction.extract(NETWORK, one, IMAGES[:19], mean=mean, std=std)
    expected = jax.jit(inner.features)(one, DATA.images(jnp.asarray(IMAGES[:19])))
    assert found.shape == (19, 2 * 2 * WIDTHS[-1])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_as_many_side_by_side_as_the_memory_holds(monkeypatch):
    each = training.activation_bytes(NETWORK, (4, SIZE, SIZE, CHANNELS))
    # At the least the input of every layer that has a gradient.
    assert each > 4 * 4 * (SIZE * SIZE * (CHANNELS + 3 * WIDTHS[0]) + SIZE * SIZE / 4 * 3 * WIDTHS[1])
    assert training.activation_bytes(NETWORK, (8, SIZE, SIZE, CHANNELS)) > 1.9 * each
    for memory, expected in ((0, 1), (2.6, 2), (100, 100)):
        monkeypatch.setattr(training, "memory_bytes", lambda memory=memory: (memory + 1e-6) * each / training.SHARE)
        assert training.side_by_side(NETWORK, (4, SIZE, SIZE, CHANNELS)) == expected


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

    seen, number = jax.jit(run)(jax.random.key(0))
    orders = np.asarray(seen).reshape(4, -1)
    assert int(number) == 4 * per_epoch
    for order in orders:
        np.testing.assert_array_equal(np.sort(order[:count]), np.arange(count))
        np.testing.assert_array_equal(order[count:], order[: len(order) - count])
    assert len({order.tobytes() for order in orders}) > 1
