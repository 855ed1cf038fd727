"""The ConvNet: its size, its start, its norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal

from ssdd_jax.models import ConvNet, conv, convnet, norm
from ssdd_jax.models.norm import InstanceNorm

initialize = jax.jit(convnet.initialize, static_argnums=(1, 2))


@pytest.mark.parametrize(("widths", "side", "channels", "dim"), [((4, 8), 8, 3, 5), ((3, 4, 6), 16, 1, 2)])
def test_parameters_and_round_trip(widths, side, channels, dim):
    """`9 I O + O` and `2 O` per block, and a linear layer on the flattened last block; the same tree as Flax's."""
    network = ConvNet(widths, dim)
    variables = initialize(jax.random.key(0), network, (side, side, channels))
    inputs = (channels, *widths)
    blocks = sum(9 * i * o + o + 2 * o for i, o in zip(inputs, widths, strict=False))
    flattened = (side // 2 ** len(widths)) ** 2 * widths[-1]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == blocks + (flattened + 1) * dim
    assert convnet.from_variables(variables) == network
    like = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, side, side, channels)), train=False))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), variables)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), dict(like))
    x = jnp.zeros((2, side, side, channels))
    features, predictions = jax.eval_shape(lambda: network.apply(variables, x, train=False))
    assert features.shape == (2, flattened) and predictions.shape == (2, dim)


STARTS = {
    "initialize": lambda key, network: convnet.initialize(key, network, (8, 8, 3)),
    "flax": lambda key, network: network.init(key, jnp.zeros((1, 8, 8, 3)), train=False),
}


@pytest.mark.medium
@pytest.mark.parametrize("start", STARTS)
def test_start_is_pytorchs(start):
    """Kernels and biases uniform within `1 / sqrt(fan_in)`; norms at 1 and 0."""
    variables = jax.jit(STARTS[start], static_argnums=1)(jax.random.key(3), ConvNet((16, 32), 24))
    fan_in = {"conv0": 27, "conv1": 144, "fc": 128}
    for name, layer in variables["params"].items():
        if name in fan_in:
            bound = fan_in[name] ** -0.5
            kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
            assert 0.98 * bound < np.abs(kernel).max() <= bound
            assert 0.7 * bound < np.abs(bias).max() <= bound
            np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.1)
            assert abs(kernel.mean()) < 0.15 * bound
        else:
            np.testing.assert_array_equal(layer["scale"], 1.0)
            np.testing.assert_array_equal(layer["bias"], 0.0)
    for layer in variables["batch_stats"].values():
        np.testing.assert_array_equal(layer["mean"], 0.0)
        np.testing.assert_array_equal(layer["var"], 1.0)


def test_start_depends_on_the_key_alone():
    network = ConvNet((4,), 2)
    one, same, other = (initialize(jax.random.key(k), network, (4, 4, 3)) for k in (0, 0, 1))
    kernels = [np.asarray(start["params"]["conv0"]["kernel"]) for start in (one, same, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


@pytest.mark.parametrize("shape", [(10, 8), (8, 6), (4, 0)])
def test_sizes_that_cannot_be_halved(shape):
    with pytest.raises(ValueError, match=f"images of {shape[0]}x{shape[1]} cannot be halved 2 times"):
        convnet.initialize(jax.random.key(0), ConvNet((4, 8), 2), (*shape, 3))


@pytest.mark.medium
def test_running_statistics_are_unbiased():
    """`0.9 running + 0.1 batch`, with n-1 in the variance; two images of 4x4 make the difference visible."""
    network, x = ConvNet((4,), 2), normal(0, 2, 4, 4, 3)
    variables = initialize(jax.random.key(0), network, (4, 4, 3))
    _, updated = network.apply(variables, x, train=True, mutable=["batch_stats"])
    layer = variables["params"]["conv0"]
    activations = np.asarray(conv(x, layer["kernel"]) + layer["bias"].reshape(1, 1, 1, -1)).reshape(-1, 4)
    found = updated["batch_stats"]["bn0"]
    np.testing.assert_allclose(found["mean"], 0.1 * activations.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * activations.var(0, ddof=1), rtol=1e-5)


def test_features_are_the_flattened_last_block():
    """Eval mode of a fresh network by hand: the norm divides by `sqrt(1 + 1e-5)`, then ReLU and 2x2 means."""
    network, x = ConvNet((4,), 2), normal(1, 2, 4, 4, 3)
    variables = initialize(jax.random.key(0), network, (4, 4, 3))
    features, predictions = network.apply(variables, x, train=False)
    layer, last = variables["params"]["conv0"], variables["params"]["fc"]
    block = np.maximum(np.asarray(conv(x, layer["kernel"])) + np.asarray(layer["bias"]), 0) / (1 + 1e-5) ** 0.5
    expected = block.reshape(2, 2, 2, 2, 2, 4).mean((2, 4)).reshape(2, -1)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6)
    linear = expected @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
    np.testing.assert_allclose(predictions, linear, rtol=1e-4, atol=1e-6)


def test_batch_norm_is_pytorchs(x64):
    """Values, gradients, and gradients of these: `normalize` brings a derivative of its own."""
    torch = pytest.importorskip("torch")
    x, scale, bias = (jnp.asarray(value, jnp.float64) for value in norm_arrays())
    weights = jnp.asarray(normal(9, *x.shape), jnp.float64)

    def value(x, scale, bias):
        return jnp.sum(weights * jnp.square(norm.normalize(x, scale, bias)[0]))

    def squares(*arrays):
        return sum(jnp.sum(jnp.square(part)) for part in jax.grad(value, argnums=(0, 1, 2))(*arrays))

    found = jax.jit(lambda *a: (jax.grad(value, argnums=(0, 1, 2))(*a), jax.grad(squares, argnums=(0, 1, 2))(*a)))(
        x, scale, bias
    )
    inputs = [torch.tensor(np.asarray(array), requires_grad=True) for array in (x, scale, bias)]
    y = torch.nn.functional.batch_norm(inputs[0].permute(0, 3, 1, 2), None, None, *inputs[1:], training=True)
    total = (torch.tensor(np.asarray(weights)) * y.permute(0, 2, 3, 1) ** 2).sum()
    first = torch.autograd.grad(total, inputs, create_graph=True)
    second = torch.autograd.grad(sum((part**2).sum() for part in first), inputs)
    for mine, theirs in zip(jax.tree.leaves(found), (*first, *second), strict=True):
        np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=1e-8, atol=1e-8)


