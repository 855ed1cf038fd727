"""Networks of PyTorch's, converted: the same features; and what is not a whole network is refused."""

import argparse
import json
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import serialization
from torch_networks import channels_first

from ssdd_jax import teacher
from ssdd_jax.errors import UserError
from ssdd_jax.models import frozen
from ssdd_jax.models.resnet import ResNet
from ssdd_jax.models.vit import Encoder
from ssdd_jax.runtime import files
from ssdd_jax.teacher import pretrained
from ssdd_jax.teacher.network import initialize
from ssdd_jax.teacher.pretrained import inputs

torch = pytest.importorskip("torch", reason="PyTorch's networks are what converted ones are compared with")
import teacher_networks as networks  # noqa: E402

SIDE = 8
MOMENTS = np.array([0.3, 0.4, 0.5], np.float32), np.array([0.2, 0.25, 0.3], np.float32)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def loaded(path, side=SIDE, channels=3, **options):
    return pretrained.load(
        str(path), image_shape=(side, side, channels), moments=MOMENTS, options=pretrained.Options(**options)
    )


def saved(path, state):
    arrays = {name: np.ascontiguousarray(value.detach().numpy()) for name, value in state.items()}
    safetensors.numpy.save_file(arrays, path)
    return path


def difference(network, found, side=SIDE):
    """Of the features of random inputs, over the largest."""
    variables, description = found
    x = np.random.default_rng(0).normal(size=(3, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = network(channels_first(torch, x)).numpy()
    given = description.frozen(variables).replace(size=0)
    features = np.asarray(jax.jit(lambda variables, x: given.replace(variables=variables).apply(x))(variables, x))
    return np.abs(features - wanted).max() / np.abs(wanted).max()


RESNETS = {
    "basic": {},
    "imagenet": {"stem": 7},
    "bottleneck": {"blocks": (1, 1, 1, 1), "bottleneck": True},
    "padding": {"blocks": (1, 1, 1, 1), "padding": 1},
    "option A": {"blocks": (2, 2, 2), "padding": 1, "projection": False},
}


@pytest.mark.medium
@pytest.mark.parametrize("kind", RESNETS)
def test_resnets_give_the_features_of_pytorch(kind, tmp_path):
    network = networks.randomised(networks.ResNet(**RESNETS[kind]))
    path = saved(tmp_path / "w.safetensors", network.state_dict())
    # The padding of a stem shows in shortcuts without parameters only.
    known = {} if kind == "option A" else {"stem_padding": RESNETS[kind].get("padding", 2)}
    found = loaded(path, **known)
    assert difference(network, found, side=16 if kind == "imagenet" else SIDE) < 1e-4
    words = found[1].words
    if kind == "imagenet":
        assert "7x7 stem, 224x224 inputs, ImageNet's mean and std, 32 features" in words and found[1].size == 224
    elif kind == "option A":
        assert words.startswith("supervised ResNet-14 of width 4 in the names of torchvision, 3x3 stem with padding 1")
        assert "8x8 inputs, ImageNet's mean and std, 16 features" in words and not found[1].network.projection
    else:
        assert "3x3 stem with padding" in words and "8x8 inputs, the data set's mean and std" in words
        np.testing.assert_allclose(found[1].mean, MOMENTS[0])


def test_hugging_face_resnet(tmp_path):
    network = networks.randomised(networks.ResNet(stem=7))
    path = saved(tmp_path / "w.safetensors", networks.hugging_face_resnet(network.state_dict()))
    assert difference(network, loaded(path), side=16) < 1e-4


VITS = {"timm": networks.TimmViT, "torchvision": networks.TorchvisionViT}


@pytest.mark.parametrize("kind", [*VITS, "layer scale"])
def test_transformers_give_the_features_of_pytorch(kind, tmp_path):
    network = VITS[kind]() if kind in VITS else networks.TimmViT(scaled=True)
    network = networks.randomised(network)
    found = loaded(saved(tmp_path / "w.safetensors", network.state_dict()), heads=2)
    assert difference(network, found) < 1e-4
    assert "2 heads and patches of 4x4" in found[1].words and found[1].size == SIDE


def test_hugging_face_folder_says_heads_epsilon_and_preprocessing(tmp_path):
    network = networks.randomised(networks.TimmViT(heads=4))
    saved(tmp_path / "model.safetensors", networks.hugging_face_vit(network.state_dict()))
    config = {"num_attention_heads": 4, "layer_norm_eps": 1e-6, "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "size": {"height": 8, "width": 8},
        "resample": 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    found = loaded(tmp_path)
    assert difference(network, found) < 1e-4
    assert found[1].network.heads == 4 and found[1].resize == "cubic"
    assert found[1].mean == (0.1, 0.2, 0.3) and "the file's own mean and std" in found[1].words
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "quick_gelu"}))
    with pytest.raises(UserError, match="hidden_act='quick_gelu'"):
        loaded(tmp_path)


