"""Whole runs: what they leave behind, and that they continue bit for bit."""

import json
import os
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs

import ssdd_jax
from ssdd_jax import main
from ssdd_jax.runtime import history

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def finished(session_folder):
    """A run left alone, in a process of its own as the interrupted ones are."""
    return tiny_runs.finished(session_folder)


def artefact(run, part="distilled"):
    return {file.name: file.read_bytes() for file in sorted((run / part).iterdir())}


def about_without_paths(run):
    """The description without the paths of the folder that a run happened to be in."""
    description = json.loads((run / "distilled" / "set.json").read_text())
    for key in ("data.name", "teacher.features"):
        description["about"]["config"].pop(key)
    description["about"].pop("dataset")
    description.pop("own_sha256")  # of the paths too
    return description


def test_results_are_complete(finished):
    run, out = finished
    results = json.loads((run / "results.json").read_text())
    assert results["schema"] == 2 and results["calibrate"] == "untrained"
    for measure in ("linear", "linear_krr_st", "few_shot", "feature_r2", "feature_r2_whitened"):
        assert list(results[measure]) == ["distilled", "random_real", "random_init", "full_data", "teacher"]
        for row in results[measure].values():
            assert {"mean", "std", "seeds"} <= set(row) and row["seeds"] == 2
            assert np.isclose(np.mean(row["values"]), row["mean"], atol=1e-3)
    assert results["feature_r2"]["teacher"]["mean"] > 0.999
    one = {"steps": 5, "learning_rate": 0.1, "weight_decay": 1e-3, "cosine": False}
    # Real images take the better of two published settings.
    assert results["training"].pop("random_real") in (one, one | {"learning_rate": 0.01, "weight_decay": 5e-4})
    assert results["training"] == {
        "distilled": one,
        "full_data": one | {"steps": 3, "weight_decay": 1e-4, "cosine": True},
    }
    assert set(results["gate"]) == {"teacher", "untrained", "images"} and results["gate"]["images"] == 120
    storage = results["storage"]
    assert storage["numbers"] <= storage["budget"] == 4 * (8 * 8 * 1 + 12)
    assert storage["numbers"] == sum(storage["parts"].values())
    assert storage["bytes"] == sum(len(content) for content in artefact(run).values())
    assert set(results["seconds"]) == {
        *("data", "teacher", "features", "gate", "samples", "distill", "approximate", "evaluate")
    }
    assert results["method"] == "boost" and results["dataset"].startswith("npz:")
    assert "| distilled set |" in out and f"all on one page in {run / 'report.html'}" in out


def test_figures_show_something(finished):
    from PIL import Image

    run, _ = finished
    assert {file.name for file in (run / "figures").iterdir()} == {
        "distilled.png",
        "bases.png",
        "loss.png",
        "results.png",
    }
    for file in (run / "figures").iterdir():
        with Image.open(file) as image:
            assert np.asarray(image.convert("L")).std() > 5, file


def test_metrics_have_every_call_once(finished):
    run, _ = finished
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 41, 5))
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_artefact_loads_in_one_line(finished):
    run, _ = finished
    distilled = ssdd_jax.load(run / "distilled")
    images, targets = distilled.pairs()
    assert images.shape[1:] == (8, 8, 1) and targets.shape[1:] == (12,) and len(images) == len(targets)
    assert (distilled.about["method"], distilled.about["title"]) == ("boost", "Boost-SSDD")
    assert distilled.about["seed"] == 0 and distilled.about["config"]["storage.N"] == 4
    assert bool(jnp.isfinite(images).all() & jnp.isfinite(targets).all())


def test_the_same_command_again_does_nothing(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    before = {file: file.stat().st_mtime_ns for file in (run / "distilled").iterdir()}
    assert main.main(tiny_runs.arguments(finished[0].parent, run)) == 0
    assert before == {file: file.stat().st_mtime_ns for file in (run / "distilled").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_interrupted_run_ends_with_the_same_bits(number, finished, tmp_path):
    tiny_runs.write_data(tmp_path)
    line = tiny_runs.arguments(tmp_path, **tiny_runs.CHECKED)
    process = tiny_runs.start(line, tmp_path)
    tiny_runs.wait_for_step(tmp_path / "run", 20, process)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=tiny_runs.TIMEOUT)
    assert not (tmp_path / "run" / "results.json").exists(), "the run was over before it was interrupted"
    if number == signal.SIGTERM:
        assert process.returncode == 0, err
        assert "the same command continues" in err
    # One of the two goes on to the results.
    last = ["--stage=approximate"] if number == signal.SIGTERM else []
    again = tiny_runs.start([*line, *last], tmp_path)
    _, err = again.communicate(timeout=tiny_runs.TIMEOUT)
    assert again.returncode == 0, err
    assert (tmp_path / "run" / "results.json").exists() == (number == signal.SIGKILL)
    expected, found = artefact(finished[0]), artefact(tmp_path / "run")
    assert found["set.safetensors"] == expected["set.safetensors"]
    assert about_without_paths(tmp_path / "run") == about_without_paths(finished[0])
    assert artefact(tmp_path / "run", "snapshots") == artefact(finished[0], "snapshots")
    assert len(history.read(tmp_path / "run" / "calls.jsonl")) == 2
    lines = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == sorted(set(lines)) and lines[-1] == 40


@pytest.mark.slow
def test_without_labels_and_test_features(tmp_path, capsys):
    tiny_runs.write_data(tmp_path, labels=False)
    with np.load(tmp_path / "features.npz") as archive:
        np.save(tmp_path / "train.npy", archive["train"])
    assert main.main(tiny_runs.arguments(tmp_path, teacher__features=tmp_path / "train.npy")) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert not {"linear", "linear_krr_st", "few_shot", "feature_r2", "gate"} & set(results)
    assert "feature_r2 and the teacher's row are omitted" in capsys.readouterr().out


@pytest.mark.slow
def test_with_a_teacher_of_its_own(tmp_path):
    """The teacher is trained, kept, and its checkpoints are gone."""
    tiny_runs.write_data(tmp_path)
    line = tiny_runs.taught(tmp_path, "boost", "run", evaluate__entries="('distilled',)")[:-1]
    assert main.main([*line, "--stage=evaluate"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["storage"]["budget"] == 4 * (64 + 16)
    assert all(list(results[measure]) == ["distilled"] for measure in ("linear", "few_shot", "feature_r2"))
    assert sorted(file.name for file in (tmp_path / "run" / "teacher").iterdir()) == [
        "teacher.json",
        "teacher.safetensors",
    ]
