"""A teacher trained with its curve: the probe, the export that a run reads, and a resumed training."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from sklearn.linear_model import Ridge

from experiments import offline_images, train_teacher
from ssdd_jax import main
from ssdd_jax.runtime import files


def test_the_probe_is_ridge_regression_on_standardised_features():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 100)
    features = generator.normal(size=(100, 5)) + np.eye(3, 5)[labels]
    scaled = features * [1, 10, 100, 1e-3, 1e3] + 7  # the probe does not depend on the scale
    held = np.arange(100) % 5 == 0
    inputs = (features - features[~held].mean(0)) / features[~held].std(0)
    scores = [
        np.mean(
            Ridge(alpha=r * 80).fit(inputs[~held], np.eye(3)[labels[~held]]).predict(inputs[held]).argmax(1)
            == labels[held]
        )
        for r in train_teacher.RIDGES
    ]
    assert train_teacher.probe(scaled, labels, 3) == pytest.approx(100 * max(scores))


@pytest.mark.slow
def test_the_export_is_a_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(train_teacher, "EVERY", 1)
    tiny_runs.write_data(tmp_path)
    training = tiny_runs.taught(tmp_path, "boost", "teacher", teacher__steps_per_call=3)[:-1]
    assert train_teacher.main(training) == 0
    export = tmp_path / "teacher" / "export"
    curve = json.loads((export / "curve.json").read_text())
    assert [point["epoch"] for point in curve["curve"]] == [1, 2]
    assert train_teacher.main(training) == 0  # complete: nothing is trained again, and the curve stays
    assert json.loads((export / "curve.json").read_text()) == curve
    source = tiny_runs.arguments(tmp_path, "run", teacher__features="", teacher__source=export)
    assert main.main([*source, "--stage=features"]) == 0


@pytest.mark.medium
def test_a_training_is_bound_to_its_config(tmp_path, monkeypatch, capsys):
    tiny_runs.write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = tiny_runs.taught(tmp_path, "boost", "teacher", teacher__epochs=2)[:-1]
    assert train_teacher.main([*given, "--dry_run"]) == 2
    assert "has the options --config, --workdir" in capsys.readouterr().err
    assert train_teacher.main(given) == 0
    assert train_teacher.main([*given, "--config.teacher.epochs=3"]) == 2
    assert "teacher.epochs (2 there, 3 now)" in capsys.readouterr().err
    # By default its folder is not that of a run, whose checkpoints are of another kind.
    assert train_teacher.main([argument for argument in given if not argument.startswith("--workdir")]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("teacher-")


def test_what_float16_cannot_hold_stays_float32(tmp_path):
    variables = {"params": {"backbone": {"a": jnp.array([1.5])}}, "batch_stats": {"backbone": {"v": jnp.array([1e5])}}}
    train_teacher.export(tmp_path, variables, {"width": 1})
    stored = files.read_tensors(tmp_path / "teacher.safetensors")
    assert stored["params"]["backbone"]["a"].dtype == np.float16
    np.testing.assert_array_equal(stored["batch_stats"]["backbone"]["v"], np.float32([1e5]))


def test_encoded_images_are_decoded_as_they_were(tmp_path):
    from PIL import Image

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    encoded = []
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
        encoded.append((tmp_path / f"{index}.png").read_bytes())
    arrays = {}
    for split, chosen in (("train", encoded[:3]), ("test", encoded[3:])):
        arrays[f"{split}_files"] = np.frombuffer(b"".join(chosen), np.uint8)
        arrays[f"{split}_lengths"] = np.array([len(file) for file in chosen])
        arrays[f"{split}_labels"] = np.arange(len(chosen))
    np.savez(tmp_path / "packed.npz", **arrays)
    offline_images.main(["unpack", str(tmp_path / "packed.npz"), str(tmp_path / "images.npz")])
    with np.load(tmp_path / "images.npz") as found:
        np.testing.assert_array_equal(np.concatenate([found["train_images"], found["test_images"]]), images)
        np.testing.assert_array_equal(found["train_labels"], [0, 1, 2])
