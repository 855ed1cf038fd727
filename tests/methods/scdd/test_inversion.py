"""Recovery of images: against PyTorch, and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal, relative
from torch_networks import channels_first, torch_resnet, variables_of

from ssdd_jax.methods.scdd import inversion
from ssdd_jax.models.norm import BatchNorm
from ssdd_jax.models.resnet import ResNet
from ssdd_jax.teacher import network as teacher

pytestmark = pytest.mark.medium

CLASSES = 3
SHAPE = (8, 8, 3)
SETTINGS = inversion.Settings(steps=20, learning_rate=0.1, bn_weight=0.05, jitter=1)
LOW, HIGH = jnp.array([-1.0, -1.2, -1.4]), jnp.array([0.8, 1.0, 1.2])


def network(seed=0):
    """A tiny network with random running statistics."""
    variables = teacher.initialize(jax.random.key(seed), ResNet(2, (1, 1)), SHAPE)
    generator = np.random.default_rng(seed)
    # Means of -0.7 to 0.2 and variances of 0.3 to 1.2: with larger means every feature would be 0.
    stats = jax.tree.map(
        lambda leaf: jnp.asarray(generator.uniform(0.3, 1.2, leaf.shape) + leaf - 1.0, leaf.dtype),
        variables["batch_stats"],
    )
    return inversion.Network({**variables, "batch_stats": stats}, normal(seed, 5, CLASSES))


@functools.partial(jax.jit, static_argnames="settings")
def step(state, labels, network, key, *, low=LOW, high=HIGH, settings=SETTINGS):
    return inversion.step(key, state, labels, network, low=low, high=high, settings=settings)


@functools.partial(jax.jit, static_argnames="settings")
def value_and_grad(images, labels, network, shift, *, settings=SETTINGS):
    (_, info), gradient = jax.value_and_grad(inversion.loss, has_aux=True)(
        images, labels, network, shift, settings=settings
    )
    return info, gradient


statistics = jax.jit(inversion.statistics_loss)


class Torch:
    """The published loss from torch's own modules: hooks on every batch norm, cross-entropy of a linear layer."""

    def __init__(self, torch):
        self.torch, self.distances = torch, []
        torch.manual_seed(0)
        self.backbone, self.head = torch_resnet(torch, 2, 3).eval(), torch.nn.Linear(16, CLASSES).double()
        with torch.no_grad():
            for name, value in self.backbone.state_dict().items():
                if "norm" in name and value.ndim == 1:
                    value.uniform_(0.5, 1.5)
        for module in self.backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.register_forward_hook(self._look)

    def _look(self, module, inputs, _):
        (x,) = inputs
        var, mean = x.var((0, 2, 3), unbiased=False), x.mean((0, 2, 3))
        self.distances.append((module.running_var - var).norm() + (module.running_mean - mean).norm())

    def network(self):
        weight, bias = (value.detach().numpy() for value in (self.head.weight, self.head.bias))
        return inversion.Network(variables_of(self.backbone), np.concatenate([weight.T, bias[None]]))

    def loss(self, images, labels, shift, settings):
        torch = self.torch
        x = channels_first(torch, images).requires_grad_()
        self.distances.clear()
        logits = self.head(self.backbone(torch.roll(x, tuple(shift), dims=(2, 3))))
        cross_entropy = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long())
        first, *others = self.distances
        statistics = settings.first_bn_weight * first + sum(others)
        value = cross_entropy + settings.bn_weight * statistics
        value.backward()
        parts = [float(part.detach()) for part in (value, cross_entropy, statistics)]
        return logits.detach().numpy(), parts, x.grad.numpy().transpose(0, 2, 3, 1)


def test_loss_and_gradient_equal_torch(x64):
    reference = Torch(pytest.importorskip("torch"))
    generator = np.random.default_rng(0)
    images, labels = generator.normal(size=(5, *SHAPE)), np.array([0, 1, 2, 1, 0], np.int32)
    shift = np.array([3, 1], np.int32)
    settings = SETTINGS._replace(bn_weight=1e-4)  # both parts of the gradient are then of the same size
    logits, parts, expected = reference.loss(images, labels, shift, settings)
    assert len(reference.distances) == 20  # ResNet-18: the stem, two in each of eight blocks, three shortcuts
    net = reference.network()
    rolled = np.roll(images, shift, axis=(1, 2))

    @jax.jit
    def found(images, rolled):
        (_, info), gradient = jax.value_and_grad(inversion.loss, has_aux=True)(
            images, labels, net, shift, settings=settings
        )
        return info, gradient, inversion.logits(net, rolled), inversion.statistics_loss(net, rolled)

    info, gradient, found_logits, found_statistics = found(images, rolled)
    assert gradient.dtype == jnp.float64
    np.testing.assert_allclose(np.array(info), parts, rtol=1e-8)
    assert relative(gradient, expected) < 1e-8
    np.testing.assert_allclose(found_logits, logits, rtol=1e-8)
    np.testing.assert_allclose(found_statistics, parts[2], rtol=1e-8)


