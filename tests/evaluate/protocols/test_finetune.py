"""Fine-tuning: each part by hand and against PyTorch, the whole on something separable."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax import models
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate.protocols import finetune

pytestmark = pytest.mark.slow

SHAPE = (8, 8, 3)
NETWORK = models.ConvNet((4,), 16)  # as many as a head has at least: one program for most tests
MEAN, STD = jnp.array([0.5, 0.4, 0.6]), jnp.array([0.2, 0.25, 0.3])
CONSTANTS = {"mean": MEAN, "std": STD}
SHORT = finetune.Settings(steps=12, batch_size=16, learning_rate=0.05, padding=1, per_call=4)
augment = jax.jit(finetune.augment, static_argnames=("padding", "flip"))


class Flat(nn.Module):
    """A linear layer of the pixels."""

    dim: int

    @nn.compact
    def __call__(self, x, train):
        features = x.reshape(len(x), -1)
        return features, nn.Dense(self.dim, name="fc", bias_init=nn.initializers.normal(0.1))(features)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Compiled without optimisation, and once for all tests."""
    options = {"static_argnames": ("network", "settings"), "donate_argnames": "states"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "_steps", jax.jit(finetune._steps.__wrapped__, **options))
        patch.setattr(finetune, "_predict", jax.jit(finetune._predict.__wrapped__, static_argnames="network"))
        yield


def keys(seed, count=2):
    return jax.random.split(jax.random.key(seed), count)


@pytest.fixture(scope="module")
def variables():
    """Two pre-trained networks, with running statistics that are not those of fresh ones."""
    found = jax.vmap(lambda key: models.initialize(key, NETWORK, SHAPE))(keys(9))
    stats = jax.tree.map(lambda leaf: 0.3 * leaf + 0.2, found["batch_stats"])
    return {"params": found["params"], "batch_stats": stats}


def brightness(seed, count=40, classes=2, noise=60):
    """The brighter an image, the higher its class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % classes
    level = 40 + 175 * labels / (classes - 1)
    images = level[:, None, None, None] + noise * generator.normal(size=(count, *SHAPE))
    return np.clip(images, 0, 255).astype(np.uint8), labels


def noise(seed, count):
    """Images and labels that have nothing to do with each other: every network predicts something else."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, *SHAPE), np.uint8), generator.integers(0, 2, count, np.int32)


def run(seeds, variables, train, test, *, classes=2, settings=SHORT, **options):
    return finetune.run(
        seeds, NETWORK, variables, train, test, classes=classes, settings=settings, **CONSTANTS, **options
    )


def coloured(seed, count):
    """Red, green and blue images."""
    images, labels = brightness(seed, count, 3)
    bright = np.eye(3, dtype=np.uint8)[labels][:, None, None]
    return images // 2 + 80 * bright, labels


def test_it_learns_what_is_separable(variables):
    train, test = coloured(0, 60), coloured(1, 300)
    settings = SHORT._replace(steps=40)
    found = run(keys(0), variables, train, test, classes=3, settings=settings)
    assert found.shape == (2,) and found.min() > 95.0
    # More test images than go through at a time; wrong labels are wrong predictions.
    turned = (test[0], (test[1] + (np.arange(300) < 75)) % 3)
    wrong = run(keys(0), variables, train, turned, classes=3, settings=settings)
    np.testing.assert_allclose(wrong, 75.0, atol=5.0)
    settings = settings._replace(steps=4, learning_rate=1e-9)
    untrained = run(keys(0), variables, train, test, classes=3, settings=settings)
    assert untrained.max() < 85.0


def trained(seeds, variables, settings):
    """The variables after training with two classes."""
    own = jax.vmap(lambda key: jax.random.split(key, 2))(seeds)
    options = {"classes": jnp.int32(2), "settings": settings, **CONSTANTS}
    return finetune.fit(own, NETWORK, jax.tree.map(jnp.copy, variables), brightness(2, count=21), **options)


