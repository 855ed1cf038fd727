"""Ready-made sets: they lie in the repository and in the wheel, and the guide shows their numbers."""

import pathlib
import re
import tomllib

import numpy as np
import pytest
from helpers import bytes_and_features
from tiny_runs import ROOT

import ssdd_jax
from experiments.measure import comparison
from ssdd_jax import export, report
from ssdd_jax.errors import UserError
from ssdd_jax.formats import ready
from ssdd_jax.report import labels
from ssdd_jax.runtime import files

RESULTS = ROOT / "experiments" / "results"


def published(name):
    """Return the published facts about a set: numbers or bytes stored, budget, title, and its measures."""
    folder = RESULTS / ready.SETS[name].folder
    if folder.parent.name == "sets":  # of a comparison, of which it is the first seed's
        content = files.read_json(folder.parents[1] / "comparison.json")
        (row,) = [row for row in content["rows"] if row["method"] == folder.name]
        measures = {measure: f"{values[0]:.{LABELS[measure]}f}" for measure, values in row["values"].items()}
        return row["numbers"], row["budget"], comparison.label(row["method"]), measures
    results = report.upgrade(files.read_json(folder.parent / "results.json"))
    storage, entries = results["storage"], {measure: results[measure]["distilled"] for measure in LABELS}
    measures = {
        measure: labels.value(measure, one["mean"], one["std"], one["seeds"]) for measure, one in entries.items()
    }
    return storage["numbers"], storage["budget"], labels.method(results), measures


LABELS = {"linear": 1, "linear_krr_st": 1, "few_shot": 1, "feature_r2": 3, "feature_r2_whitened": 3}


@pytest.mark.parametrize("name", ready.SETS)
def test_is_loaded_by_name(name):
    loaded, (size, budget, *_) = ssdd_jax.load(name), published(name)
    # The set is that of the published results; sizes chosen by the data differ a little from seed to seed.
    file = RESULTS / ready.SETS[name].folder / "set.safetensors"
    stored = loaded.numbers_stored() if loaded.stored is None else file.stat().st_size
    assert abs(stored / size - 1) < 0.01 and stored <= budget
    config = loaded.about["config"]
    in_bytes = config.get("storage.bytes", 0)  # sets of earlier versions have no such key
    assert ready.SETS[name].words.endswith(f", {in_bytes:,} bytes" if in_bytes else f", N = {config['storage.N']}")
    assert (f"-b{in_bytes}" if in_bytes else f"-n{config['storage.N']}") in name
    assert all(np.isfinite(array).all() for array in loaded.pairs())


@pytest.mark.parametrize("name", ready.SETS)
def test_is_in_the_wheel(name):
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    folder = pathlib.PurePath(ready.SETS[name].folder)
    places = [wheel["force-include"].get(f"experiments/results/{one}") for one in (folder, *folder.parents)]
    assert f"ssdd_jax/sets/{folder}".startswith(next(filter(None, places)))
    assert sum(file.stat().st_size for file in (RESULTS / folder).iterdir()) < 3e6


@pytest.mark.parametrize("name", ready.SETS)
def test_the_guide_shows_its_numbers(name):
    *_, title, measures = published(name)
    guide = (ROOT / "docs" / "guides" / "sharing.md").read_text()
    row = re.search(rf"^\| `{name}` \|.*$", guide, re.MULTILINE)[0]
    assert title in row
    # The command that made it is one that a guide explains, word for word.
    pages = "\n".join((ROOT / "docs" / "guides" / f"{page}.md").read_text() for page in ("results", "bytes"))
    assert f"{ready.SETS[name].command}\n" in pages or f"`{ready.SETS[name].command}`" in pages
    for measure in ("linear", "few_shot", "feature_r2"):
        assert f"| {measures[measure]} |" in row, measure


def test_a_path_takes_precedence(tmp_path, monkeypatch):
    name = next(iter(ready.SETS))
    images, features = bytes_and_features(4)
    (tmp_path / name).mkdir()
    np.savez(tmp_path / name / "pairs.npz", images=images, targets=features)
    monkeypatch.chdir(tmp_path)
    assert ssdd_jax.load(name).about["method"] == "imported"


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(
        UserError, match=f"there is nothing at digit-n20: .*ready-made sets are .*{next(iter(ready.SETS))}"
    ):
        ssdd_jax.load("digit-n20")


def test_a_set_that_is_not_installed_says_where_it_is(tmp_path, monkeypatch):
    name, one = next(iter(ready.SETS.items()))
    monkeypatch.setattr(ready, "_PACKAGE", tmp_path / "ssdd_jax")
    with pytest.raises(UserError, match=f"experiments/results/{one.folder} .*{re.escape(one.command)}"):
        ready.find(name)
    (tmp_path / "ssdd_jax" / "sets" / one.folder).mkdir(parents=True)
    assert ready.find(name) == tmp_path / "ssdd_jax" / "sets" / one.folder
    assert ready.find("no such set") is None


def test_is_exported_to_the_current_folder(tmp_path, monkeypatch, capsys):
    """Not into the installation; the help page lists the names."""
    name = next(iter(ready.SETS))
    monkeypatch.chdir(tmp_path)
    assert export.main([f"--set={name}", "--form=npz"]) == 0
    assert (tmp_path / "export-npz" / "pairs.npz").is_file()
    assert export.main(["--help"]) == 0 and name in capsys.readouterr().out
