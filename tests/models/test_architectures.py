"""The networks that sets are judged on: their sizes, starts and contract, and PyTorch's modules beside them."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal
from jax import lax
from torch_networks import channels_first

from ssdd_jax import models
from ssdd_jax.models import ConvNet, network
from ssdd_jax.models.convolution import depthwise
from ssdd_jax.models.layers import max_pool
from ssdd_jax.models.mobilenet import STAGES, BlockGroup, MobileNet
from ssdd_jax.models.plain import ALEXNET, VGG11, Layer, Plain
from ssdd_jax.models.resnet import ResNetClassifier
from ssdd_jax.models.vit import VisionTransformer

DIM = 5


# Every kind of network in the smallest size that has all of its parts, and the images for it.
SMALL = {
    "convnet": (ConvNet((4, 8), DIM), (8, 8, 3)),
    "convnet_in": (ConvNet((4, 8), DIM, "instance"), (8, 8, 3)),
    "plain": (Plain((Layer(4, 5, True), Layer(6)), DIM), (8, 8, 1)),
    "mobilenet": (MobileNet(DIM, (BlockGroup(1, 4, 1, 1), BlockGroup(2, 6, 1, 2)), 4, 16), (9, 9, 3)),
    "resnet10": (ResNetClassifier(DIM, 4, (1, 1)), (8, 8, 3)),
    "resnet50": (ResNetClassifier(DIM, 2, (2,), bottleneck=True), (8, 8, 3)),
    "vit": (VisionTransformer(DIM, 4, 12, 1, 3), (8, 16, 3)),
}
HEAVY = ("mobilenet", "resnet50", "vit")
small = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in HEAVY else ()) for kind in SMALL]
)
initialize = jax.jit(models.initialize, static_argnums=(1, 2))

# Trainable parameters for 10 classes at 32x32 and for 200 at 64x64, counted in the published modules of KRR-ST
# (`models/wrapper.py`), ResNet-50 in its ResNet with its stem and bottlenecks.
COUNTS = {
    "convnet": (1_562_634, 3_191_496),
    "convnet3": (1_562_634, 8_034_504),
    "convnet4": (1_573_386, 3_191_496),
    "convnet3_in": (320_010, 1_938_120),
    "convnet4_in": (452_490, 857_160),
    "vgg11": (9_231_114, 9_635_784),
    "alexnet": (1_874_122, 4_301_192),
    "mobilenet": (1_092_314, 1_335_704),
    "resnet10": (4_903_242, 5_000_712),
    "resnet18": (11_173_962, 11_271_432),
    "resnet50": (23_520_842, 23_910_152),
}


@pytest.mark.medium
@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_published(name):
    for side, dim, expected in ((32, 10, COUNTS[name][0]), (64, 200, COUNTS[name][1])):
        shape = (side, side, 3)
        assert models.count(models.make(name, dim, shape), shape) == expected


@pytest.mark.parametrize(
    ("name", "side", "dim", "expected"),
    [
        ("vit_tiny", 224, 1000, 5_717_416),  # timm's vit_tiny_patch16_224
        ("convnet", 224, 10, 1_821_450),  # KRR-ST's convnet_32_64_128_256_512_bn
        ("convnet_128_256_512_bn", 32, 10, 1_562_634),
        ("convnet_128_128_128_128_in", 64, 200, 857_160),
        ("resnet18_64", 32, 10, 11_173_962),
    ],
)
def test_parameters_of_other_sizes(name, side, dim, expected):
    assert models.count(models.make(name, dim, (side, side, 3)), (side, side, 3)) == expected


@pytest.mark.slow
def test_the_width_of_a_resnet():
    for name, expected in (("resnet18_8", 64), ("resnet50_8", 256)):
        network_ = models.make(name, DIM, (32, 32, 3))
        features, _ = outputs(network_, (32, 32, 3))
        assert features.shape == (2, expected)


def outputs(network_, shape):
    variables = jax.eval_shape(lambda: models.initialize(jax.random.key(0), network_, shape))
    return jax.eval_shape(lambda v, x: network_.apply(v, x, train=False), variables, jnp.zeros((2, *shape)))


# Features at 32x32, per architecture.
WIDTHS = {"convnet": 8192, "convnet3": 8192, "convnet4": 2048, "convnet3_in": 2048, "convnet4_in": 512}
WIDTHS |= {"vgg11": 512, "alexnet": 3072, "mobilenet": 1280, "resnet10": 512, "resnet18": 512, "resnet50": 2048}
WIDTHS |= {"vit_tiny": 192}


@pytest.mark.medium
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_shapes(name):
    """Of grey images too: `test_parameters_are_as_many_as_published` has colour."""
    network_ = models.make(name, 7, (32, 32, 1))
    assert network_.dim == 7
    features, predictions = outputs(network_, (32, 32, 1))
    assert features.shape == (2, WIDTHS[name]) and predictions.shape == (2, 7)
    assert features.dtype == predictions.dtype == jnp.float32
    assert hash(network_) == hash(models.make(name, 7, (32, 32, 1)))


def test_maps_of_mobilenet():
    """Strides, which no count shows: the stem and the first two stages keep 32x32."""

    def maps(x):
        return MobileNet(DIM).init_with_output(jax.random.key(0), x, train=False, capture_intermediates=True)[1]

    found = jax.eval_shape(maps, jnp.zeros((1, 32, 32, 3)))["intermediates"]
    sides = [found[f"stage{i + 1}_block1"]["__call__"][0].shape[1] for i in range(len(STAGES))]
    assert sides == [32, 32, 16, 8, 8, 4, 4]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vgg11", (48, 64, 3), "vgg11 does not take images of 48x64: both sides must be multiples of 32"),
        ("alexnet", (12, 16, 3), "alexnet does not take images of 12x16: both sides must be multiples of 8"),
        ("convnet4", (8, 8, 3), "convnet4 does not take images of 8x8: both sides must be multiples of 16"),
        ("convnet_4_4_in", (6, 8, 3), "convnet_4_4_in does not take images of 6x8.*multiples of 4"),
        ("vit_tiny", (28, 28, 1), "vit_tiny does not take images of 28x28: both sides must be multiples of 8"),
        ("vit_tiny", (100, 100, 1), "vit_tiny does not take images of 100x100: both sides must be multiples of"),
        ("mobilenet", (0, 8, 3), "mobilenet does not take images of 0x8: both sides must be at least 1"),
        ("resnet10_4", (8, 0, 3), "resnet10_4 does not take images of 8x0"),
        ("resnet10", (8, 8), r"an image shape is \(height, width, channels\), got \(8, 8\)"),
        (
            "resnet81",
            (8, 8, 3),
            r"no architecture 'resnet81' \(did you mean resnet18\?\).*vit_tiny.*convnet_16_32_64_bn",
        ),
        ("convnet_16_0_bn", (8, 8, 3), "no architecture 'convnet_16_0_bn'"),
        ("convnet_16_none", (8, 8, 3), "no architecture"),
        ("resnet34_16", (8, 8, 3), "no architecture"),
    ],
)
def test_what_cannot_be_made(name, shape, message):
    with pytest.raises(ValueError, match=message):
        models.make(name, DIM, shape)


@pytest.mark.parametrize(("side", "patch"), [(8, 1), (32, 4), (64, 8), (96, 16), (224, 16)])
def test_patches(side, patch):
    assert models.make("vit_tiny", DIM, (side, side, 3)).patch == patch


# Starts.


def expected_start(kind, path, shape):
    """`(distribution, bound or deviation or value)` in the published PyTorch code."""
    name, leaf = path[-2] if len(path) > 1 else "", path[-1]
    if leaf in ("class_token", "positions"):
        return "normal", {"class_token": 1e-6, "positions": 0.02}[leaf]
    if leaf == "scale":
        last = {"resnet10": "norm2", "resnet50": "norm3"}.get(kind)
        return "constant", 0.0 if name == last else 1.0
    if leaf == "bias" and ("norm" in name or name.startswith(("bn", "in"))):
        return "constant", 0.0
    if kind == "vit" and name != "patches":
        return ("normal", 0.02) if leaf == "kernel" else ("constant", 0.0)
    if kind.startswith("resnet") and name not in ("stem", "fc"):
        return "normal", math.sqrt(2 / (shape[0] * shape[1] * shape[3]))
    return "uniform", None


def fan_in_bound(params, path):
    layer = params
    for name in path[:-1]:
        layer = layer[name]
    return math.prod(layer["kernel"].shape[:-1]) ** -0.5


@pytest.mark.medium
@small
def test_starts_are_those_of_the_published_code(kind):
    """Every leaf within what so many numbers can show, and the tree that Flax's own start makes."""
    network_, shape = SMALL[kind]
    variables = jax.device_get(jax.vmap(lambda key: initialize(key, network_, shape))(keys(40)))
    like = jax.eval_shape(lambda: network_.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False))
    assert jax.tree.map(np.shape, jax.tree.map(lambda leaf: leaf[0], variables)) == {
        "batch_stats": {},
        **jax.tree.map(jnp.shape, dict(like)),
    }
    single = jax.tree.map(lambda leaf: leaf[0], variables)["params"]
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables["params"])[0]:
        path = tuple(entry.key for entry in path)
        distribution, number = expected_start(kind, path, leaf.shape[1:])
        if distribution == "constant":
            np.testing.assert_array_equal(leaf, number)
            continue
        tolerance = 4 / math.sqrt(2 * leaf.size)  # deviations of a deviation, of the wider of the two distributions
        if distribution == "uniform":
            bound = fan_in_bound(single, path)
            assert (1 - 20 / leaf.size) * bound < np.abs(leaf).max() <= bound, path
            deviation = bound / math.sqrt(3)
        else:
            deviation = number
            assert np.abs(leaf).max() > 1.9 * number, path  # beyond sqrt(3), where a uniform one ends
        np.testing.assert_allclose(leaf.std(), deviation, rtol=tolerance, err_msg=str(path))
        assert abs(leaf.mean()) < 5 * deviation / math.sqrt(leaf.size), path
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables["batch_stats"])[0]:
        np.testing.assert_array_equal(leaf, {"mean": 0.0, "var": 1.0}[path[-1].key])


