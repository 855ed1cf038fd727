"""Input sizes and crops of pretrained networks: interpolated positions, and the preprocessor's central crop."""

import json

import numpy as np
import pytest
import safetensors.numpy

from ssdd_jax import teacher
from ssdd_jax.errors import UserError
from ssdd_jax.models import frozen
from ssdd_jax.teacher import pretrained
from ssdd_jax.teacher.pretrained import inputs, positions

torch = pytest.importorskip("torch", reason="PyTorch's interpolation is what ours is compared with")
import teacher_networks as networks  # noqa: E402

MOMENTS = np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)


def interpolate(x, **options):
    """PyTorch's, of arrays with channels last."""
    x = torch.from_numpy(x).permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(x, mode="bicubic", **options).permute(0, 2, 3, 1).numpy()


RULES = {
    "DINOv2": (positions.DINOV2, lambda old, new: {"scale_factor": ((new + 0.1) / old,) * 2}),
    "Hugging Face": (positions.HUGGING_FACE, lambda old, new: {"size": (new, new)}),
    "timm": (positions.TIMM, lambda old, new: {"size": (new, new), "antialias": True}),
    "torchvision": (positions.TORCHVISION, lambda old, new: {"size": (new, new), "align_corners": True}),
}


@pytest.mark.parametrize("library", RULES)
@pytest.mark.parametrize(("old", "new"), [(37, 8), (14, 16), (4, 7), (3, 1)])
def test_positions_are_interpolated_as_in_the_library_of_their_network(library, old, new):
    rule, options = RULES[library]
    given = np.random.default_rng(0).normal(size=(1, 1 + old * old, 5)).astype(np.float32)
    wanted = interpolate(given[:, 1:].reshape(1, old, old, 5), **options(old, new)).reshape(1, -1, 5)
    found = positions.interpolated(given, new, rule)
    np.testing.assert_allclose(found[:, 1:], wanted, atol=3e-5)
    np.testing.assert_array_equal(found[:, :1], given[:, :1])  # the class token keeps its own
    assert positions.interpolated(given, old, rule) is given


def folder(path, state, *, preprocessor=None, config=None, origin="timm"):
    names = networks.hugging_face_vit(state) if origin == "Hugging Face" else state
    arrays = {name: np.ascontiguousarray(value.detach().numpy()) for name, value in names.items()}
    path.mkdir()
    safetensors.numpy.save_file(arrays, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"num_attention_heads": 2} | (config or {})))
    if preprocessor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return path


def loaded(path, side=8, **options):
    return pretrained.load(
        str(path), image_shape=(side, side, 3), moments=MOMENTS, options=pretrained.Options(**options)
    )


