"""Post-training by distillation: each part by hand and against PyTorch, the whole on something separable."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.data import preprocess
from ssdd_jax.methods.scdd import inversion, post_training
from ssdd_jax.models.resnet import ResNet
from ssdd_jax.teacher import network as teacher

pytestmark = pytest.mark.medium

CLASSES = 2
BLOCKS = (1, 1)
LOW = jnp.array([-2.0, -3.0, -4.0])
# No augmentation: what is learned can be compared number by number.
PLAIN = post_training.Settings(mixup=0.0, padding=0, flip=0.0)

logits = jax.jit(inversion.logits)
train = jax.jit(post_training.train, static_argnames=("width", "blocks", "classes", "settings"))


def brightness(seed, count=24):
    """Dark and bright images with their labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    images = generator.normal(size=(count, 8, 8, 3)) * 0.5 + (2.0 * labels - 1.0)[:, None, None, None]
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)


@pytest.fixture(scope="module")
def network():
    """A random backbone and the ridge classifier of its features: a teacher that knows dark from bright."""
    variables = teacher.initialize(jax.random.key(0), ResNet(2, BLOCKS), (8, 8, 3))
    images, labels = brightness(0, 64)
    features = np.asarray(jax.jit(teacher.features_of_inputs)(variables, images))
    design = np.concatenate([features, np.ones((64, 1))], 1)
    targets = 20.0 * (np.eye(CLASSES)[labels] - 0.5)
    weights = np.linalg.solve(design.T @ design + 1e-3 * np.eye(5), design.T @ targets)
    net = inversion.Network(variables, jnp.asarray(weights, jnp.float32))
    assert np.mean(np.argmax(logits(net, images), -1) == labels) > 0.95
    return net


@pytest.mark.slow
def test_student_learns_what_the_teacher_knows(network):
    """With the weights after the last epoch; labels that are turned round are all wrong."""
    images, _ = brightness(1)
    test, labels = brightness(2, 40)
    settings = post_training.Settings(epochs=15, batch_size=8, learning_rate=5e-3, padding=1)
    variables = train(
        jax.random.key(0), images, network, low=LOW, width=2, blocks=BLOCKS, classes=CLASSES, settings=settings
    )
    found = float(post_training.accuracy(variables, test, labels))
    assert found > 85.0
    np.testing.assert_allclose(post_training.accuracy(variables, test, 1 - labels), 100.0 - found, rtol=1e-5)


@pytest.mark.slow
def test_accuracy_goes_batch_by_batch_and_takes_bytes(network, monkeypatch):
    constants = preprocess.Preprocessing(jnp.full(3, 0.5), jnp.full(3, 0.2), jnp.zeros(1), jnp.ones(()))
    inputs, _ = brightness(2, 22)
    images = jnp.asarray(np.asarray(constants.pixels(inputs)) * 255, jnp.uint8)
    # The teacher itself in the student's place.
    variables = {name: {"backbone": collection} for name, collection in network.backbone.items()}
    variables["params"]["head"] = {"kernel": network.probe[:-1], "bias": network.probe[-1]}
    expected = np.argmax(np.asarray(logits(network, constants.images(images))), -1)
    assert set(expected) == {0, 1}
    monkeypatch.setattr(post_training, "EVAL_BATCH", 8)
    wrong_twice = expected.copy()
    wrong_twice[[0, 21]] = 1 - wrong_twice[[0, 21]]
    found = [
        post_training.accuracy(variables, images, jnp.asarray(known, jnp.int32), constants)
        for known in (expected, wrong_twice)
    ]
    np.testing.assert_allclose(found, [100.0, 100 * 20 / 22], rtol=1e-5)


@pytest.mark.slow
def test_training_is_a_function_of_its_key_and_vmaps(network):
    images, _ = brightness(1, 6)
    settings = PLAIN._replace(epochs=1, batch_size=4, mixup=0.8, padding=1, flip=0.5)
    one = functools.partial(post_training.train, low=LOW, width=2, blocks=(1,), classes=CLASSES, settings=settings)
    keys = jax.random.split(jax.random.key(0), 2)
    both = jax.jit(jax.vmap(one, in_axes=(0, None, None)))(keys, images, network)
    alone = jax.jit(one)(keys[1], images, network)
    jax.tree.map(lambda many, single: np.testing.assert_allclose(many[1], single, atol=2e-3), both, alone)
    assert not np.allclose(*both["params"]["head"]["kernel"])