def test_checkpoint_of_solo_learn(tmp_path):
    network = networks.randomised(networks.ResNet(blocks=(1, 1, 1, 1)))
    state = {f"backbone.{name}": value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    heads = {"projector.0.weight": torch.zeros(2, 2), "momentum_backbone.conv1.weight": torch.zeros(2)}
    content = {"state_dict": state | heads, "epoch": 2, "hyper_parameters": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "solo.ckpt")
    found = loaded(tmp_path / "solo.ckpt")
    assert difference(network, found) < 1e-4 and "under state_dict.backbone." in found[1].words


def test_checkpoint_of_dino_is_its_teacher(tmp_path):
    network, other = (networks.randomised(networks.TimmViT()) for _ in range(2))
    state, unused = (
        {f"module.backbone.{name}": value for name, value in one.state_dict().items() if not name.startswith("head.")}
        for one in (network, other)
    )
    torch.save({"student": unused, "teacher": state | {"head.mlp.0.weight": torch.zeros(2)}}, tmp_path / "dino.pth")
    assert difference(network, loaded(tmp_path / "dino.pth", heads=2)) < 1e-4


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy", "msgpack"])
def test_files_are_recognised_by_their_content(form, tmp_path):
    """PyTorch's files end in .th and .pth.tar besides; the form before version 1.6 has no zip archive."""
    path, state = tmp_path / "weights.th", backbone_of(networks.ResNet(blocks=(1, 1, 1, 1)))
    if form == "safetensors":
        saved(path, state)
    elif form == "msgpack":
        network = ResNet(4, (1, 1, 1, 1))
        variables = jax.device_get(initialize(jax.random.key(1), network, (SIDE, SIDE, 3)))
        path.write_bytes(serialization.msgpack_serialize(variables))
    else:
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=form == "zip")
    assert "ResNet-10 of width 4" in loaded(path)[1].words


def backbone_of(network):
    return {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}


def test_half_precision_is_read(tmp_path):
    network = networks.randomised(networks.TimmViT(depth=1)).bfloat16()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    assert difference(network.float(), loaded(tmp_path / "w.pt", heads=2)) < 1e-4


@pytest.mark.parametrize("form", ["orbax", "msgpack", "safetensors", "teacher"])
def test_own_networks(form, tmp_path):
    network = ResNet(2, (1, 1, 1, 1))
    variables = jax.device_get(initialize(jax.random.key(1), network, (SIDE, SIDE, 3)))
    nested = {
        name: {"backbone": tree, "projector": {"norm": {"scale": np.ones(2)}}} for name, tree in variables.items()
    }
    path = tmp_path / "w"
    if form == "orbax":
        with ocp.StandardCheckpointer() as saver:
            saver.save(path, nested)
    elif form == "msgpack":
        path = tmp_path / "w.msgpack"
        path.write_bytes(serialization.msgpack_serialize(nested))
    else:
        name = "teacher.safetensors" if form == "teacher" else "w.safetensors"
        checksum = files.write_tensors(path / name, nested)
        path = path if form == "teacher" else path / name
        about = {"blocks": [1, 1, 1, 1], "width": 2, "mean": [0.1] * 3, "std": [0.2] * 3, "sha256": checksum}
        files.write_json(tmp_path / "w" / "teacher.json", about) if form == "teacher" else None
    found, description = loaded(path)
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    assert description.network.width == 2 and description.network.blocks == (1, 1, 1, 1)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


