"""The page of several runs, and the command that writes pages."""

import shutil

import numpy as np
import pytest
from pages import ENTRIES, text_of

from ssdd_jax import report
from ssdd_jax.errors import UserError
from ssdd_jax.report import __main__ as command
from ssdd_jax.report import (
    comparison_page,
    figures,
    labels,
    statistics,
    summary,
)

pytestmark = pytest.mark.medium


def other(record, **changes):
    """The record of another run: keys of `results.json`, of the config (`a__b`), or `folder`."""
    folder = changes.pop("folder", record.folder)
    config = {**record.config, **{k.replace("__", "."): v for k, v in changes.items() if "__" in k}}
    results = {**record.results, **{k: v for k, v in changes.items() if "__" not in k}}
    return record._replace(folder=folder, config=config, results=results)


def test_side_by_side(record, tmp_path):
    second = other(record, method="krr_st", title="KRR-ST", seed=3, distill__steps=7)
    records = [record, second]
    names = comparison_page.labels(records)
    assert names == ["Boost-SSDD, N = 4", "KRR-ST, N = 4"]
    sides = [report.side_of(name, [one]) for name, one in zip(names, records, strict=True)]
    report.compare(tmp_path / "c.html", sides, beside=comparison_page.references(records), command="python again")
    said = text_of(tmp_path / "c.html")
    row = record.results["linear"]["distilled"]
    for name in names:
        assert f"{name} {labels.value('linear', row['mean'], row['std'], row['seeds'])}" in said
        assert f"{name}: {record.results['storage']['numbers']:,} of 304 numbers" in said
    assert "distill.steps 40 7" in said and "python again" in said
    pooled = record.results["linear"]["random_init"]["values"] * 2
    expected = labels.value("linear", np.mean(pooled), np.std(pooled, ddof=1), len(pooled))
    assert f"untrained {expected}" in said


def test_references_are_for_like_runs_only(record):
    assert set(comparison_page.references([record, record])) == set(ENTRIES[1:])
    larger = other(record, storage=record.results["storage"] | {"N": 9})
    assert set(comparison_page.references([record, larger])) == {*ENTRIES[2:]}
    assert comparison_page.references([record, other(record, precision__x=1)]) == {}
    assert comparison_page.references([record, other(record, teacher__seed=9)]) == {}


def test_references_do_not_depend_on_what_changes_nothing(record):
    same = {
        "data__data_dir": "/elsewhere",
        "teacher__save_every": 7,
        "teacher__gate": "off",
        "data__name": "npz:/a.npz",
    }
    assert record.inputs and len(comparison_page.references([record, other(record, **same)])) == len(ENTRIES) - 1
    # A config of an older version, which lacks a key.
    older = record._replace(config={k: v for k, v in record.config.items() if k != "teacher.stem_padding"})
    assert comparison_page.references([record, older]) and not comparison_page.differences(
        [record.config, older.config]
    )
    # The same place with other images in it, and places whose content nobody has recorded.
    moved = record._replace(inputs={**record.inputs, "training images": "other"})
    assert comparison_page.references([record, moved]) == {}
    unknown = other(record, data__name="npz:/a.npz")._replace(inputs={})
    assert comparison_page.references([record, unknown]) == {}


def test_references_are_for_one_teacher(record):
    """One run has trained it, others were given features: what only some have recorded is not the same."""
    given = other(record, teacher__features="/f.npz")
    first, second = (given._replace(inputs={**record.inputs, "features": mark}) for mark in ("f", "g"))
    same = other(first, teacher__features="/elsewhere/f.npz")
    images = {name: mark for name, mark in record.inputs.items() if name != "features"}
    trained = other(record, teacher__features="")._replace(inputs=images)
    assert comparison_page.references([first, same]) and comparison_page.references([trained, trained])
    for records in ([trained, first], [first, trained], [first, second], [trained, first, second]):
        assert comparison_page.references(records) == {}


def test_one_network_has_no_deviation(record, tmp_path):
    lone = {name: statistics.summary([value]) for name, value in (("distilled", 0.5), ("random_real", 0.25))}
    results = {**record.results, **dict.fromkeys(labels.TITLES, {}), "feature_r2": lone}
    assert "| distilled set | 0.500 |" in figures.table(results) and "±" not in figures.table(results)
    results = {name: value for name, value in results.items() if value != {}}
    one = record._replace(results=results)
    report.write(tmp_path / "run.html", one)
    side = report.side_of("lone", [one])
    report.compare(tmp_path / "both.html", [side, side], beside={})
    for page, words in (("run.html", "One network. Each short line"), ("both.html", "lone 0.500")):
        assert "±" not in text_of(tmp_path / page) and words in text_of(tmp_path / page)
    assert ", one network: a ConvNet" in summary.markdown(results, record.about)


def test_bars_of_bytes_and_of_numbers_have_scales_of_their_own(record):
    stored = record.results["storage"]
    in_bytes = stored | {"unit": "bytes", "budget": 1000 * stored["budget"], "used": 1000 * stored["numbers"]}
    sides = [report.side_of("N", [record]), report.side_of("B", [other(record, storage=in_bytes)])]
    alone, beside = (
        comparison_page.content(of, {}, "", "", ())["sides"][0]["storage"].bar for of in (sides[:1], sides)
    )
    assert alone == beside


def test_references_of_one_seed_count_once(record):
    values = record.results["linear"]["teacher"]["values"]
    assert comparison_page.references([record, other(record, method="krr_st")])["teacher"]["linear"] == values
    assert comparison_page.references([record, other(record, seed=1)])["teacher"]["linear"] == 2 * values
    without = other(record, linear={}, evaluate__entries=("distilled",))
    assert all(
        comparison_page.references(both)["teacher"]["linear"] == values
        for both in ([record, without], [without, record])
    )


def test_runs_of_one_name_are_told_apart(record, tmp_path):
    found = comparison_page.labels([record, other(record, folder=tmp_path / "second")])
    assert found == ["Boost-SSDD, N = 4 (run)", "Boost-SSDD, N = 4 (second)"]
    places = [tmp_path / "a" / "digits", tmp_path / "b" / "digits"]
    found = comparison_page.labels([other(record, folder=place) for place in places])
    assert found == [f"Boost-SSDD, N = 4 ({place})" for place in places]


def test_seeds_are_taken_together(record):
    side = report.side_of("both", [record, other(record, seconds={"distill": 7.0})])
    assert len(side.values["linear"]) == 4
    assert side.seconds["distill"] == pytest.approx((record.results["seconds"]["distill"] + 7) / 2)


def test_command(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main([str(finished), f"--out={tmp_path / 'one.html'}"]) == 0
    assert "Boost-SSDD on npz:" in text_of(tmp_path / "one.html")
    shutil.copytree(finished, tmp_path / "second")
    assert command.main([str(finished), "second"]) == 0
    assert "comparison.html" in capsys.readouterr().out
    assert "Boost-SSDD, N = 4 (second)" in text_of(tmp_path / "comparison.html")
    assert command.main(["--help"]) == 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 120


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([], "name the folder of a finished run"),
        (["nowhere"], "nowhere holds no finished run"),
        (["--output=x", "nowhere"], "--help shows what there is"),
        (["nowhere", "--out=."], "--out=. is a folder"),
    ],
)
def test_command_refuses(line, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(line) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_a_run_without_a_set_is_refused(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("distilled"))
    with pytest.raises(UserError, match="holds no distilled set"):
        report.read(tmp_path / "run")