@pytest.mark.slow
def test_one_step_of_adamw_by_hand(network):
    """The first step moves every parameter by the rate against its gradient's sign, and towards 0 by the decay."""
    images, _ = brightness(1, 6)
    settings = PLAIN._replace(epochs=1, learning_rate=0.01, weight_decay=0.5, temperature=2.0)
    make = functools.partial(train, jax.random.key(0), images, network, low=LOW, width=2, blocks=(1,), classes=2)
    start = make(settings=settings._replace(learning_rate=0.0))["params"]
    found = make(settings=settings)["params"]
    student, wanted = post_training.Student(2, (1,), 2), logits(network, images)

    @jax.jit
    @jax.grad
    def gradient(params):
        shapes = jax.eval_shape(lambda: student.init(jax.random.key(0), images, train=True))["batch_stats"]
        variables = {"params": params, "batch_stats": jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)}
        found, _ = student.apply(variables, images, train=True, mutable=["batch_stats"])
        return post_training.distillation_loss(found, wanted, temperature=2.0)

    def check(before, slope, after):
        clear = np.abs(slope) > 1e-5
        expected = before - 0.01 * (np.sign(slope) + 0.5 * before)
        np.testing.assert_allclose(np.where(clear, after, 0), np.where(clear, expected, 0), atol=1e-4)
        return clear.mean()

    clear = jax.tree.leaves(jax.tree.map(check, start, gradient(start), found))
    assert np.mean(clear) > 0.8


def test_classes_must_be_the_teacher_s(network):
    images, _ = brightness(1, 6)
    with pytest.raises(ValueError, match="2 classes, not 5"):
        post_training.train(jax.random.key(0), images, network, low=LOW, width=2, blocks=(1,), classes=5)


def test_loss_by_hand():
    student, known = jnp.array([[0.0, 0.0]]), jnp.array([[2.0 * math.log(3.0), 0.0]])
    found = post_training.distillation_loss(student, known, temperature=2.0)
    np.testing.assert_allclose(found, 0.75 * math.log(1.5) + 0.25 * math.log(0.5), rtol=1e-6)
    assert float(post_training.distillation_loss(known, known)) == 0.0
    slope = jax.grad(lambda logits: post_training.distillation_loss(student, logits))(known)
    np.testing.assert_array_equal(slope, 0.0)


def test_loss_equals_torch(x64):
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    student, known = (generator.normal(size=(5, 7)) * 40 for _ in range(2))
    x = torch.from_numpy(student).requires_grad_()
    soft = torch.softmax(torch.from_numpy(known) / 30, 1)
    expected = torch.nn.KLDivLoss(reduction="batchmean")(torch.log_softmax(x / 30, 1), soft)
    expected.backward()
    value, gradient = jax.value_and_grad(post_training.distillation_loss)(jnp.asarray(student), jnp.asarray(known))
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-10)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-8, atol=1e-12)


def test_rate_is_the_published_one():
    factors = [float(post_training.rate_factor(jnp.asarray(epoch))) for epoch in (0, 100, 200, 300, 301)]
    np.testing.assert_allclose(factors, [1.0, 0.5 + 0.25 * math.sqrt(3), 0.75, 0.5, 0.0], atol=1e-6)


def test_rate_is_constant_within_an_epoch():
    """A gradient of 1 moves Adam by the rate: three steps per epoch."""
    settings = post_training.Settings(learning_rate=1.0, weight_decay=0.0, rate_epochs=4)
    adamw = post_training.optimizer(settings, 3)
    state, moved = adamw.init(jnp.zeros(())), []
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(16):
            update, state = adamw.update(jnp.ones(()), state, jnp.zeros(()))
            moved.append(-float(update))
    expected = [0.5 * (1 + math.cos(math.pi * epoch / 8)) if epoch <= 4 else 0.0 for epoch in range(6)]
    np.testing.assert_allclose(moved, np.repeat(expected, 3)[:16], atol=1e-5)