def test_seeds_together_equal_seeds_alone(variables):
    both = trained(keys(0), variables, SHORT)
    for seed in ([0], [1]):
        own, one = jax.tree.map(lambda leaf: leaf[np.array(seed)], (keys(0), variables))  # noqa: B023
        alone = trained(own, one, SHORT)
        jax.tree.map(lambda many, one: np.testing.assert_allclose(many[np.array(seed)], one, atol=1e-4), both, alone)  # noqa: B023
    same = jax.tree.map(lambda leaf: leaf[:1].repeat(2, 0), variables)
    one, other = trained(keys(0), same, SHORT)["params"]["conv0"]["kernel"]
    assert not np.allclose(one, other, atol=1e-3)  # each has its own order and augmentation


def test_groups_give_every_seed_its_own_result(variables):
    three = jax.tree.map(lambda leaf: leaf[np.array([0, 1, 1])], variables)
    data = noise(3, 40), noise(4, 200)
    found = run(keys(1, 3), three, *data, together=2)
    assert len(set(found)) == 3
    np.testing.assert_allclose(run(keys(1, 3), three, *data, together=1), found, atol=1.01)  # as rounding has it
    turned = run(keys(1, 3)[::-1], jax.tree.map(lambda leaf: leaf[::-1], three), *data, together=2)
    np.testing.assert_allclose(turned, found[::-1], atol=1.01)


def test_calls_of_any_length_are_the_same_training(variables):
    found = [trained(keys(0), variables, SHORT._replace(steps=7, per_call=count)) for count in (4, 50)]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), *found)
    shorter = trained(keys(0), variables, SHORT._replace(steps=6))
    assert not np.allclose(shorter["params"]["fc"]["kernel"], found[0]["params"]["fc"]["kernel"], atol=1e-3)


def test_one_program_serves_every_target(variables):
    run(keys(0), variables, brightness(0), brightness(1))
    before = finetune._steps._cache_size(), finetune._predict._cache_size()
    rate = SHORT._replace(steps=9, learning_rate=0.02)
    found = run(keys(0), variables, brightness(0, 55, 16), brightness(1, 7, 16), classes=16, settings=rate)
    assert found.shape == (2,)
    run(keys(0), variables, brightness(0, 5, 3), brightness(1, 300, 3), classes=3)
    assert (finetune._steps._cache_size(), finetune._predict._cache_size()) == before


def test_surplus_columns_of_the_head_change_nothing(variables, monkeypatch):
    data = noise(3, 40), noise(4, 200)
    found = run(keys(0), variables, *data)
    monkeypatch.setattr(finetune, "HEAD_AT_LEAST", 2)
    np.testing.assert_allclose(run(keys(0), variables, *data), found, atol=0.51)  # as rounding has it


def test_loss_ignores_whatever_surplus_columns_hold():
    images, labels = brightness(0, 6, 3)
    x, labels = jnp.asarray(images, jnp.float32) / 255, jnp.asarray(labels)
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(192, 3)), jnp.float32)
    params = {"fc": {"kernel": kernel, "bias": jnp.zeros(3)}}
    wide = jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, 2)], constant_values=7.0), params)

    def of(params, dim):
        one = functools.partial(finetune.loss, network=Flat(dim), classes=jnp.int32(3))
        return jax.value_and_grad(one, has_aux=True)(params, {}, x, labels)

    (value, _), slope = jax.jit(of, static_argnums=1)(params, 3)
    (found, _), wide_slope = jax.jit(of, static_argnums=1)(wide, 5)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    np.testing.assert_allclose(found, -np.log(_share(x, kernel)[np.arange(6), labels]).mean(), rtol=1e-4)
    for name, leaf in wide_slope["fc"].items():
        np.testing.assert_array_equal(leaf[..., 3:], 0.0)
        np.testing.assert_allclose(leaf[..., :3], slope["fc"][name], atol=1e-6)


def _share(x, kernel):
    found = np.exp(np.asarray(x, np.float64).reshape(len(x), -1) @ np.asarray(kernel, np.float64))
    return found / found.sum(1, keepdims=True)