def keys(count):
    return jax.random.split(jax.random.key(7), count)


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["convnet", "resnet50", "vit"])
def test_a_start_alone_is_the_start_among_others(kind):
    network_, shape = SMALL[kind]
    together = jax.vmap(lambda key: initialize(key, network_, shape))(keys(3))
    alone = initialize(keys(3)[1], network_, shape)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b), together, alone)
    assert len({float(np.asarray(leaf).sum()) for leaf in together["params"]["fc"]["kernel"]}) == 3


def test_a_start_is_one_draw_layer_by_layer():
    """Kernels before biases, layers by name: what a key means must not change."""
    variables = initialize(jax.random.key(4), ConvNet((2,), 3), (2, 2, 1))["params"]
    draw = np.asarray(jax.random.uniform(jax.random.key(4), (18 + 2 + 6 + 3,), minval=-1.0))
    np.testing.assert_array_equal(variables["conv0"]["kernel"].reshape(-1), np.float32(1 / 3) * draw[:18])
    np.testing.assert_array_equal(variables["conv0"]["bias"], np.float32(1 / 3) * draw[18:20])
    np.testing.assert_array_equal(variables["fc"]["kernel"].reshape(-1), np.float32(2**-0.5) * draw[20:26])
    np.testing.assert_array_equal(variables["fc"]["bias"], np.float32(2**-0.5) * draw[26:])


