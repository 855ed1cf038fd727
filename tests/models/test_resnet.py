"""ResNet-18 and its batch norm against PyTorch's modules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_networks import channels_first, torch_resnet, variables_of

from ssdd_jax.models.norm import BatchNorm
from ssdd_jax.models.resnet import Conv, ResNet

WIDTH = 8


@pytest.fixture
def pair(x64):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch_resnet(torch, WIDTH, 3)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if "norm" in name and value.ndim == 1:
                value.uniform_(0.5, 1.5)
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3))
    return torch, module, variables_of(module), images


@pytest.mark.medium
@pytest.mark.parametrize("train", [False, True])
def test_forward_equals_torch(pair, train):
    torch, module, variables, images = pair
    module.train(train)
    with torch.no_grad():
        expected = module(channels_first(torch, images))

    def apply(variables, x):
        return ResNet(WIDTH).apply(variables, x, train=train, mutable=["batch_stats"])

    features, updated = jax.jit(apply)(variables, images)
    assert features.dtype == jnp.float64
    np.testing.assert_allclose(features, expected.numpy(), rtol=0, atol=1e-8)
    after = variables_of(module)["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-8), updated["batch_stats"], after)


@pytest.mark.medium
def test_parameter_count():
    shapes = jax.eval_shape(lambda k: ResNet().init(k, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    # torchvision's resnet18 without its classifier (11,176,512), the 7x7 stem exchanged for a 3x3 one.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 11_168_832


def test_stem_enlarges_the_image_by_two():
    def shapes(x):
        _, captured = ResNet(WIDTH).init_with_output(
            jax.random.key(0), x, train=False, capture_intermediates=True, mutable=True
        )
        return captured["intermediates"]

    maps = jax.eval_shape(shapes, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    sides = [maps[f"stage{i}_block2"]["__call__"][0].shape[1] for i in (1, 2, 3, 4)]
    assert sides == [34, 17, 9, 5]


@pytest.mark.medium
def test_kernels_start_as_kaiming_normal():
    kernel = Conv(64).init(jax.random.key(1), jnp.zeros((1, 4, 4, 32)))["params"]["kernel"]
    assert kernel.shape == (3, 3, 32, 64)
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)


@pytest.mark.medium
@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 4, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_equals_torch(x64, shape, affine):
    torch = pytest.importorskip("torch")
    kind = torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d
    module = kind(shape[-1], affine=affine).double()
    x = np.random.default_rng(1).normal(3.0, 2.0, size=shape)
    y = module(torch.from_numpy(np.moveaxis(x, -1, 1))).detach().numpy()
    norm = BatchNorm(affine=affine)
    variables = norm.init(jax.random.key(0), x, use_running_average=True)
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
    assert ("params" in variables) == affine
    out, updated = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    np.testing.assert_allclose(out, np.moveaxis(y, 1, -1), atol=1e-10)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], module.running_mean.numpy(), atol=1e-10)
    np.testing.assert_allclose(updated["batch_stats"]["var"], module.running_var.numpy(), atol=1e-10)


def test_batch_norm_takes_bfloat16_with_float32_statistics():
    x = jnp.asarray(np.random.default_rng(2).normal(100.0, 1.0, size=(64, 3)), jnp.bfloat16)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, use_running_average=False)
    out, updated = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    assert out.dtype == jnp.bfloat16
    assert updated["batch_stats"]["var"].dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(out, np.float32).std(axis=0), 1.0, atol=0.02)


def test_batch_norm_is_a_linen_module_without_state_in_evaluation():
    norm = BatchNorm()
    assert isinstance(norm, nn.Module)
    variables = norm.init(jax.random.key(0), jnp.ones((2, 3)), use_running_average=True)
    # Immutable statistics: this would raise if the module wrote to them.
    out = norm.apply(variables, jnp.ones((2, 3)), use_running_average=True)
    np.testing.assert_allclose(out, np.ones((2, 3)), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_large_stem_has_a_gradient_in_a_compiled_program(dtype):
    """That of a teacher of torchvision's kind, which the methods that invert a teacher need."""
    network = ResNet(2, (1, 1), stem_size=7)
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3)).astype(dtype)
    variables = network.init(jax.random.key(1), x, train=False)

    def total(x):
        return jnp.square(network.apply(variables, x, train=False)).sum().astype(jnp.float32)

    found = np.asarray(jax.jit(jax.grad(total))(x), np.float32)
    assert np.isfinite(found).all() and np.abs(found).max() > 0
    if dtype == "float32":
        np.testing.assert_allclose(found, jax.grad(total)(x), rtol=1e-3, atol=1e-4)
