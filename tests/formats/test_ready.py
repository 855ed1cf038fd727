"""Ready-made sets: they lie in the repository and in the wheel, and the guide shows their numbers."""

import re
import tomllib

import numpy as np
import pytest
from helpers import bytes_and_features
from tiny_runs import ROOT

import ssdd_jax
from ssdd_jax import export, report
from ssdd_jax.errors import UserError
from ssdd_jax.formats import ready
from ssdd_jax.report import labels
from ssdd_jax.runtime import files

RESULTS = ROOT / "experiments" / "results"


@pytest.mark.parametrize("name", ready.SETS)
def test_is_loaded_by_name(name):
    one = ready.SETS[name]
    loaded = ssdd_jax.load(name)
    results = report.upgrade(files.read_json(RESULTS / one.folder / "results.json"))
    # The set is that of the published results.
    assert loaded.numbers_stored() == results["storage"]["numbers"] <= results["storage"]["budget"]
    assert (loaded.about["method"], loaded.about["dataset"]) == (results["method"], results["dataset"])
    assert name.endswith(f"-n{loaded.about['config']['storage.N']}") and one.words.endswith(
        f", N = {loaded.about['config']['storage.N']}"
    )
    assert all(np.isfinite(array).all() for array in loaded.pairs())


@pytest.mark.parametrize("name", ready.SETS)
def test_is_in_the_wheel(name):
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    source = f"experiments/results/{ready.SETS[name].folder}/distilled"
    assert wheel["force-include"][source] == f"ssdd_jax/sets/{name}"
    assert sum(file.stat().st_size for file in (ROOT / source).iterdir()) < 3e6


@pytest.mark.parametrize("name", ready.SETS)
def test_the_guide_shows_its_numbers(name):
    results = report.upgrade(files.read_json(RESULTS / ready.SETS[name].folder / "results.json"))
    guide = (ROOT / "docs" / "guides" / "sharing.md").read_text()
    row = re.search(rf"^\| `{name}` \|.*$", guide, re.MULTILINE)[0]
    assert f"| `{ready.SETS[name].command}` |" in row and labels.method(results) in row
    for measure in ("linear", "few_shot", "feature_r2"):
        entry = results[measure]["distilled"]
        assert f"| {labels.value(measure, entry['mean'], entry['std'])} |" in row, measure


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
    with pytest.raises(UserError, match=f"experiments/results/{one.folder}/distilled .*{one.command}"):
        ready.find(name)
    (tmp_path / "ssdd_jax" / "sets" / name).mkdir(parents=True)
    assert ready.find(name) == tmp_path / "ssdd_jax" / "sets" / name
    assert ready.find("no such set") is None


def test_is_exported_to_the_current_folder(tmp_path, monkeypatch, capsys):
    """Not into the installation; the help page lists the names."""
    name = next(iter(ready.SETS))
    monkeypatch.chdir(tmp_path)
    assert export.main([f"--set={name}", "--form=npz"]) == 0
    assert (tmp_path / "export-npz" / "pairs.npz").is_file()
    assert export.main(["--help"]) == 0 and name in capsys.readouterr().out