class Foreign(nn.Module):
    """A network of Flax's own layers."""

    dim: int

    @nn.compact
    def __call__(self, x, train):
        features = nn.relu(nn.Dense(4)(x.reshape(len(x), -1)))
        return features, nn.Dense(self.dim, name="fc")(features)


def test_a_network_of_other_layers_starts_as_it_says():
    found = initialize(jax.random.key(2), Foreign(3), (2, 2, 1))
    expected = jax.jit(Foreign(3).init, static_argnames="train")(
        jax.random.key(2), jnp.zeros((1, 2, 2, 1)), train=False
    )
    assert found["batch_stats"] == {}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found["params"], dict(expected["params"]))


# The contract.


@pytest.mark.medium
@small
def test_contract(kind):
    """In training: both outputs, moving statistics, gradients everywhere; two seeds side by side as each alone."""
    network_, shape = SMALL[kind]
    x = normal(0, 4, *shape)
    like = jax.eval_shape(lambda: models.initialize(jax.random.key(0), network_, shape))
    # Not as they start: blocks that are the identity have no gradient inside.
    seeds = jax.tree.map(lambda leaf: 0.3 + 0.2 * normal(leaf.size, 2, *leaf.shape), like)

    def run(variables):
        params, stats = variables["params"], variables["batch_stats"]

        def loss(params):
            state = {"params": params, "batch_stats": stats}
            (features, predictions), updated = network_.apply(state, x, train=True, mutable=["batch_stats"])
            return jnp.mean(jnp.square(predictions - 1)), (features, predictions, updated.get("batch_stats", {}))

        (_, (features, predictions, updated)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return params["fc"], features, predictions, stats, updated, gradient

    together = jax.jit(jax.vmap(run))(seeds)
    alone = jax.jit(run)(jax.tree.map(lambda leaf: leaf[1], seeds))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-3, atol=2e-4), together, alone)
    fc, features, predictions, stats, updated, gradient = alone
    np.testing.assert_allclose(predictions, features @ fc["kernel"] + fc["bias"].reshape(1, -1), rtol=1e-4, atol=1e-4)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), stats, updated)
    assert all(change > 0 for change in jax.tree.leaves(moved))
    assert bool(stats) == (kind not in ("convnet_in", "vit"))
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_features_in_chunks(monkeypatch):
    """As many as are left over, too; nothing but eval mode."""
    network_, shape = SMALL["resnet10"]
    monkeypatch.setattr(network, "EVAL_CHUNK", 2)
    variables, x = initialize(jax.random.key(0), network_, shape), normal(1, 5, *shape)
    found = jax.jit(lambda v, x: (models.features(network_, v, x), network_.apply(v, x, train=False)[0]))(variables, x)
    assert found[0].shape == (5, 8)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)