def refused(path, state, **options):
    with pytest.raises(UserError) as error:
        loaded(saved(path, state), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_wrong_or_partial_match_is_refused_with_a_list(tmp_path):
    path, state = tmp_path / "w.safetensors", networks.ResNet(blocks=(1, 1, 1, 1)).state_dict()
    text = refused(path, without(state, "layer3.0.bn2.running_var"))
    assert "1 missing (layer3.0.bn2.running_var)" in text and "left over" not in text
    text = refused(path, state | {"layer3.0.se.fc1.weight": torch.zeros(2, 2)})
    assert "1 left over (layer3.0.se.fc1.weight)" in text and "missing" not in text
    text = refused(path, state | {"layer2.0.conv2.weight": torch.zeros(8, 2, 3, 3)})
    assert "1 of another shape (layer2.0.conv2.weight (3, 3, 2, 8), not (3, 3, 8, 8))" in text
    extra = {f"layer2.0.extra.{i}": torch.zeros(1) for i in range(25)}
    assert "25 left over (layer2.0.extra.0, " in refused(path, state | extra)
    assert "values that are not finite" in refused(path, state | {"bn1.bias": torch.full((4,), torch.nan)})
    assert "neither 3x3 nor 7x7" in refused(path, state | {"conv1.weight": torch.zeros(4, 3, 5, 5)})
    assert "no ResNet or vision transformer" in refused(path, {"encoder.weight": torch.zeros(2)})


def test_transformers_that_are_not_known_are_refused(tmp_path):
    path, state = tmp_path / "w.safetensors", networks.TimmViT(depth=1).state_dict()
    assert "1 left over (register_tokens)" in refused(path, state | {"register_tokens": torch.zeros(1, 4, 24)})
    text = refused(path, state | {"pos_embed": torch.zeros(1, 4, 24)}, heads=2)
    assert "4 positions are not those of a square" in text
    text = refused(path, state, heads=5)
    assert "5 heads do not divide the width 24" in text and "config.json" not in text
    text = refused(path, state, heads=2, size=18)
    assert "input_size=18 is not a multiple of 4" in text and "set config.teacher.input_size to 16 or 20" in text


class Object:
    pass


def test_files_that_are_not_weights_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.pt").write_text("these are no weights")
    torch.save({"state_dict": {}, "args": Object()}, tmp_path / "object.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    torch.save(networks.TimmViT().state_dict(), tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:5000])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10" + bytes(7) + b"{" + b"x" * 30)
    (tmp_path / "cut.msgpack").write_bytes(b"\x81\xa6params")
    for name, tree in (("number", {3: np.zeros(2)}), ("bytes", {"conv": {"kernel": b"1234"}})):
        (tmp_path / f"{name}.msgpack").write_bytes(serialization.msgpack_serialize({"params": tree}))
    (tmp_path / "empty").write_bytes(b"")
    np.savez(tmp_path / "features", train=np.zeros((2, 3)))
    (tmp_path / "features.npz").rename(tmp_path / "features.weights")
    with tarfile.open(tmp_path / "some.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "whole.pt")
    expected = {
        "text.pt": "not in a supported format, or damaged",
        "cut.pt": "not a PyTorch file",
        "object.pt": "objects that loading would execute",
        "none.pt": "no named tensors",
        "cut.safetensors": "not a safetensors file",
        "cut.msgpack": "not a Flax file",
        "number.msgpack": "number.msgpack",
        "bytes.msgpack": "conv.kernel is no array of numbers",
        "empty": "is empty",
        "features.weights": "if they are features, name the file .npz",
        "some.tar.gz": "an archive, to be unpacked first",
        "nothing.pt": "no file or folder",
        ".": "not in a supported format",
    }
    for name, words in expected.items():
        with pytest.raises(UserError, match=words) as error:
            loaded(tmp_path / name)
        assert "\n" not in str(error.value)


def test_channels_and_constants():
    constants = inputs.CONSTANTS["imagenet"]
    assert inputs.channels_of(((0.5,), (0.25,)), 3, 1) == ((0.5,) * 3, (0.25,) * 3)
    assert inputs.channels_of(constants, 3, 1) == constants
    with pytest.raises(UserError, match="images of 1 channels, the data set has 3"):
        inputs.channels_of(constants, 1, 3)
    with pytest.raises(UserError, match="for 3 channels"):
        inputs.channels_of(constants, 1, 1)


@pytest.mark.parametrize("side", [8, 32])
def test_resizing_is_that_of_pytorch(side):
    x = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    options = {"size": (side, side), "mode": "bilinear", "antialias": True}
    wanted = torch.nn.functional.interpolate(torch.from_numpy(x).permute(0, 3, 1, 2), **options).permute(0, 2, 3, 1)
    np.testing.assert_allclose(frozen.resized(jnp.asarray(x), side), wanted.numpy(), atol=1e-5)


def test_inputs_of_a_data_set_become_those_of_the_network():
    description = teacher.Description(Encoder(4, 8, 1, 1), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), 8)
    network = description.frozen({}, given=(np.float32([0.2]), np.float32([0.5])))
    pixels = np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype(np.float32)
    found = (pixels - 0.2) / 0.5 * np.asarray(network.scale) + np.asarray(network.shift)
    np.testing.assert_allclose(found, (pixels - np.float32([0.5, 0.4, 0.3])) / np.float32([0.1, 0.2, 0.3]), atol=1e-5)
    again = teacher.describe(json.loads(json.dumps(description.as_json())))
    assert again == description
