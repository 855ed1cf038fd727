"""Whole runs with a teacher from elsewhere, without PyTorch: weights in its names are written with NumPy."""

import builtins
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_runs
from flax import traverse_util
from helpers import small_config

from ssdd_jax import config, distilled, main, teacher
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate import sources
from ssdd_jax.models import network
from ssdd_jax.models.frozen import Judged
from ssdd_jax.models.resnet import ResNet
from ssdd_jax.models.vit import Encoder
from ssdd_jax.runtime import files
from ssdd_jax.teacher import pretrained
from ssdd_jax.teacher.pretrained.naming import ORIGINS

pytestmark = pytest.mark.medium

TORCHVISION = next(origin for origin in ORIGINS if origin.name == "torchvision" and origin.kind == "resnet")
TIMM = next(origin for origin in ORIGINS if origin.name == "timm")


def write(path, module, origin, side=8):
    """Fresh weights of a network for three channels, in the names of an origin."""
    variables = network.initialize(jax.random.key(0), module, (side, side, 3))
    leaves = traverse_util.flatten_dict({name: dict(tree) for name, tree in variables.items()}, sep="/")
    tensors = {}
    for name, leaf in leaves.items():
        array, here = np.asarray(leaf), name.partition("/")[2]
        if here.endswith("kernel"):
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        tensors[origin.names(here)[0]] = np.ascontiguousarray(array)
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    tiny_runs.write_data(folder)
    write(folder / "resnet.safetensors", ResNet(2, (1, 1, 1, 1)), TORCHVISION)
    write(folder / "vit.safetensors", Encoder(4, 8, 1, 2, 16), TIMM, side=12)
    return folder


LEAST = {"evaluate__entries": "('distilled','teacher')", "evaluate__seeds": 1, "evaluate__steps": 1}


def line(folder, edition, source="resnet.safetensors", workdir="", **changes):
    changes = LEAST | changes
    return tiny_runs.taught(folder, edition, workdir, teacher__source=folder / source, **changes)


@pytest.mark.slow
def test_a_run_from_weights(folder, capsys):
    assert main.main(line(folder, "random")) == 0
    printed = capsys.readouterr().out
    assert "teacher: ResNet-10 of width 2 in the names of torchvision, 3x3 stem with padding 2, 8x8 inputs" in printed
    results = files.read_json(folder / "random" / "results.json")
    assert results["linear"]["teacher"]["mean"] > 0
    found = distilled.load(folder / "random" / "distilled")
    assert found.about["teacher"].startswith("ResNet-10 of width 2 in the names of torchvision")
    assert found.pairs()[1].shape[1] == 16

    # The features that were kept are those of the network on the images, three equal channels each.
    variables, about = teacher.load(folder / "shared" / "teacher")
    with np.load(folder / "images.npz") as arrays:
        images = arrays["train_images"]
    pixels = (np.repeat(images, 3, axis=3) / 255.0 - np.float32(about["mean"])) / np.float32(about["std"])
    wanted = ResNet(2, (1, 1, 1, 1)).apply(teacher.backbone(variables), jnp.asarray(pixels, jnp.float32), train=False)
    kept = np.load(folder / "shared" / "features" / "train.npy")
    np.testing.assert_allclose(kept, wanted, rtol=1e-4, atol=1e-5)


def test_weights_that_have_changed_since_are_refused(folder, capsys):
    shutil.copy(folder / "resnet.safetensors", folder / "mine.safetensors")
    changes = line(folder, "random", "mine.safetensors", "changed")[:-1]
    assert main.main([*changes, "--stage=features"]) == 0
    tensors = safetensors.numpy.load_file(folder / "mine.safetensors")
    tensors["conv1.weight"] = tensors["conv1.weight"] + 1
    safetensors.numpy.save_file(tensors, folder / "mine.safetensors")
    capsys.readouterr()
    assert main.main(changes) == 2
    assert "was made of other weights than teacher.source=" in capsys.readouterr().err
    (folder / "mine.safetensors").unlink()
    assert main.main([*changes, "--stage=samples"]) == 0  # what was kept is enough