# PyTorch's modules. Submodules bear our names, so that their state becomes our variables.


def torch_plain(torch, sizes, plan, channels):
    """`plan` lists widths, and M for a max-pool."""
    layers, inputs = torch.nn.Sequential(), channels
    sizes, count = iter(sizes), 0
    for width in plan:
        if width == "M":
            layers.append(torch.nn.MaxPool2d(2, 2))
            continue
        size = next(sizes)
        layers.add_module(f"conv{count}", torch.nn.Conv2d(inputs, width, size, 1, size // 2))
        layers.add_module(f"bn{count}", torch.nn.BatchNorm2d(width))
        layers.append(torch.nn.ReLU())
        inputs, count = width, count + 1
    # As a list: what is added to the module later on is not part of it. Flattened with the channels last, as ours.
    stack = list(layers)
    return layers, lambda x: functools.reduce(lambda x, layer: layer(x), stack, x).permute(0, 2, 3, 1).flatten(1)


def torch_mobilenet(torch):
    """The three kinds of block: a projected shortcut, a step of two without one, and the plain one."""
    layers = torch.nn.Module()

    def add(parent, name, norm, inputs, outputs, **options):
        parent.add_module(name, torch.nn.Conv2d(inputs, outputs, options.pop("size", 1), bias=False, **options))
        parent.add_module(norm, torch.nn.BatchNorm2d(outputs))

    add(layers, "stem", "stem_norm", 3, 4, size=3, padding=1)
    blocks = {"stage1_block1": (1, 4, 4, 1), "stage2_block1": (2, 4, 6, 2), "stage2_block2": (2, 6, 6, 1)}
    blocks |= {"stage3_block1": (2, 6, 8, 1)}
    for name, (expansion, inputs, outputs, stride) in blocks.items():
        block, inner = torch.nn.Module(), expansion * inputs
        add(block, "expand", "norm1", inputs, inner)
        add(block, "depthwise", "norm2", inner, inner, size=3, stride=stride, padding=1, groups=inner)
        add(block, "project", "norm3", inner, outputs)
        if stride == 1 and inputs != outputs:
            add(block, "shortcut", "shortcut_norm", inputs, outputs)
        layers.add_module(name, block)
    add(layers, "head", "head_norm", 8, 16)

    def forward(x):
        x = torch.relu(layers.stem_norm(layers.stem(x)))
        for name, (_, _, _, stride) in blocks.items():
            block = getattr(layers, name)
            y = torch.relu(block.norm1(block.expand(x)))
            y = block.norm3(block.project(torch.relu(block.norm2(block.depthwise(y)))))
            shortcut = block.shortcut_norm(block.shortcut(x)) if hasattr(block, "shortcut") else x
            x = y + shortcut if stride == 1 else y
        return torch.relu(layers.head_norm(layers.head(x))).mean((2, 3))

    return layers, forward


def torch_resnet(torch, bottleneck):
    """Two stages: with bottlenecks of two blocks and one, otherwise of one and one."""
    width, expansion = (2, 4) if bottleneck else (4, 1)
    layers, inputs, names = torch.nn.Module(), width, []
    layers.stem = torch.nn.Conv2d(3, width, 3, 1, 2, bias=False)
    layers.stem_norm = torch.nn.BatchNorm2d(width)
    for stage, count in enumerate((2, 1) if bottleneck else (1, 1)):
        for number in range(count):
            block, inner = torch.nn.Module(), width * 2**stage
            stride = 2 if stage and not number else 1
            outputs = expansion * inner
            plan = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)]
            plan = plan if bottleneck else [(inputs, inner, 3, stride), (inner, inner, 3, 1)]
            for i, (wide, out, size, step) in enumerate(plan, 1):
                block.add_module(f"conv{i}", torch.nn.Conv2d(wide, out, size, step, size // 2, bias=False))
                block.add_module(f"norm{i}", torch.nn.BatchNorm2d(out))
            if stride != 1 or inputs != outputs:
                block.shortcut = torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                block.shortcut_norm = torch.nn.BatchNorm2d(outputs)
            names.append((f"stage{stage + 1}_block{number + 1}", len(plan)))
            layers.add_module(names[-1][0], block)
            inputs = outputs

    def forward(x):
        x = torch.relu(layers.stem_norm(layers.stem(x)))
        for name, count in names:
            block, y = getattr(layers, name), x
            for i in range(1, count + 1):
                y = getattr(block, f"norm{i}")(getattr(block, f"conv{i}")(y))
                y = torch.relu(y) if i < count else y
            shortcut = block.shortcut_norm(block.shortcut(x)) if hasattr(block, "shortcut") else x
            x = torch.relu(y + shortcut)
        return x.mean((2, 3))

    outer = torch.nn.Module()
    outer.backbone = layers
    return outer, forward


def torch_vit(torch):
    """PyTorch's own encoder layers: norms first, exact GELU."""
    layers = torch.nn.Module()
    layers.patches = torch.nn.Conv2d(3, 12, 4, 4)
    layers.class_token = torch.nn.Parameter(torch.randn(1, 1, 12))
    layers.positions = torch.nn.Parameter(torch.randn(1, 9, 12))
    options = {"batch_first": True, "norm_first": True, "layer_norm_eps": 1e-6}
    for i in range(2):
        layer = torch.nn.TransformerEncoderLayer(12, 3, 48, 0.0, torch.nn.functional.gelu, **options)
        torch.nn.init.normal_(layer.self_attn.in_proj_bias)
        layers.add_module(f"block{i}", layer)
    layers.norm = torch.nn.LayerNorm(12, eps=1e-6)

    def forward(x):
        x = layers.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([layers.class_token.expand(len(x), -1, -1), x], 1) + layers.positions
        return layers.norm(layers.block1(layers.block0(x)))[:, 0]

    return layers, forward


VGG_PLAN = [2, "M", 4, "M", 8, 8, "M", 16, 16, "M", 16, 16, "M"]
ALEXNET_PLAN = [4, "M", 6, "M", 8, 6, 6, "M"]
MOBILENET = MobileNet(DIM, (BlockGroup(1, 4, 1, 1), BlockGroup(2, 6, 2, 2), BlockGroup(2, 8, 1, 1)), 4, 16)


def thin(layers):
    return Plain(tuple(layer._replace(width=layer.width // 32) for layer in layers), DIM)


# Our network, the images for it, how many features come out, and PyTorch's.
REFERENCES = {
    "vgg11": (thin(VGG11), (32, 32, 3), 16, lambda torch: torch_plain(torch, [3] * 8, VGG_PLAN, 3)),
    "alexnet": (thin(ALEXNET), (16, 16, 1), 24, lambda torch: torch_plain(torch, [5, 5, 3, 3, 3], ALEXNET_PLAN, 1)),
    "mobilenet": (MOBILENET, (9, 9, 3), 16, torch_mobilenet),
    "resnet10": (*SMALL["resnet10"], 8, functools.partial(torch_resnet, bottleneck=False)),
    "resnet50": (
        ResNetClassifier(DIM, 2, (2, 1), bottleneck=True),
        (8, 8, 3),
        16,
        functools.partial(torch_resnet, bottleneck=True),
    ),
    "vit": (VisionTransformer(DIM, 4, 12, 2, 3), (8, 16, 3), 12, torch_vit),
}
RENAMED = {"self_attn.in_proj_": "attention.qkv.", "self_attn.out_proj": "attention.out"}
RENAMED |= {"linear1": "mlp1", "linear2": "mlp2"}
LEAVES = {"running_mean": "mean", "running_var": "var", "weight": "scale"}


def variables_of(module):
    """Our variables from the state of a torch module."""
    out = {"params": {}, "batch_stats": {}}
    for name, value in module.state_dict().items():
        for theirs, ours in RENAMED.items():
            name = name.replace(theirs, ours)
        *path, leaf = name.split(".")
        if leaf == "num_batches_tracked":
            continue
        node = out["batch_stats" if leaf.startswith("running") else "params"]
        for part in path:
            node = node.setdefault(part, {})
        value = value.numpy().copy()
        if leaf == "weight" and value.ndim > 1:
            node["kernel"] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        else:
            node[LEAVES.get(leaf, leaf)] = value
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFERENCES)
def test_equals_pytorch(x64, kind):
    """Features, predictions and statistics in both modes, for the same weights, in float64."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network_, shape, width, build = REFERENCES[kind]
    module, features = build(torch)
    module.fc = torch.nn.Linear(width, DIM)
    module.double()
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.ndim == 1 and value.is_floating_point():
                value.uniform_(0.5, 1.5)
    variables = variables_of(module)
    like = jax.eval_shape(lambda: models.initialize(jax.random.key(0), network_, shape))
    assert jax.tree.map(jnp.shape, like) == jax.tree.map(np.shape, variables)
    images = np.random.default_rng(0).normal(size=(4, *shape))
    inputs = channels_first(torch, images)

    @jax.jit
    def both(variables, x):
        return {train: network_.apply(variables, x, train=train, mutable=["batch_stats"]) for train in (False, True)}

    found = both(variables, images)
    for train in (False, True):
        module.train(train)
        with torch.no_grad():
            expected = features(inputs)
            expected = (expected.numpy(), module.fc(expected).numpy())
        close = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-8)
        jax.tree.map(close, found[train][0], expected)
        jax.tree.map(close, found[train][1].get("batch_stats", {}), variables_of(module)["batch_stats"])


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (1, 0)])
def test_depthwise_equals_lax(x64, stride, padding):
    generator = np.random.default_rng(0)
    x, kernel = jnp.asarray(generator.normal(size=(2, 6, 7, 3))), jnp.asarray(generator.normal(size=(3, 3, 1, 3)))

    def grouped(x, kernel):
        numbers, pads = ("NHWC", "HWIO", "NHWC"), [(padding, padding)] * 2
        return lax.conv_general_dilated(
            x, kernel, (stride,) * 2, pads, dimension_numbers=numbers, feature_group_count=3
        )

    def derivatives(apply):
        def total(x, kernel):
            return jnp.sum(jnp.sin(apply(x, kernel)))

        return jax.jit(lambda *a: (apply(*a), jax.grad(total, argnums=(0, 1))(*a)))(x, kernel)

    found = derivatives(lambda x, kernel: depthwise(x, kernel, stride=stride, padding=padding))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), found, derivatives(grouped))
    with pytest.raises(ValueError, match="depthwise needs"):
        depthwise(x, jnp.zeros((3, 3, 3, 3)))


def test_max_pool_gives_the_gradient_to_the_largest():
    x = normal(0, 2, 4, 6, 3)
    blocks = np.asarray(x).reshape(2, 2, 2, 3, 2, 3)
    np.testing.assert_array_equal(max_pool(x), blocks.max((2, 4)))
    gradient = jax.grad(lambda x: jnp.sum(2 * max_pool(x)))(x)
    largest = blocks == blocks.max((2, 4), keepdims=True)
    np.testing.assert_array_equal(gradient, 2.0 * largest.reshape(x.shape))
    assert float(jnp.sum(jax.grad(lambda x: jnp.sum(max_pool(x)))(jnp.ones((1, 2, 2, 1))))) == 1.0
