"""The ConvNet: its size, its start, its running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit, normal

from ssdd_jax.models import ConvNet, conv, convnet

initialize = jit(convnet.initialize, static_argnums=(1, 2))


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


@pytest.mark.parametrize("start", STARTS)
def test_start_is_pytorchs(start):
    """Kernels and biases uniform within `1 / sqrt(fan_in)`; norms at 1 and 0."""
    variables = jit(STARTS[start], static_argnums=1)(jax.random.key(3), ConvNet((16, 32), 24))
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
