"""Barlow Twins: the loss against stored numbers, the step, the features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets

from ssdd_jax.models.frozen import Frozen
from ssdd_jax.models.vit import Encoder
from ssdd_jax.teacher import Augmentation, Info, Settings, features, loss, make
from ssdd_jax.teacher.barlow_twins import _forward_views
from ssdd_jax.teacher.network import Network, batch_of, initialize, normalize
from ssdd_jax.training import streaming

SHAPE, COUNT = (8, 8, 1), 70
SETTINGS = Settings(
    width=2,
    blocks=(1, 1),
    projector_hidden=16,
    projector_output=16,
    epochs=10,
    batch_size=32,
    warmup_epochs=2,
    learning_rate=0.8,
    # Mild, so that the loss of these few images falls with every seed: by the default it is mostly noise.
    augmentation=Augmentation(
        crop_scale=(0.8, 1.0), jitter_probability=0.0, solarize_probability=(0.0, 0.0), flip_probability=0.0
    ),
)
MEAN, STD = (0.4,), (0.3,)


@pytest.fixture(scope="module")
def images():
    digits = sklearn.datasets.load_digits().images[:COUNT]
    return jnp.asarray(digits[..., None] * 15, jnp.uint8)


@pytest.fixture(scope="module")
def trainer():
    return make(SETTINGS, image_shape=SHAPE, images_count=COUNT, mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def run(trainer):
    """`run(state, images, steps)`: the loop that training uses, compiled once."""

    rows = np.stack([trainer.rows(jax.random.key(0))(step) for step in range(trainer.steps)])

    def loop(state, images, steps):
        info = Info(loss=jnp.zeros(()), learning_rate=jnp.zeros(()))

        def step(_, carry):
            state = carry[0]
            return trainer.step(state, images[jnp.asarray(rows)[state.step]])

        return jax.lax.fori_loop(0, steps, step, (state, info))

    return jax.jit(loop, donate_argnums=0)


@pytest.mark.medium
def test_loss_equals_the_published_implementation(x64, fixture_arrays):
    arrays = fixture_arrays("barlow_twins")
    z1, z2 = (jnp.asarray(arrays[name], jnp.float64) for name in ("z1", "z2"))
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(z1, z2)
    # The stored numbers are float32.
    np.testing.assert_allclose(value, arrays["loss"], rtol=1e-5)
    for name, gradient in zip(("grad_z1", "grad_z2"), gradients, strict=True):
        scale = np.abs(arrays[name]).max()
        np.testing.assert_allclose(gradient / scale, arrays[name] / scale, rtol=0, atol=1e-5)


@pytest.mark.medium
def test_loss_equals_torch_in_float64(x64):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    z1, z2 = (rng.normal(size=(20, 6)) for _ in range(2))
    t1, t2 = (torch.tensor(z, requires_grad=True) for z in (z1, z2))
    bn = torch.nn.BatchNorm1d(6, affine=False).double()
    difference = (bn(t1).T @ bn(t2)) / 20 - torch.eye(6)
    off = ~torch.eye(6, dtype=torch.bool)
    value = 0.1 * (difference.diagonal().pow(2).sum() + 0.0051 * difference[off].pow(2).sum())
    value.backward()
    ours, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(jnp.asarray(z1), jnp.asarray(z2))
    np.testing.assert_allclose(ours, value.detach().numpy(), rtol=1e-8)
    np.testing.assert_allclose(gradients[0], t1.grad.numpy(), rtol=0, atol=1e-8)
    np.testing.assert_allclose(gradients[1], t2.grad.numpy(), rtol=0, atol=1e-8)


@pytest.mark.medium
def test_initialize_draws_what_the_modules_would():
    network = Network(8, (2, 2, 2, 2), 64, 32)
    x = jnp.zeros((1, 16, 16, 3))
    ours = jax.jit(lambda key: initialize(key, network, x.shape[1:]))(jax.random.key(0))
    theirs = jax.eval_shape(lambda key: network.init(key, x, train=False), jax.random.key(1))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(f"{a} {b}"), ours, theirs)
    linear = ours["params"]["projector"]["linear2"]["kernel"]
    for kernel, std in (
        (ours["params"]["backbone"]["stage4_block2"]["conv1"]["kernel"], np.sqrt(2 / (9 * 64))),
        (ours["params"]["backbone"]["stage4_block1"]["shortcut"]["kernel"], np.sqrt(2 / 64)),
        (linear, np.sqrt(1 / (3 * 64))),
    ):
        np.testing.assert_allclose(np.std(kernel), std, rtol=5 / np.sqrt(kernel.size))
    block = ours["params"]["backbone"]["stem_norm"]
    stats = ours["batch_stats"]["backbone"]["stem_norm"]
    for name, (leaf, value) in {
        "scale": (block["scale"], 1.0),
        "bias": (block["bias"], 0.0),
        "mean": (stats["mean"], 0.0),
        "var": (stats["var"], 1.0),
    }.items():
        np.testing.assert_array_equal(leaf, np.full(8, value, np.float32), err_msg=name)


@pytest.mark.medium
def test_both_views_equal_two_forward_passes():
    network = Network(2, (1, 1), 8, 8)
    variables = initialize(jax.random.key(0), network, SHAPE)
    views = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, *SHAPE)), jnp.float32)
    params, stats = variables["params"], variables["batch_stats"]

    @jax.jit
    def forward(stats, view):
        variables = {"params": params, "batch_stats": stats}
        return network.apply(variables, view, train=True, mutable=["batch_stats"])

    z1, first = forward(stats, views[0])
    z2, second = forward(first["batch_stats"], views[1])
    expected = second["batch_stats"]
    z, moved = jax.jit(lambda views: _forward_views(network, params, stats, views))(views)
    np.testing.assert_allclose(z, np.stack([z1, z2]), rtol=1e-3, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), moved, expected)


def test_an_epoch_sees_each_image_once_and_is_drawn_once(trainer, monkeypatch):
    drawn, on_host = [], streaming.on_host

    def counting(function):
        compiled = on_host(function)
        return lambda key, epoch: drawn.append(int(epoch)) or compiled(key, epoch)

    monkeypatch.setattr(streaming, "on_host", counting)
    rows = trainer.rows(jax.random.key(0))
    found = [rows(step) for step in range(4)]
    first, second = np.concatenate(found[:2]), np.concatenate(found[2:])
    for epoch in (first, second):
        assert len(set(epoch)) == 64 and epoch.min() >= 0 and epoch.max() < COUNT
    assert not np.array_equal(first, second) and drawn == [0, 1]


@pytest.mark.medium
def test_training_in_a_loop(trainer, run, images):
    assert trainer.steps == 10 * (COUNT // 32)
    start = jax.jit(trainer.init)(jax.random.key(0))
    before = jax.tree.map(np.array, start.variables)
    state, first = run(start, images, 1)
    assert float(first.learning_rate) == pytest.approx(SETTINGS.warmup_start)
    state, info = run(state, images, 3)
    assert int(state.step) == 4
    # 0.8 for a batch of 256 is 0.1 for one of 32: the peak, reached with the last step of the warm-up.
    assert float(info.learning_rate) == pytest.approx(0.1)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != np.asarray(b))), before, state.variables)
    assert all(jax.tree.leaves(changed))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.variables))
    _, last = run(state, images, trainer.steps - 4)
    assert float(last.loss) < 0.5 * float(first.loss)


@pytest.mark.medium
def test_resuming_is_exact(trainer, run, images):
    once, _ = run(jax.jit(trainer.init)(jax.random.key(1)), images, 4)
    twice, _ = run(jax.jit(trainer.init)(jax.random.key(1)), images, 2)
    twice, _ = run(twice, images, 2)
    jax.tree.map(np.testing.assert_array_equal, once.variables, twice.variables)


@pytest.mark.medium
def test_features_do_not_depend_on_the_batch(trainer, images):
    variables = jax.jit(trainer.init)(jax.random.key(0)).variables
    out = features(variables, images, mean=MEAN, std=STD, batch_size=32)
    assert out.shape == (COUNT, 2 * SETTINGS.width) and out.dtype == jnp.float32
    alone = features(variables, images[64:67], mean=MEAN, std=STD, batch_size=3)
    np.testing.assert_allclose(out[64:67], alone, rtol=1e-5, atol=1e-6)


def test_normalize():
    x = jnp.ones((2, 3, 3, 2))
    out = normalize(x, (0.5, 0.25), (0.5, 0.25))
    np.testing.assert_allclose(out[0, 0, 0], [1.0, 3.0])


@pytest.mark.medium
def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="only 10 training images: lower it"):
        make(SETTINGS, image_shape=SHAPE, images_count=10, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="warmup_epochs is 11: it must be below epochs"):
        make(SETTINGS._replace(warmup_epochs=11), image_shape=SHAPE, images_count=COUNT, mean=MEAN, std=STD)


def test_large_inputs_are_fewer_in_a_batch():
    """A transformer's attention on 256 images of 518x518 would take tens of gigabytes."""
    network = Frozen({}, None, None, network=Encoder(14, 384, 12, 6, 1536), size=518)
    assert batch_of(network, (32, 32, 3)) == 256 * 224**2 // 518**2 == 47
    assert batch_of(network.replace(size=224), (32, 32, 3)) == batch_of(network.replace(size=0), (32, 32, 3)) == 256
    assert batch_of(network.replace(size=0), (448, 448, 3)) == 64
