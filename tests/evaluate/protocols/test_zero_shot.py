"""Target data-free distillation: each part by hand and against PyTorch, the whole on something separable."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal
from torch_networks import channels_first

from ssdd_jax import UserError
from ssdd_jax.evaluate.protocols import finetune, zero_shot
from ssdd_jax.models import convnet

pytestmark = pytest.mark.slow

CLASSES, SHAPE = 3, (8, 8, 3)
STUDENT = convnet.ConvNet((4,), CLASSES)
TEACHER = convnet.ConvNet((5,), CLASSES)
IMAGES = normal(0, 6, *SHAPE)
MEAN, STD = np.full(3, 0.4), np.full(3, 0.3)
FEW = zero_shot.Settings(epochs=2, batch_size=4, noise_learning_rate=0.01)


class Brightness(nn.Module):
    """A teacher of two classes, dark and bright, with nothing to learn."""

    dim: int = 2

    def __call__(self, x, train):
        mean = 10.0 * x.mean((1, 2, 3))[:, None]
        return mean, jnp.concatenate([-mean, mean], 1)


@functools.partial(jax.jit, static_argnames="network")
def _initialize(keys, *, network):
    return jax.vmap(lambda key: convnet.initialize(key, network, SHAPE))(keys)


def students(network=STUDENT, count=2):
    """The module and fresh variables."""
    return network, _initialize(jax.random.split(jax.random.key(3), count), network=network)


def of_teacher():
    """A teacher whose running statistics are far from those of any batch."""
    variables = jax.tree.map(lambda leaf: leaf[0], _initialize(jax.random.split(jax.random.key(4), 1), network=TEACHER))
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf * 9.0 + 2.0, variables["batch_stats"])
    return TEACHER, variables


def test_images(count=11):
    generator = np.random.default_rng(5)
    return generator.integers(0, 256, (count, *SHAPE), dtype=np.uint8), generator.integers(0, CLASSES, count, np.int32)


test_images.__test__ = False


ADVANCE = jax.jit(
    zero_shot._advance.__wrapped__,
    static_argnames=("student", "teacher", "settings", "noise"),
    donate_argnames="state",
)
FINETUNE = jax.jit(finetune._steps.__wrapped__, static_argnames=("network", "settings"), donate_argnames="states")
PREDICT = jax.jit(zero_shot._predict.__wrapped__, static_argnames=("network", "settings"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The compiled programs without the costly part of compiling."""
    monkeypatch.setattr(zero_shot, "_advance", ADVANCE)
    monkeypatch.setattr(zero_shot, "_predict", PREDICT)
    monkeypatch.setattr(finetune, "_steps", FINETUNE)


def trained(seed=0, *, count=2, images=IMAGES, settings=FEW, noise=False, teacher=None):
    keys = jax.random.split(jax.random.key(seed), count)
    options = {"settings": settings, "noise": noise, "first": 0}
    return zero_shot._train(keys, students(count=count), teacher or of_teacher(), images, **options)


def assert_close(one, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


def kernel(variables):
    return np.asarray(variables["params"]["fc"]["kernel"])


def test_the_defaults_are_the_published_ones():
    assert zero_shot.Settings() == (1000, 512, 1e-4, 1e-3, 0.0, 1.0, True)


def test_loss_by_hand():
    student, teacher = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]), np.array([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])

    def expected(temperature):
        p, q = (np.exp(logits / temperature) for logits in (teacher, student))
        p, q = (values / values.sum(1, keepdims=True) for values in (p, q))
        return -(p * np.log(q)).sum(1).mean()

    for temperature in (1.0, 4.0):
        arrays = (jnp.asarray(logits, jnp.float32) for logits in (student, teacher))
        found = zero_shot.loss(*arrays, temperature=temperature)
        np.testing.assert_allclose(found, expected(temperature), rtol=1e-5)
    assert not np.isclose(expected(1.0), expected(4.0))
    gradient = jax.grad(zero_shot.loss, 1)(jnp.ones((1, 3)), jnp.array([[1.0, 2.0, 3.0]]))
    np.testing.assert_array_equal(gradient, 0.0)