def instance_norm(x, scale, bias):
    return InstanceNorm().apply({"params": {"scale": scale, "bias": bias}}, x)


def norm_arrays():
    """Activations far from zero, a scale and a bias of both signs."""
    return 3 * normal(0, 4, 6, 5, 7) + 20, jnp.linspace(-1, 2, 7), jnp.linspace(3, -2, 7)


def test_instance_norm_by_hand():
    """Each image and channel by its own mean and biased variance."""
    x, scale, bias = map(np.asarray, norm_arrays())
    found = np.asarray(instance_norm(*norm_arrays()))
    for image in range(4):
        for channel in range(7):
            pixels = x[image, :, :, channel].astype(np.float64)
            expected = scale[channel] * (pixels - pixels.mean()) / (pixels.var() + 1e-5) ** 0.5 + bias[channel]
            np.testing.assert_allclose(found[image, :, :, channel], expected, rtol=1e-4, atol=2e-5)


def test_instance_norm_is_pytorchs():
    """`GroupNorm` with one channel per group, values and gradients."""
    torch = pytest.importorskip("torch")
    x, scale, bias = norm_arrays()
    weights = normal(9, *x.shape)
    gradient = jax.grad(lambda *arrays: jnp.sum(weights * instance_norm(*arrays)), argnums=(0, 1, 2))
    gradients = jax.jit(gradient)(x, scale, bias)
    inputs = [torch.tensor(np.asarray(value, np.float64), requires_grad=True) for value in (x, scale, bias)]
    norm = torch.nn.functional.group_norm(inputs[0].permute(0, 3, 1, 2), 7, inputs[1], inputs[2], 1e-5)
    expected = norm.permute(0, 2, 3, 1)
    np.testing.assert_allclose(instance_norm(x, scale, bias), expected.detach().numpy(), rtol=1e-4, atol=2e-5)
    (expected * torch.tensor(np.asarray(weights, np.float64))).sum().backward()
    for found, tensor in zip(gradients, inputs, strict=True):
        np.testing.assert_allclose(found, tensor.grad.numpy(), rtol=1e-3, atol=1e-4)


def test_instance_norm_keeps_the_precision():
    x, scale, bias = norm_arrays()
    half = instance_norm(x.astype(jnp.bfloat16), scale, bias)
    assert half.dtype == jnp.bfloat16
    # Means of 30 numbers near 20 in bfloat16 would be wrong by some tenths of the deviation of 3.
    np.testing.assert_allclose(half.astype(jnp.float32), instance_norm(x, scale, bias), atol=0.06)
    with pytest.raises(AssertionError):
        instance_norm(x[0], scale, bias)


@pytest.mark.medium
def test_a_network_with_instance_norm():
    """The same sizes, no running statistics, the same in training and evaluation, each image on its own."""
    network, x = ConvNet((4, 8), 5, norm="instance"), normal(3, 4, 8, 8, 3)
    variables = initialize(jax.random.key(0), network, (8, 8, 3))
    assert variables["batch_stats"] == {}
    assert sorted(variables["params"]) == ["conv0", "conv1", "fc", "in0", "in1"]
    assert convnet.from_variables(variables) == network
    batch = initialize(jax.random.key(0), ConvNet((4, 8), 5), (8, 8, 3))["params"]
    for one, other in (("conv0", "conv0"), ("in0", "bn0"), ("fc", "fc")):
        shapes = [jax.tree.map(jnp.shape, params) for params in (variables["params"][one], batch[other])]
        assert shapes[0] == shapes[1]
    apply = jax.jit(network.apply, static_argnames="train")
    features, predictions = apply(variables, x, train=True)
    for found, expected in zip(apply(variables, x, train=False), (features, predictions), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(apply(variables, x[1:2], train=True)[1], predictions[1:2], rtol=1e-4, atol=1e-6)


def test_an_unknown_norm():
    with pytest.raises(ValueError, match="norm must be one of batch, instance, got 'layer'"):
        ConvNet((4,), 2, norm="layer")