def test_with_head_keeps_all_but_the_head(variables):
    one = jax.tree.map(lambda leaf: leaf[0], variables)
    network, found = finetune.with_head(jax.random.key(0), NETWORK, one, 40, SHAPE)
    assert network == models.ConvNet((4,), 40)
    fc, kept = found["params"].pop("fc"), {name: layer for name, layer in one["params"].items() if name != "fc"}
    jax.tree.map(np.testing.assert_array_equal, found, {"params": kept, "batch_stats": one["batch_stats"]})
    assert fc["kernel"].shape == (64, 40) and fc["bias"].shape == (40,)
    # PyTorch's start: uniform within one over the root of the inputs.
    assert 0.95 * 64**-0.5 < np.abs(fc["kernel"]).max() <= 64**-0.5
    other = finetune.with_head(jax.random.key(1), NETWORK, one, 40, SHAPE)[1]["params"]["fc"]
    assert not np.allclose(other["kernel"], fc["kernel"])


@pytest.mark.parametrize("classes", [2, 3])
def test_steps_equal_torch(classes):
    """SGD with momentum, decay of every parameter and the rate of each step; from bytes to the loss."""
    torch = pytest.importorskip("torch")
    settings = finetune.Settings(steps=3, learning_rate=0.3, weight_decay=0.1, padding=0, flip=0.0)
    start = models.initialize(jax.random.key(0), Flat(4), SHAPE)
    linear = torch.nn.Linear(192, classes)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(np.asarray(start["params"]["fc"]["kernel"]).T[:classes].copy()))
        linear.bias.copy_(torch.tensor(np.asarray(start["params"]["fc"]["bias"])[:classes].copy()))
    sgd = torch.optim.SGD(linear.parameters(), lr=0.3, momentum=0.9, weight_decay=0.1)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 3)
    state = finetune.State(start, jax.tree.map(jnp.zeros_like, start["params"]))
    one = jax.jit(
        functools.partial(finetune.step, network=Flat(4), classes=jnp.int32(classes), settings=settings, **CONSTANTS)
    )
    for number, rate in enumerate(finetune.rates(settings)):
        images, labels = brightness(number, 5, classes, noise=200)
        np.testing.assert_allclose(rate, sgd.param_groups[0]["lr"], rtol=1e-6)
        state, loss = one(jax.random.key(number), state, (jnp.asarray(images), jnp.asarray(labels)), jnp.float32(rate))
        x = (torch.tensor(images).float() / 255 - torch.tensor(np.array(MEAN))) / torch.tensor(np.array(STD))
        expected = torch.nn.functional.cross_entropy(linear(x.flatten(1)), torch.tensor(labels).long())
        np.testing.assert_allclose(loss, float(expected.detach()), rtol=1e-5, atol=1e-5)
        sgd.zero_grad()
        expected.backward()
        sgd.step()
        annealing.step()
    found = state.variables["params"]["fc"]
    np.testing.assert_allclose(found["kernel"][:, :classes].T, linear.weight.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(found["bias"][:classes], linear.bias.detach().numpy(), atol=1e-5)


def test_rates_fall_along_a_cosine():
    found = finetune.rates(finetune.Settings(steps=4, learning_rate=2.0))
    np.testing.assert_allclose(found, [2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5], rtol=1e-6)


def test_a_step_moves_the_running_statistics(variables):
    one = jax.tree.map(lambda leaf: leaf[0], variables)
    images, labels = brightness(0)
    x = (jnp.asarray(images, jnp.float32) / 255.0 - MEAN[None, None, None]) / STD[None, None, None]
    _, updated = NETWORK.apply(one, x, train=True, mutable=["batch_stats"])
    state = finetune.State(one, jax.tree.map(jnp.zeros_like, one["params"]))
    options = {"network": NETWORK, "classes": jnp.int32(16), "settings": finetune.Settings(padding=0, flip=0.0)}
    one_step = jax.jit(functools.partial(finetune.step, **options, **CONSTANTS))
    after, _ = one_step(jax.random.key(0), state, (jnp.asarray(images), jnp.asarray(labels)), jnp.float32(0.0))
    found = after.variables["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, updated["batch_stats"])
    assert not np.allclose(found["bn0"]["mean"], one["batch_stats"]["bn0"]["mean"])


def test_augment_crops_padded_pixels_and_flips():
    image = np.arange(1, 51, dtype=np.uint8).reshape(5, 5, 2)
    count = 4000
    found = augment(jax.random.key(0), jnp.asarray(np.tile(image, (count, 1, 1, 1))), padding=4, flip=0.25)
    assert found.dtype == jnp.uint8
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    windows = {}
    for top in range(9):
        for left in range(9):
            window = padded[top : top + 5, left : left + 5]
            windows |= {window.tobytes(): (top, left, 0), window[:, ::-1].tobytes(): (top, left, 1)}
    # Every result is one of these windows, which all differ.
    assert len(windows) == 162
    tops, lefts, flips = np.array([windows[one.tobytes()] for one in np.asarray(found)]).T
    for corner in (tops, lefts):
        np.testing.assert_allclose(np.bincount(corner) / count, 1 / 9, atol=0.025)
    np.testing.assert_allclose(flips.mean(), 0.25, atol=0.03)
    assert np.abs(np.corrcoef([tops, lefts, flips]) - np.eye(3)).max() < 0.07


def test_augment_without_padding_or_chance():
    images = jnp.asarray(brightness(0)[0])
    np.testing.assert_array_equal(augment(jax.random.key(0), images, padding=0, flip=0.0), images)
    np.testing.assert_array_equal(augment(jax.random.key(0), images, padding=0, flip=1.0), images[:, :, ::-1])


def test_pixels_are_cropped_before_they_are_normalised(monkeypatch):
    """The border of a white image is black, and black is not the mean."""
    seen = []

    def loss(params, stats, x, labels, **options):
        seen.append(np.asarray(x))
        return jnp.sum(params), stats

    monkeypatch.setattr(finetune, "loss", loss)
    state = finetune.State({"params": jnp.zeros(2), "batch_stats": {}}, jnp.zeros(2))
    batch = jnp.full((20, *SHAPE), 255, jnp.uint8), jnp.zeros(20, jnp.int32)
    options = {"network": NETWORK, "classes": jnp.int32(2), "settings": finetune.Settings(), **CONSTANTS}
    finetune.step(jax.random.key(0), state, batch, jnp.float32(0.1), **options)
    black, white = (0.0 - np.asarray(MEAN)) / STD, (1.0 - np.asarray(MEAN)) / STD
    pixels = np.unique(seen[0].reshape(-1, 3), axis=0)
    np.testing.assert_allclose(pixels, [black, white], rtol=1e-5)


def test_batches_are_shuffled_epochs():
    def take(seed, count=10, size=4, batches=6):
        order = finetune._batches(jax.random.key(seed), count, size)
        return np.stack([next(order) for _ in range(batches)])

    found = take(0).reshape(2, 12)
    for epoch in found:
        np.testing.assert_array_equal(np.sort(epoch[:10]), np.arange(10))
        np.testing.assert_array_equal(epoch[10:], epoch[:2])
    assert not np.array_equal(*found)
    np.testing.assert_array_equal(take(0), take(0))
    assert not np.array_equal(take(0), take(1))
    # A set smaller than a batch comes up as evenly as it can.
    assert sorted(np.bincount(take(0, 3, 8, 1)[0])) == [2, 3, 3]


def test_divergence_is_one_clear_line(variables):
    settings = SHORT._replace(learning_rate=1e30)
    with pytest.raises(UserError, match=r"finetune: .*diverged.* smaller than 1e\+30"):
        run(keys(0), variables, brightness(0), brightness(1), settings=settings)


def test_data_must_fit(variables):
    images, labels = brightness(0)
    for train, options, message in [
        ((images.astype(np.float32), labels), {}, "training images must be uint8"),
        ((images, labels[:-1]), {}, r"labels \(n,\)"),
        ((images, labels + 1), {}, r"training labels must be in 0..1, got 1..2"),
        ((images, labels), {"settings": SHORT._replace(steps=0)}, "must be positive"),
        ((images, labels), {"together": 0}, "together must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(keys(0), variables, train, brightness(1), **options)
