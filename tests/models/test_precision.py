"""bfloat16 layers: what stays in float32, and that the loss goes where it goes in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pairs
from sklearn.datasets import load_digits

from ssdd_jax import config as configuration
from ssdd_jax import inner, methods, teacher
from ssdd_jax.data import preprocess
from ssdd_jax.models import ConvNet, layers
from ssdd_jax.models.convnet import initialize
from ssdd_jax.models.precision import NAMES, network_input, resolve

SEEDS, STEPS = 4, 36


def test_names():
    x = jnp.ones((1, 2, 2, 1))
    assert network_input(x, "float32").dtype == jnp.float32 and network_input(x, "bfloat16").dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="precision='auto': a network computes in float32 or bfloat16"):
        network_input(x, "auto")


def test_auto_depends_on_the_platform():
    assert {platform: resolve("auto", platform) for platform in ("cpu", "cuda", "tpu")} == {
        "cpu": "float32", "cuda": "bfloat16", "tpu": "bfloat16",
    }  # fmt: skip
    assert [resolve(name, "cuda") for name in NAMES[1:]] == ["float32", "bfloat16"]


@pytest.mark.slow
def test_convolutions_are_half_and_the_rest_is_not(monkeypatch):
    """Products in bfloat16; statistics, features, predictions, loss and gradients in float32."""
    seen, conv = [], layers.conv
    monkeypatch.setattr(layers, "conv", lambda x, k, **sizes: seen.append((x.dtype, k.dtype)) or conv(x, k, **sizes))
    network, (x, y) = ConvNet((4, 8), 6), pairs()
    variables = initialize(jax.random.key(0), network, x.shape[1:])
    seen.clear()
    (features, prediction), updated = network.apply(
        variables, network_input(x, "bfloat16"), train=True, mutable=["batch_stats"]
    )
    assert seen == [(jnp.bfloat16, jnp.bfloat16)] * 2
    assert {leaf.dtype for leaf in jax.tree.leaves((features, prediction, updated))} == {jnp.dtype(jnp.float32)}
    settings = inner.Settings(precision="bfloat16")
    start = inner.State(variables, inner.optimizer(settings).init(variables["params"]))
    state, loss = jax.jit(lambda state, x, y: inner.step(state, x, y, settings=settings))(start, x, y)
    assert {leaf.dtype for leaf in jax.tree.leaves((state, loss))} == {jnp.dtype(jnp.float32)}
    exact = jax.jit(inner.loss)(variables["params"], variables["batch_stats"], x, y)[0]
    assert loss != exact  # it was computed in another precision
    np.testing.assert_allclose(loss, exact, rtol=2e-2)


def curves(precision):
    """Outer losses `(seeds,steps)` of Boost-SSDD on digits, whose teacher is a random projection through a tanh."""
    data = load_digits()
    images = (data.images * (255 / 16)).astype(np.uint8)[:400, :, :, None]
    mixing = np.random.default_rng(0).normal(size=(64, 12)) / 8
    targets = np.tanh(images.reshape(400, -1) / 255 @ mixing).astype(np.float32)
    chosen = configuration.default()
    chosen.update_from_flattened_dict(
        {
            "precision": precision, "storage.N": 10, "storage.base_size": 8, "views": ("rot0", "rot180"),
            "student.widths": (8, 16), "pool.size": 3, "pool.steps": 20, "distill.steps": STEPS,
            "distill.batch_size": 100, "distill.learning_rate": 3e-2,
        }
    )  # fmt: skip
    method = methods.make(chosen, methods.Problem((8, 8, 1), 12, 400))
    constants = preprocess.fit(images, targets)
    rows = np.arange(method.samples)
    scaled = constants.targets(jnp.asarray(targets))
    source = methods.Source(jnp.asarray(images), scaled, jnp.asarray(rows), jnp.stack([scaled[rows]] * 2), constants)

    def run(key):
        start = method.init(key, source)
        return jax.lax.scan(lambda state, _: method.step(state, source), start, length=STEPS)[1].loss

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), SEEDS)))


@pytest.mark.slow
def test_loss_curve_stays_within_the_noise_of_float32():
    """In every sixth of the way the means are within two of the deviations between seeds; and the loss falls."""
    exact, half = (curves(name).reshape(SEEDS, 6, STEPS // 6).mean(2) for name in ("float32", "bfloat16"))
    assert not np.array_equal(exact, half)
    assert (np.abs(half.mean(0) - exact.mean(0)) < 2 * exact.std(0, ddof=1)).all()
    assert half.mean(0)[-1] < 0.9 * half.mean(0)[0] and exact.mean(0)[-1] < 0.9 * exact.mean(0)[0]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_teacher_step(precision):
    """The same start, the same views: losses within the precision of bfloat16, parameters in float32."""
    settings = teacher.Settings(
        width=2, blocks=(1, 1), projector_hidden=8, projector_output=8, epochs=2, batch_size=8, warmup_epochs=1
    )
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    losses = []
    for name in ("float32", precision):
        made = teacher.make(settings._replace(precision=name), image_shape=(8, 8, 3), images_count=16,
                            mean=[0.5] * 3, std=[0.25] * 3)  # fmt: skip
        state, info = jax.jit(made.step)(made.init(jax.random.key(0)), jnp.asarray(images[:8]))
        assert {leaf.dtype for leaf in jax.tree.leaves(state.variables)} == {jnp.dtype(jnp.float32)}
        losses.append(float(info.loss))
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.1)
    assert (losses[0] == losses[1]) == (precision == "float32")