@pytest.mark.parametrize("origin", ["timm", "Hugging Face"])
@pytest.mark.parametrize("size", [8, 24])
def test_transformers_give_the_features_of_pytorch_at_another_size(origin, size, tmp_path):
    torch.manual_seed(0)
    network = networks.randomised(networks.TimmViT(side=16))
    path = folder(tmp_path / "vit", network.state_dict(), origin=origin, config={"layer_norm_eps": 1e-6})
    variables, description = loaded(path, size=size)
    assert description.size == size and f"{size}x{size} inputs" in description.words
    old, new = 4, size // 4
    options = RULES["DINOv2" if origin == "timm" else origin][1](old, new)
    grid = interpolate(network.pos_embed.detach().numpy()[:, 1:].reshape(1, old, old, -1), **options)
    with torch.no_grad():
        grid = torch.from_numpy(grid).reshape(1, new * new, -1)
        network.pos_embed = torch.nn.Parameter(torch.cat([network.pos_embed[:, :1], grid], 1))
        x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
        wanted = network(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    found = np.asarray(description.frozen(variables).apply(x))
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_the_preprocessor_sets_the_side_and_the_crop_of_a_transformer(tmp_path):
    """Files of DINOv2 at Hugging Face: positions for 518 pixels, a crop of 224 out of 256. Here 64, 16, 20."""
    state = networks.TimmViT(side=64).state_dict()
    cropped = {"do_center_crop": True, "crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 20}}
    path = folder(tmp_path / "vit", state, preprocessor=cropped)
    variables, description = loaded(path)
    assert variables["params"]["positions"].shape[1] == 17 and (description.size, description.shortest_side) == (16, 20)
    assert "16x16 inputs, the centre of images resized to 20" in description.words
    # At another size the crop keeps its proportion.
    description = loaded(path, size=32)[1]
    assert (description.size, description.shortest_side) == (32, 40)
    assert teacher.describe(json.loads(json.dumps(description.as_json()))) == description
    # timm's rule for the positions, and its share that the crop keeps.
    timm = {"pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 0.8, "interpolation": "bicubic"}}
    path = folder(tmp_path / "timm", state, config=timm)
    variables, description = loaded(path)
    assert (description.size, description.shortest_side, description.resize) == (32, 40, "cubic")
    wanted = positions.interpolated(state["pos_embed"].numpy(), 8, positions.TIMM)
    np.testing.assert_array_equal(variables["params"]["positions"], wanted)
    # A size of the files that does not fit the patches.
    odd = cropped | {"crop_size": 18}
    with pytest.raises(UserError, match="the input size 18 of the files is not a multiple of 4") as error:
        loaded(folder(tmp_path / "odd", state, preprocessor=odd))
    assert "\n" not in str(error.value)


PREPROCESSORS = {
    "crop": ({"do_center_crop": True, "crop_size": 224, "size": {"shortest_edge": 256}}, (224, 256)),
    "crop of the whole": ({"do_center_crop": True, "crop_size": 224, "size": 224}, (224, 224)),
    "no crop": ({"do_center_crop": False, "crop_size": 224, "size": {"height": 256, "width": 256}}, (256, 0)),
    "ConvNeXt's": ({"crop_pct": 0.875, "size": {"shortest_edge": 224}}, (224, 256)),
    "ConvNeXt's, large": ({"crop_pct": 0.875, "size": {"shortest_edge": 384}}, (384, 0)),
}


@pytest.mark.parametrize("kind", PREPROCESSORS)
def test_crops_of_preprocessors(kind):
    given, sides = PREPROCESSORS[kind]
    found = inputs.from_files({"preprocessor": given}, "here")
    assert (found.size, found.shortest_side) == sides
    with pytest.raises(UserError, match="here: a central crop of 224 pixels out of 200 would add a border"):
        inputs.from_files({"preprocessor": {"do_center_crop": True, "crop_size": 224, "size": 200}}, "here")


INVALID = {
    "pixels in 0..255": ({"preprocessor": {"do_rescale": False}}, "do_rescale=false"),
    "no resizing": ({"preprocessor": {"do_resize": False}}, "do_resize=false"),
    "another scale": ({"preprocessor": {"rescale_factor": 0.0078}}, "rescale_factor=0.0078"),
    "a squashed crop": ({"config": {"pretrained_cfg": {"crop_pct": 0.9, "crop_mode": "squash"}}}, "crop_mode='squash'"),
    "more than the image": ({"config": {"pretrained_cfg": {"crop_pct": 1.2}}}, "crop_pct=1.2"),
    "a word": ({"config": {"pretrained_cfg": {"crop_pct": "all"}}}, "is invalid .*all"),
    "a list": ({"preprocessor": {"resample": [3]}}, "is invalid"),
    "no number": ({"preprocessor": {"image_mean": ["a", "b"]}}, "is invalid"),
}


@pytest.mark.parametrize("kind", INVALID)
def test_preprocessing_that_is_not_supported_is_refused_in_one_line(kind):
    facts, words = INVALID[kind]
    with pytest.raises(UserError, match=f"^here: .*{words}") as error:
        inputs.from_files(facts, "here")
    assert "\n" not in str(error.value)
    assert ("is invalid" in str(error.value)) == ("is invalid" in words)  # what is not supported is not said to be that


def test_entries_without_a_value_are_left_out():
    empty = {"input_size": None, "crop_pct": None, "mean": None}
    assert inputs.from_files({"config": {"pretrained_cfg": empty}}, "here") == inputs.Inputs()
    assert inputs.from_files({"config": {"pretrained_cfg": None}}, "here") == inputs.Inputs()
    # Hugging Face takes one number for all channels.
    assert inputs.from_files({"preprocessor": {"image_mean": 0.5, "image_std": 0.25}}, "here").mean == (0.5,)


@pytest.mark.parametrize("shape", [(16, 16), (17, 30), (31, 16), (40, 40)])
@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_a_central_crop_is_that_of_torchvision(shape, method):
    """The shorter side resized to 20, the longer one in proportion and rounded down, and the centre of 14."""
    x = np.random.default_rng(1).normal(size=(2, *shape, 3)).astype(np.float32)
    sides = [int(20 * side / min(shape)) for side in shape]
    mode = {"linear": "bilinear", "cubic": "bicubic"}[method]
    whole = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), size=sides, mode=mode, antialias=True
    ).permute(0, 2, 3, 1)
    top, left = (round((side - 14) / 2) for side in sides)
    wanted = whole[:, top : top + 14, left : left + 14].numpy()
    found = frozen.resized(x, 14, method, shortest_side=20)
    # Where the image grows, JAX's bicubic kernel is that of PyTorch's antialiased one, but for the border.
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("missing", ["mean", "std"])
def test_a_teacher_of_a_run_without_its_moments_is_refused(missing):
    about = {"mean": [0.5] * 3, "std": [0.2] * 3}
    assert inputs.from_files({"about": about}, "w").mean == (0.5,) * 3
    with pytest.raises(UserError, match="w: its teacher.json has no mean or std"):
        inputs.from_files({"about": {key: value for key, value in about.items() if key != missing}}, "w")