def test_the_rate_changes_by_epoch_and_ends_near_nothing():
    """The update of a constant gradient is the rate itself, two steps of each of four epochs."""
    for noise, first in ((False, 0.5), (True, 2.0)):
        settings = zero_shot.Settings(epochs=4, learning_rate=0.5, noise_learning_rate=2.0)
        adamw = zero_shot.optimizer(settings, 2, noise=noise)
        state, found = adamw.init(jnp.zeros(1)), []
        for _ in range(8):
            with jax.numpy_dtype_promotion("standard"):
                update, state = adamw.update(jnp.ones(1), state, jnp.zeros(1))
            found.append(-float(update[0]))
        expected = [first * (1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in (0, 0, 1, 1, 2, 2, 3, 3)]
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_steps_are_pytorch_s(x64):
    """Two epochs of two batches; both networks normalise by the batch, the teacher's running statistics are wrong."""
    torch = pytest.importorskip("torch")
    settings = zero_shot.Settings(epochs=2, learning_rate=0.01, weight_decay=0.3)
    batches = np.random.default_rng(0).normal(size=(4, 5, *SHAPE))
    double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (students()[1], of_teacher()[1]))
    variables, of_the_teacher = jax.tree.map(lambda leaf: leaf[0], double[0]), double[1]

    def module(variables):
        params = variables["params"]
        tensors = {}
        for layer in ("conv0", "bn0", "fc"):
            for name, value in params[layer].items():
                tensors[layer, name] = torch.tensor(np.asarray(value), requires_grad=True)
        return tensors

    def forward(tensors, x):
        functional = torch.nn.functional
        x = functional.conv2d(x, tensors["conv0", "kernel"].permute(3, 2, 0, 1), tensors["conv0", "bias"], padding=1)
        x = functional.batch_norm(x, None, None, tensors["bn0", "scale"], tensors["bn0", "bias"], training=True)
        x = functional.avg_pool2d(functional.relu(x), 2).permute(0, 2, 3, 1).flatten(1)
        return x @ tensors["fc", "kernel"] + tensors["fc", "bias"]

    student, teacher = module(variables), module(of_the_teacher)
    optimizer = torch.optim.AdamW(list(student.values()), lr=0.01, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    expected = []
    for number, batch in enumerate(batches):
        x = channels_first(torch, batch)
        wanted = torch.softmax(forward(teacher, x).detach(), -1)
        value = -(wanted * torch.log_softmax(forward(student, x), -1)).sum(-1).mean(0)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        expected.append(value.item())
        if number % 2:
            schedule.step()

    adamw = zero_shot.optimizer(settings, 2)
    state = zero_shot.State(variables, adamw.init(variables["params"]))
    ours = jax.jit(
        lambda state, x: zero_shot.step(state, x, STUDENT, (TEACHER, of_the_teacher), adamw=adamw, settings=settings)
    )
    found = []
    for batch in batches:
        state, value = ours(state, jnp.asarray(batch))
        found.append(float(value))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for (layer, name), tensor in student.items():
        # Batch norm takes a convolution's bias away again: its gradient is rounding, which Adam blows up.
        if (layer, name) != ("conv0", "bias"):
            np.testing.assert_allclose(state.variables["params"][layer][name], tensor.detach().numpy(), atol=1e-7)


def test_the_teacher_s_running_statistics_count_only_if_asked():
    network, variables = of_teacher()
    other = dict(variables, batch_stats=jax.tree.map(jnp.ones_like, variables["batch_stats"]))
    assert_close(trained(), trained(teacher=(network, other)), rtol=1e-6)
    running = FEW._replace(batch_statistics=False)
    found = [kernel(trained(settings=running, teacher=(network, one))) for one in (variables, other)]
    assert np.abs(found[0] - found[1]).max() > 1e-5


def test_what_the_caller_holds_stays_as_it_is():
    network, variables = students()
    teacher = of_teacher()
    before = jax.device_get((variables, teacher[1]))
    run(student=(network, variables), teacher=teacher)
    assert_close((variables, teacher[1]), before, rtol=0)


def test_the_student_s_running_statistics_move():
    after, before = trained()["batch_stats"], students()[1]["batch_stats"]
    assert np.all(np.asarray(after["bn0"]["mean"]) != np.asarray(before["bn0"]["mean"]))


@pytest.mark.parametrize("own", [True, False])
def test_accuracy_batch_by_batch(own):
    """With batches' own statistics the two full ones and the last of three images each stand alone."""
    network, variables = students()
    images, labels = test_images()
    settings = FEW._replace(batch_statistics=own)
    found = zero_shot.accuracy(network, variables, (images, labels), mean=MEAN, std=STD, settings=settings)
    x = jnp.asarray((images / 255.0 - MEAN) / STD, jnp.float32)

    def predicted(one, parts):
        if own:
            logits = [network.apply(one, part, train=True, mutable=["batch_stats"])[0][1] for part in parts]
        else:
            logits = [network.apply(one, part, train=False)[1] for part in parts]
        return np.argmax(np.concatenate(logits), -1)

    alone = [jax.tree.map(lambda leaf, seed=seed: leaf[seed], variables) for seed in range(2)]
    expected = [predicted(one, (x[:4], x[4:8], x[8:])) for one in alone]
    np.testing.assert_allclose(found, [100 * np.mean(one == labels) for one in expected])
    # Labels that the students give themselves, but for one in the last batch.
    asked = expected[0].astype(np.int32)
    asked[-1] = (asked[-1] + 1) % CLASSES
    found = zero_shot.accuracy(network, variables, (images, asked), mean=MEAN, std=STD, settings=settings)
    np.testing.assert_allclose(found[0], 100 * 10 / 11)
    whole = predicted(alone[0], (x,))
    assert np.array_equal(whole, expected[0]) == (not own)


def test_noise_knows_nothing_of_the_images_and_has_its_own_rate():
    found = kernel(trained(noise=True))
    np.testing.assert_array_equal(found, kernel(trained(noise=True, images=IMAGES * 5 + 1)))
    start = kernel(students()[1])
    # AdamW's steps are about as large as its rate: four of them, two at half of it.
    assert 5e-3 < np.abs(found - start).max() < 0.05
    plain = kernel(trained())
    assert 5e-5 < np.abs(plain - start).max() < 5e-4
    assert np.abs(plain - kernel(trained(images=IMAGES * 5 + 1))).max() > 1e-5


def test_a_call_s_length_changes_nothing(monkeypatch):
    whole, spans = trained(), []
    monkeypatch.setattr(zero_shot, "STEPS_PER_CALL", 1)
    monkeypatch.setattr(
        zero_shot, "_advance", lambda *args, **options: spans.append(args[4]) or ADVANCE(*args, **options)
    )
    assert_close(whole, trained(), rtol=0)
    assert spans == [(0, 1), (1, 2)]


def test_students_alone_and_together():
    """The same students, with images for all or for each; other keys make others."""
    keys, student = jax.random.split(jax.random.key(0), 2), students()
    each = jnp.stack([IMAGES, IMAGES[::-1] * 2.0])
    options = {"settings": FEW, "noise": False, "first": 0}

    def alone(seed, images):
        start = jax.tree.map(lambda leaf: leaf[seed : seed + 1], student[1])
        return zero_shot._train(keys[seed : seed + 1], (STUDENT, start), of_teacher(), images, **options)

    for images in (IMAGES, each):
        both = zero_shot._train(keys, student, of_teacher(), images, **options)
        for seed in range(2):
            own = images if images.ndim == 4 else images[seed]
            one = alone(seed, own)
            np.testing.assert_allclose(kernel(both)[seed], kernel(one)[0], atol=2e-5)
    other = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], 2, 0), student[1])
    twice = zero_shot._train(keys, (STUDENT, other), of_teacher(), IMAGES, **options)
    assert np.abs(np.subtract(*kernel(twice))).max() > 1e-5


