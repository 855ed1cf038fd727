"""Choosing settings on held-out training images: which images the runs see, and which values they compare."""

import json
import re

import numpy as np
import pytest
import tiny_runs

from experiments import choose
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files


def command(folder, *last):
    taught = tiny_runs.taught(folder, "random", evaluate__seeds=1)
    changes = [line for line in taught if line.startswith("--config.")]
    return [
        f"--config={tiny_runs.ROOT / 'configs' / 'digits.py'}:random",
        *changes,
        f"--workdir={folder / 'choose'}",
        *last,
    ]


@pytest.mark.medium
def test_values_are_compared_without_the_test_images(tmp_path, capsys):
    tiny_runs.write_data(tmp_path)
    line = command(
        tmp_path, "--vary=storage.N=2,4,8", "--vary=student.widths=(4,8),(2,4)", "--seeds=2", "--by=feature_r2"
    )
    assert choose.main(line) == 0, capsys.readouterr().err
    folder, with_test = tmp_path / "choose", np.load(tmp_path / "images.npz")
    with np.load(folder / "training.npz") as archive:
        np.testing.assert_array_equal(archive["train_images"], with_test["train_images"])
        assert not [name for name in archive.files if "test" in name]
    results = json.loads((folder / "storage.N=2-seed0" / "results.json").read_text())
    total = len(with_test["train_images"])
    assert results["data"]["images"] + results["data"]["test_images"] == total and results["data"]["test_images"] > 0
    rows = json.loads((folder / "choices.json").read_text())["rows"]
    assert [(row["key"], row["value"], row["as_it_is"]) for row in rows] == [
        *(("storage.N", 4, True), ("storage.N", 2, False), ("storage.N", 8, False)),
        *(("student.widths", [4, 8], True), ("student.widths", [2, 4], False)),
    ]
    assert all(len(row["values"]["feature_r2"]) == 2 for row in rows) and rows[0]["values"] == rows[3]["values"]
    # One row of each key is best, and nothing is run again.
    text = (folder / "choices.md").read_text()
    assert text.count("| best |") == 2 and text.split("\n\n")[0] in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*-seed*/results.json")}
    assert len(before) == 2 * 4 and choose.main(line) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*-seed*/results.json")} == before
    # Never values of other images.
    assert choose.main([*line, "--config.data.train_limit=50"]) == 2
    assert "is of another data set or of other config.data" in capsys.readouterr().err


def rows(*means):
    return [
        {"key": "k", "value": number, "as_it_is": not number, "values": {"few_shot": [mean]}}
        for number, mean in enumerate(means)
    ]


def test_the_best_is_the_highest_and_the_first_of_equal_ones():
    assert choose.best(rows(1.0, 3.0, 2.0), "few_shot")["k"]["value"] == 1
    assert choose.best(rows(3.0, 3.0), "few_shot")["k"]["value"] == 0
    assert choose.best(rows(3.0), "linear") == {}


def test_every_value_has_a_folder_of_its_own():
    values = ("(8,16)", "(8,16,)", "8_16", "0.01", "a=b")
    folders = [choose.Choice("student.widths", value).folder for value in values]
    assert len(set(folders)) == len(values) and folders[3] == "student.widths=0.01"
    assert all(re.fullmatch(r"[\w.=-]+", folder) for folder in folders)


def test_a_measure_that_there_is_not_ends_after_the_first_runs(tmp_path, monkeypatch):
    options = choose.parse(["--vary=storage.N=2,3", f"--workdir={tmp_path}", "--by=few_shot"])
    tried = []
    results = {"linear": {"distilled": {"values": [1.0]}}}
    monkeypatch.setattr(choose, "prepare", lambda options: None)
    monkeypatch.setattr(choose, "run", lambda options, choice, seed: tried.append(choice) or results)
    with pytest.raises(UserError, match="few_shot is not measured on these data: choose --by=linear"):
        choose.measure(options)
    assert tried == [None] * 3


def test_what_runs_share_is_shared_unless_it_varies(tmp_path, monkeypatch):
    """As the record of the shared folder says, which depends on the method."""
    taken = []
    monkeypatch.setattr(choose.pipeline, "run", lambda config, folder, *, shared, say: taken.append(shared.name) or {})
    line = ["--vary=experts.epochs=7", "--vary=distill.steps=9", f"--workdir={tmp_path}"]
    options = choose.parse(line)
    files.write_json(tmp_path / "shared" / "experts.json", {"experts.epochs": 3})
    for choice in (None, *options.choices):
        choose.run(options, choice, 0)
    assert taken == ["shared", "shared-experts.epochs=7", "shared"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ([], "name what to vary"),
        (["--vary=distill.steps"], "it is --vary=KEY=VALUE,VALUE"),
        (["--vary=seed=1,2"], "config.seed cannot be varied"),
        (["--vary=data.image_size=8,16"], "config.data.image_size cannot be varied"),
        (["--vary=distill.stepps=1"], "distill.stepps"),
        (["--vary=distill.steps=1,0"], "distill.steps"),
        (["--vary=distill.steps=1", "--by=loss"], "unknown measure 'loss'"),
        (["--vary=distill.steps=1", "--by=linear,few_shot"], "--by=linear,few_shot: name one measure"),
        (["--vary=distill.steps=1", "--config.seed=7"], "config.seed differs between the runs"),
        (["--vary=distill.steps=1", "--config.teacher.features=f.npz"], "config.teacher.features are of all images"),
    ],
)
def test_mistakes_are_found_before_the_first_run(line, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose.main(line) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not any(tmp_path.iterdir())
