"""The check of the teacher before a distillation: what it compares, what it says, and that it is done once."""

import dataclasses

import numpy as np
import pytest
import tiny_runs
from helpers import bytes_and_features, dataset, make_run, small_config

from ssdd_jax import main
from ssdd_jax.data import features
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files
from ssdd_jax.stages import gate

pytestmark = pytest.mark.medium


def run_with(folder, teacher, *, gate_="warn"):
    """A run whose teacher's features are `teacher`, the labels' one-hot codes or noise; and what it says."""
    config = small_config()
    config.teacher.gate = gate_
    run, said = make_run(folder, config), []
    labels = run.dataset.train_labels
    noise = np.random.default_rng(0).normal(size=(len(labels), run.problem.dim)).astype(np.float32)
    strong = noise + 20 * np.eye(run.problem.dim, dtype=np.float32)[labels]
    known = features.Features(strong if teacher == "strong" else noise, None)
    return run._replace(known=known, say=said.append), said


def test_a_teacher_passes(tmp_path):
    run, said = run_with(tmp_path, "strong", gate_="refuse")
    gate.check(run)
    found = files.read_json(run.work.gate)
    assert said == [] and found["teacher"] == 100.0 > found["untrained"] and found["images"] == 40


def test_what_is_no_teacher_is_told(tmp_path):
    """Once in a line with both numbers, whether the run goes on or not, and measured once."""
    run, said = run_with(tmp_path, "weak")
    files.write_json(run.work.gate, {"teacher": 40.0, "untrained": 40.0, "images": 40})
    before = run.work.gate.stat().st_mtime_ns
    gate.check(run)
    assert len(said) == 1 and "no teacher" in said[0] and said[0].count("40.0 %") == 2
    refusing, _ = run_with(tmp_path, "weak", gate_="refuse")
    with pytest.raises(UserError, match="no teacher.*40 training images.*teacher.gate=warn") as error:
        gate.check(refusing)
    assert "\n" not in str(error.value) and run.work.gate.stat().st_mtime_ns == before


def test_the_test_split_is_not_touched(tmp_path):
    run, _ = run_with(tmp_path, "weak")
    # Images that follow their labels: an untrained network can tell them apart, noise cannot.
    images = (bytes_and_features()[0] // 8 + 100 * run.dataset.train_labels[:, None, None, None]).astype(np.uint8)
    seen = dataclasses.replace(dataset(images), test_images=None, test_labels=None)
    found = gate.accuracies(run._replace(dataset=seen))
    assert found["untrained"] > 90 > found["teacher"]


@pytest.mark.slow
def test_a_refused_run_ends_with_status_2_and_goes_on_when_it_is_told_to(tmp_path, capsys):
    """In the same folder: the key may change between starts."""
    tiny_runs.write_data(tmp_path)
    with np.load(tmp_path / "features.npz") as archive:
        noise = {name: np.random.default_rng(1).normal(size=part.shape) for name, part in archive.items()}
    np.savez(tmp_path / "noise.npz", **{name: part.astype(np.float32) for name, part in noise.items()})

    def line(choice):
        options = {"teacher__features": tmp_path / "noise.npz", "teacher__gate": choice, "views": "('rot0',)"}
        return tiny_runs.arguments(tmp_path, **options)

    assert main.main(line("refuse")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("ssdd_jax: gate: this is no teacher") and not (tmp_path / "run" / "distilled").exists()
    measured = (tmp_path / "run" / "gate.json").stat().st_mtime_ns
    assert main.main([*line("warn"), "--stage=samples"]) == 0
    assert "gate: this is no teacher" in capsys.readouterr().out
    assert (tmp_path / "run" / "gate.json").stat().st_mtime_ns == measured