def separable(count, seed):
    """Dark and bright images as bytes, with their labels."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(count) % 2).astype(np.int32)
    images = generator.normal(size=(count, *SHAPE)) * 20 + (70 + 110 * labels)[:, None, None, None]
    return np.clip(images, 0, 255).astype(np.uint8), labels


def test_students_learn_what_the_teacher_knows():
    """From images without labels: what they say about the test images is right afterwards, and not before."""
    network, variables = students(convnet.ConvNet((4,), 2))
    images, test = separable(16, 0)[0], separable(37, 1)
    options = {"mean": MEAN, "std": STD, "settings": zero_shot.Settings(epochs=40, batch_size=8, learning_rate=0.02)}
    before = zero_shot.accuracy(network, variables, test, **options)
    assert before.min() < 80.0
    found = zero_shot.run(
        jax.random.split(jax.random.key(0), 2),
        (network, variables),
        (Brightness(), {"params": {}, "batch_stats": {}}),
        jnp.asarray((images / 255.0 - MEAN) / STD, jnp.float32),
        test,
        **options,
    )
    assert found.shape == (2,) and found.min() > 95.0


def test_a_teacher_learns_from_labels():
    """Tested in eval mode; another key is another teacher, the same one the same."""
    network = convnet.ConvNet((4,), 2)
    settings = finetune.Settings(steps=40, batch_size=8, learning_rate=0.05, padding=1, per_call=20)

    def teach(seed):
        options = {"mean": MEAN, "std": STD, "settings": settings}
        return zero_shot.train_teacher(jax.random.key(seed), network, separable(24, 0), **options)

    variables = teach(0)
    alone = jax.tree.map(lambda leaf: leaf[None], variables)
    options = {"mean": MEAN, "std": STD, "settings": FEW._replace(batch_size=37, batch_statistics=False)}
    assert zero_shot.accuracy(network, alone, separable(37, 1), **options)[0] > 95.0
    assert kernel(variables).shape == (64, 2)
    np.testing.assert_array_equal(kernel(variables), kernel(teach(0)))
    assert np.abs(kernel(variables) - kernel(teach(1))).max() > 1e-3


def run(*, together=None, **changes):
    arguments = {
        "keys": jax.random.split(jax.random.key(0), 2),
        "student": students(),
        "teacher": of_teacher(),
        "images": IMAGES,
        "test": test_images(),
    }
    return zero_shot.run(**(arguments | changes), mean=MEAN, std=STD, settings=FEW, together=together)


def test_run_in_groups():
    """Students one after the other, each with its own images, or all at once."""
    each = jnp.stack([IMAGES, IMAGES[::-1] * 2.0])
    found = run(images=each)
    np.testing.assert_array_equal(found, run(images=each, together=1))
    assert found.shape == (2,) and np.all((0 <= found) & (found <= 100))


def test_a_loss_that_is_not_a_number_is_one_line():
    images = jnp.stack([IMAGES, IMAGES.at[0, 0, 0, 0].set(jnp.nan)])
    with pytest.raises(UserError, match="student 2: the loss is not a number in epochs 1 to 2:") as caught:
        run(images=images)
    assert "\n" not in str(caught.value) and " learning_rate" in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"keys": jax.random.split(jax.random.key(0), 3)}, "3 keys"),
        ({"images": IMAGES[None]}, "2 keys"),
        ({"teacher": (convnet.ConvNet((5,), 4), of_teacher()[1])}, "the student has 3 classes, the teacher 4"),
        ({"images": IMAGES[..., :1]}, "one shape"),
        ({"test": (test_images()[0], test_images()[1][:3])}, "one shape"),
    ],
)
def test_shapes_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)