def test_files_beside_the_weights_that_have_changed_since_are_refused(folder, capsys):
    source = folder / "beside"
    source.mkdir()
    shutil.copy(folder / "vit.safetensors", source / "model.safetensors")
    (source / "config.json").write_text('{"num_attention_heads": 2}')
    changes = line(folder, "random", "beside", "changed-beside")[:-1]
    assert main.main([*changes, "--stage=features"]) == 0
    (source / "preprocessor_config.json").write_text('{"image_mean": 0.5, "image_std": 0.5}')
    capsys.readouterr()
    assert main.main(changes) == 2
    assert "was made of other preprocessing than teacher.source=" in capsys.readouterr().err
    (source / "preprocessor_config.json").unlink()
    (source / "config.json").write_text('{"num_attention_heads": 4}')
    assert main.main(changes) == 2
    assert "was made of other settings of the network than teacher.source=" in capsys.readouterr().err
    # The dry run says what is recognised, as a run does.
    (source / "config.json").write_text('{"num_attention_heads": 2}')
    assert main.main([*line(folder, "random", "beside", "planned")[:-1], "--dry_run"]) == 0
    assert "teacher: ViT of width 8, 1 blocks, 2 heads" in capsys.readouterr().out


def test_a_run_without_a_teacher_is_no_source(folder, capsys):
    (folder / "unfinished").mkdir()
    for name in ("config.json", "inputs.json"):
        (folder / "unfinished" / name).write_text("{}")
    assert main.main(line(folder, "random", "unfinished", "of-unfinished")) == 2
    assert "is a run without a finished teacher in it" in capsys.readouterr().err


@pytest.mark.slow
def test_sc_dd_inverts_a_network_from_elsewhere(folder):
    options = {"storage__N": 30, "distill__steps": 5, "scdd__post_epochs": 1}
    assert main.main([*line(folder, "scdd", **options), "--stage=post_training"]) == 0
    assert len(distilled.load(folder / "scdd" / "distilled").pairs()[0]) >= 3
    assert files.read_json(folder / "scdd" / "post_training" / "results.json")["top1"]["mean"] >= 0


@pytest.mark.slow
def test_noise_goes_through_a_transformer_and_sc_dd_refuses_it(folder, capsys):
    def alone(edition):
        return line(folder, edition, "vit.safetensors", f"{edition}-vit", teacher__heads=2)[:-1]  # nothing shared

    assert main.main([*alone("noise"), "--stage=approximate"]) == 0
    assert "12x12 inputs" in capsys.readouterr().out
    assert np.isfinite(distilled.load(folder / "noise-vit" / "distilled").pairs()[1]).all()
    assert main.main(alone("scdd")) == 2
    assert "has none: use a ResNet" in capsys.readouterr().err


@pytest.mark.slow
def test_the_teacher_is_judged_with_its_own_preprocessing(folder):
    source = sources.of_run(folder / "noise-vit")
    module, variables = source.teacher
    assert isinstance(module, Judged) and module.size == 12 and module.channels == 3
    np.testing.assert_allclose(source.moments[0], [0.485, 0.456, 0.406])
    x = jnp.asarray((source.dataset.train_images[:4] / 255.0 - source.moments[0]) / source.moments[1], jnp.float32)
    features = module.apply(variables, x, train=False)[0]
    np.testing.assert_allclose(features, source.features.train[:4], rtol=1e-4, atol=1e-5)


def test_a_file_of_features_as_a_source_means_the_same(folder):
    chosen = small_config()
    chosen.teacher.source = "some/features.npz"
    found = config.resolved(chosen)
    assert found.teacher.features == "some/features.npz" and found.teacher.source == ""
    assert config.resolved(found) is found
    chosen.teacher.features = "others.npz"
    with pytest.raises(UserError, match="are both set: leave one empty"):
        config.validate(chosen)


def test_files_of_pytorch_need_it(tmp_path, monkeypatch):
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04")
    whole = builtins.__import__

    def without(name, *rest, **options):
        if name == "torch":
            raise ImportError(name)
        return whole(name, *rest, **options)

    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'ssdd_jax\[torch\]'"):
        pretrained.load(str(tmp_path / "w.pt"), image_shape=(8, 8, 3), moments=(np.zeros(3), np.ones(3)))