def test_batch_norm_leaves_its_input_s_moments_only_where_asked():
    x = 3.0 + 2.0 * normal(0, 5, 4, 4, 2)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, use_running_average=True)
    assert set(variables) == {"params", "batch_stats"}
    plain = norm.apply(variables, x, use_running_average=True)
    out, seen = norm.apply(variables, x, use_running_average=True, mutable=["moments"])
    np.testing.assert_array_equal(out, plain)
    np.testing.assert_allclose(seen["moments"]["mean"], np.mean(x, (0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(seen["moments"]["var"], np.var(x, (0, 1, 2)), rtol=1e-5)
    _, training = norm.apply(variables, x, use_running_average=False, mutable=["moments", "batch_stats"])
    assert "moments" not in training


def test_only_the_first_layer_has_a_weight_of_its_own():
    """The stem's share by hand: a convolution and two norms."""
    net, x = network(), normal(1, 6, *SHAPE)
    kernel = net.backbone["params"]["stem"]["kernel"]
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), [(2, 2), (2, 2)], dimension_numbers=("NHWC", "HWIO", "NHWC"))
    running = net.backbone["batch_stats"]["stem_norm"]
    first = np.linalg.norm(running["var"] - np.var(y, (0, 1, 2))) + np.linalg.norm(
        running["mean"] - np.mean(y, (0, 1, 2))
    )
    found = [statistics(net, x, first_bn_weight=weight) for weight in (0.0, 1.0, 10.0)]
    np.testing.assert_allclose(np.diff(found), [first, 9 * first], rtol=1e-4)


def test_statistics_that_agree_have_no_distance_and_no_gradient():
    """All activations 0, all running statistics 0: the norm's derivative does not exist there."""
    net = jax.tree.map(jnp.zeros_like, network())
    value, gradient = jax.jit(jax.value_and_grad(inversion.statistics_loss, argnums=1))(net, jnp.zeros((2, *SHAPE)))
    assert float(value) == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_shift_rolls_all_images_of_a_group():
    net, x, labels = network(), normal(2, 4, *SHAPE), jnp.array([0, 1, 2, 0])
    info, gradient = value_and_grad(x, labels, net, jnp.array([2, 1]))
    by_hand, moved = value_and_grad(jnp.roll(x, (2, 1), (1, 2)), labels, net, jnp.array([0, 0]))
    np.testing.assert_allclose(np.array(info), np.array(by_hand), rtol=1e-5)
    np.testing.assert_allclose(np.roll(gradient, (2, 1), (1, 2)), moved, atol=1e-6)
    other, _ = value_and_grad(x, labels, net, jnp.array([1, 2]))
    assert abs(float(other.loss - info.loss)) > 1e-4


def state_of(groups=2, size=4, settings=SETTINGS):
    labels = jnp.asarray(np.arange(groups * size).reshape(groups, size) % CLASSES, jnp.int32)
    return inversion.init(jax.random.key(1), (groups, size, *SHAPE), settings=settings), labels


def test_images_start_as_noise():
    state = inversion.init(jax.random.key(0), (2, 40, *SHAPE))
    np.testing.assert_allclose([state.images.mean(), state.images.std()], [0.0, 1.0], atol=0.03)
    assert not np.array_equal(state.images[0], state.images[1])
    assert float(jnp.abs(state.images).max()) > 3.0  # not clipped
    with pytest.raises(ValueError, match="G,B,H,W,C"):
        inversion.init(jax.random.key(0), (2, *SHAPE))


def test_three_steps_of_adam_by_hand():
    """Betas 0.5 and 0.9, a cosine from the first step to 0, gradients of each group alone, the clip."""
    settings = SETTINGS._replace(steps=2, learning_rate=0.4, jitter=0)
    (state, labels), net = state_of(), network()
    first = second = np.zeros(state.images.shape)
    for count, rate in enumerate((0.4, 0.2, 0.0)):
        before = state.images
        pairs = zip(before, labels, strict=True)
        gradient = np.stack([value_and_grad(x, y, net, jnp.array([0, 0]))[1] for x, y in pairs]).astype(np.float64)
        first, second = 0.5 * first + 0.5 * gradient, 0.9 * second + 0.1 * gradient**2
        direction = first / (1 - 0.5 ** (count + 1)) / (np.sqrt(second / (1 - 0.9 ** (count + 1))) + 1e-8)
        expected = np.clip(before - rate * direction, LOW, HIGH)
        state, _ = step(state, labels, net, jax.random.key(count), settings=settings)
        # Where the gradient is next to nothing, Adam's first steps know only its sign.
        clear = np.abs(gradient) > 1e-5
        assert clear.mean() > 0.9
        np.testing.assert_allclose(np.where(clear, state.images, 0), np.where(clear, expected, 0), atol=2e-3)
        for channel in range(3):
            of_channel = state.images[..., channel]
            assert float(of_channel.min()) == LOW[channel] and float(of_channel.max()) == HIGH[channel]
    np.testing.assert_array_equal(state.images, before)


@pytest.mark.slow
def test_groups_know_nothing_of_each_other():
    """The first group does the same whatever the second is, alone or side by side."""
    (state, labels), net = state_of(), network()
    other = state._replace(images=state.images.at[1].multiply(3.0))
    key = jax.random.key(0)
    (after, info), (after_other, info_other) = (step(one, labels, net, key) for one in (state, other))
    np.testing.assert_array_equal(after.images[0], after_other.images[0])
    assert float(info.statistics) != float(info_other.statistics)
    side_by_side = step(state, labels, net, key, settings=SETTINGS._replace(vectorize=2))[1]
    np.testing.assert_allclose(np.array(side_by_side), np.array(info), rtol=1e-5)


def test_info_is_the_mean_over_groups_at_shifts_of_their_own():
    """Two groups of the same images: what is logged is the mean over two of the four shifts."""
    (state, labels), net = state_of(), network()
    state = state._replace(images=jnp.tile(state.images[:1], (2, 1, 1, 1, 1)))
    labels = jnp.tile(labels[:1], (2, 1))
    shifts = [jnp.array([i, j]) for i in (0, 1) for j in (0, 1)]
    known = [float(value_and_grad(state.images[0], labels[0], net, shift)[0].loss) for shift in shifts]
    means = {(known[i] + known[j]) / 2: {i, j} for i in range(4) for j in range(i, 4)}
    drawn = []
    for seed in range(8):
        _, info = step(state, labels, net, jax.random.key(seed))
        nearest = min(means, key=lambda mean: abs(mean - float(info.loss)))  # noqa: B023, used at once
        np.testing.assert_allclose(info.loss, nearest, rtol=1e-5)
        np.testing.assert_allclose(info.loss, info.cross_entropy + 0.05 * info.statistics, rtol=1e-5)
        drawn.append(means[nearest])
    assert set.union(*drawn) == set(range(4))
    assert max(map(len, drawn)) == 2  # not one shift for all groups


def test_recovery_lowers_the_loss_and_leaves_the_network_alone():
    (state, labels), net = state_of(), network()
    before = jax.tree.map(np.array, net)
    infos = []
    for count in range(20):
        state, info = step(state, labels, net, jax.random.key(count))
        infos.append(info)
    assert float(infos[-1].loss) < 0.8 * float(infos[0].loss)
    assert float(infos[-1].statistics) < float(infos[0].statistics)
    assert float(infos[-1].cross_entropy) < 0.8 * float(infos[0].cross_entropy)
    jax.tree.map(np.testing.assert_array_equal, before, net)
    value = jax.jit(jax.grad(lambda net: inversion.loss(state.images[0], labels[0], net, jnp.array([0, 0]))[0]))(net)
    assert all(float(jnp.abs(leaf).max()) == 0.0 for leaf in jax.tree.leaves(value))


@pytest.mark.parametrize(
    ("numbers", "shape"),
    [
        ((1, 100, 100), (1, 100)),
        ((50, 100, 100), (50, 100)),
        ((2, 10, 8), (4, 5)),
        ((3, 7, 50), (1, 21)),
        ((1, 7, 5), (2, 4)),
        ((101, 10, 100), (11, 100)),
    ],
)
def test_group_labels(numbers, shape):
    labels = inversion.group_labels(*numbers)
    assert labels.shape == shape and labels.dtype == np.int32
    per_class, classes, _ = numbers
    wanted = per_class * classes
    np.testing.assert_array_equal(labels.ravel()[:wanted], list(range(classes)) * per_class)
    # What fills up the last group goes on in turn.
    np.testing.assert_array_equal(labels.ravel(), np.arange(labels.size) % classes)
    assert wanted <= labels.size < wanted + labels.shape[1]


def test_group_labels_refuse_nothing():
    for numbers in ((0, 3, 4), (1, 0, 4), (1, 3, 0)):
        with pytest.raises(ValueError, match="positive"):
            inversion.group_labels(*numbers)
