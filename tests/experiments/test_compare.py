"""The comparison of methods: what it leaves, that it does nothing twice, and what it refuses."""

import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_runs
from PIL import Image
from scipy import stats

from experiments import compare
from experiments.measure import comparison
from ssdd_jax import config as configuration
from ssdd_jax.cli import arguments as commandline
from ssdd_jax.errors import StoredError, UserError
from ssdd_jax.runtime import history

pytestmark = pytest.mark.medium

SETTINGS = {"approximate.steps": 20, "distill.steps": 10, "evaluate.steps": 2, "scdd.post_epochs": 1}


def command(folder, workdir="comparison", **options):
    """A small comparison; the data and the teacher are those of `tiny_runs.taught`."""
    said = {"methods": "random,scdd", "N": "2,4", "seeds": 2, **options}
    changes = [argument for argument in tiny_runs.taught(folder, "random") if argument.startswith("--config.")]
    changes = [argument for argument in changes if not argument.startswith("--config.storage.N=")]
    return [
        "--config=configs/digits.py",
        *(f"--{name}={value}" for name, value in said.items()),
        *changes,
        *(f"--config.{key}={value}" for key, value in SETTINGS.items()),
        f"--workdir={folder / workdir}",
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_runs.with_teacher(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def finished(folder):
    """A comparison of two methods at two sizes, and what it wrote; SC-DD does not fit in the smaller."""
    shutil.copytree(folder / "shared", folder / "comparison" / "shared")
    assert compare.main(command(folder)) == 0
    return folder / "comparison"


def times(run):
    """When the files of every run that came to its end were last written."""
    runs = [file.parent for file in run.glob("*-seed*/config.json")]
    return {
        file: file.stat().st_mtime_ns
        for one in runs
        for file in one.rglob("*")
        if file.is_file() and not file.name.startswith(".lock")
    }


@pytest.mark.slow
def test_the_rows_are_those_of_the_runs(finished):
    found = json.loads((finished / "comparison.json").read_text())
    rows = {(row["method"], row["N"]): row for row in found["rows"]}
    assert list(rows) == [("random", 2), ("random", 4), ("scdd", 4)]
    for (method, N), row in rows.items():
        runs = [json.loads((finished / f"{method}-N{N}-seed{seed}" / "results.json").read_text()) for seed in (0, 1)]
        for measure in comparison.MEASURES:
            values = [value for run in runs for value in run[measure]["distilled"]["values"]]
            assert row["values"][measure] == values and len(values) == 4
        assert {run["storage"]["numbers"] for run in runs} == {row["numbers"]}
        assert row["numbers"] <= row["budget"] == N * (64 + 16) == runs[0]["storage"]["budget"]
        assert [run["seed"] for run in runs] == [0, 1]
        assert all(list(run["linear"]) == ["distilled"] for run in runs)
    assert len(rows["scdd", 4]["own"]) == 4 and rows["random", 4]["own"] == []
    assert rows["random", 4]["values"] != rows["random", 2]["values"]


@pytest.mark.slow
def test_the_references_are_measured_once_for_all(finished):
    found = json.loads((finished / "comparison.json").read_text())["references"]
    assert list(found) == ["random_init", "full_data", "teacher"]
    for values in found.values():
        assert {name: len(of) for name, of in values.items()} == dict.fromkeys(comparison.MEASURES, 4)
    assert found["teacher"]["feature_r2"] == pytest.approx([1.0] * 4, abs=1e-3)


@pytest.mark.slow
def test_what_refuses_is_listed_and_the_others_go_on(finished):
    refused = json.loads((finished / "comparison.json").read_text())["refused"]
    assert len(refused) == 1
    assert refused[0].startswith("SC-DD at N = 2: storage exceeds the budget") and "raise storage.N to 3" in refused[0]
    assert f"Not measured: {refused[0]}" in (finished / "comparison.md").read_text()


@pytest.mark.slow
def test_the_table_is_markdown(finished):
    lines = (finished / "comparison.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    # Methods and references; then the differences between the two methods at the size that both have.
    assert len(rows) == 2 + 3 + 3 + 2 + 1
    assert len({line.count("|") for line in rows[:8]}) == len({line.count("|") for line in rows[8:]}) == 1
    found = json.loads((finished / "comparison.json").read_text())["rows"]
    values = next(row for row in found if row["method"] == "scdd")["values"]["few_shot"]
    cells = [cell.strip() for cell in next(line for line in rows if "SC-DD" in line).split("|")]
    assert cells[2:4] == ["4", "201 of 320"]
    assert cells[6] == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
    assert any("own post-training" in line and "SC-DD at N = 4" in line for line in lines)


@pytest.mark.slow
def test_the_page_has_every_row(finished):
    page = (finished / "report.html").read_text()
    found = json.loads((finished / "comparison.json").read_text())
    for row in found["rows"]:
        name = f"{comparison.label(row['method'])}, N = {row['N']}"
        values = row["values"]["few_shot"]
        assert f'<th scope="row">{name}</th>' in page and f"{name}: {row['numbers']:,} of {row['budget']:,}" in page
        assert f"{name}: {np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in page
    assert "teacher: 1.000 ± 0.000" in page and html.escape(found["refused"][0]) in page
    assert "python -m experiments.compare --config=configs/digits.py --methods=" in re.sub(r"</?span>", "", page)


@pytest.mark.slow
def test_every_run_knows_its_command(finished):
    """They were made from Python; the command is for the same config."""
    folder = finished / "scdd-N4-seed1"
    (call,) = history.read(folder / "calls.jsonl")
    options = commandline.parse(shlex.split(call["command"])[3:])
    assert configuration.flatten(options.config) == json.loads((folder / "config.json").read_text())
    assert options.workdir == folder and options.shared == finished / "shared"


@pytest.mark.slow
def test_the_picture_shows_something(finished):
    with Image.open(finished / "comparison.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for color in ((188, 189, 34), (148, 103, 189)):  # of both methods
        assert (np.abs(pixels.astype(int) - color).max(1) < 8).sum() > 50


@pytest.mark.slow
def test_again_nothing_is_done(finished, folder, capsys):
    before = times(finished)
    table = (finished / "comparison.md").read_bytes()
    assert compare.main(command(folder)) == 0
    assert times(finished) == before and (finished / "comparison.md").read_bytes() == table
    assert "compare: random" not in capsys.readouterr().out


@pytest.mark.slow
def test_another_method_adds_its_runs_only(finished, folder):
    before = times(finished)
    assert compare.main(command(folder, methods="random,kmeans,scdd")) == 0
    after = times(finished)
    assert {file: after[file] for file in before} == before
    added = {file.relative_to(finished).parts[0] for file in set(after) - set(before)}
    assert added == {f"kmeans-N{N}-seed{seed}" for N in (2, 4) for seed in (0, 1)}
    found = json.loads((finished / "comparison.json").read_text())["rows"]
    assert [(row["method"], row["N"]) for row in found] == [
        *(("random", 2), ("kmeans", 2)),
        *(("random", 4), ("kmeans", 4), ("scdd", 4)),
    ]


@pytest.mark.slow
def test_one_that_was_cut_short_is_finished(finished, folder):
    (finished / "random-N4-seed1" / "results.json").unlink()
    before = times(finished)
    assert compare.main(command(folder, methods="random", N="4")) == 0
    after = times(finished)
    changed = {file.relative_to(finished).parts[0] for file in after if after[file] != before.get(file)}
    assert changed == {"random-N4-seed1"}


@pytest.mark.slow
def test_bytes_as_the_budget(folder, finished):
    """The same table over the bytes of the files; each method at what it stores best."""
    line = [
        argument for argument in command(folder, "in_bytes", methods="krr_st,random", seeds=1) if "--N=" not in argument
    ]
    shutil.copytree(folder / "shared", folder / "in_bytes" / "shared")
    assert compare.main([*line, "--bytes=2500,3500"]) == 0
    found = json.loads((folder / "in_bytes" / "comparison.json").read_text())
    for one in found["rows"]:
        run = folder / "in_bytes" / f"{one['method']}-B{one['N']}-seed0"
        file = run / "distilled" / "set.safetensors"
        assert one["unit"] == "bytes" and one["numbers"] == file.stat().st_size <= one["budget"] == one["N"]
        stored = json.loads((run / "results.json").read_text())["storage"]
        assert sum(stored["parts"].values()) == stored["used"] == file.stat().st_size
        assert stored["precisions"]["images"] == ("webp" if one["method"] == "random" else "int8")
        page = (run / "report.html").read_text()
        assert f"{stored['used']:,} of {one['N']:,} bytes" in page
    by_key = {(one["method"], one["N"]): one["images"] for one in found["rows"]}
    assert list(by_key) == [("krr_st", 2500), ("random", 2500), ("krr_st", 3500), ("random", 3500)]
    assert by_key["random", 2500] < by_key["random", 3500] and by_key["krr_st", 2500] < by_key["krr_st", 3500]
    table = (folder / "in_bytes" / "comparison.md").read_text()
    assert table.startswith("| | bytes | bytes stored |") and f"{by_key['random', 3500]} images" in table
    # Read again, nothing is done, and the rows without a set are those of a budget in images.
    assert {path.name for path in (folder / "in_bytes").glob("references*")} == {"references-seed0"}


@pytest.mark.slow
def test_rows_of_an_earlier_comparison_stand_beside(finished, folder, capsys):
    """With its references, and differences by the seeds of both; its methods are not run again."""
    assert compare.main(command(folder)) == 0  # other tests have left a part of it
    shutil.copytree(folder / "shared", folder / "joined" / "shared")
    earlier = finished / "comparison.json"
    chosen = {"methods": "kmeans,random", "N": "4", "beside": earlier}
    assert compare.main(command(folder, "joined", **chosen)) == 0
    before, after = (json.loads(file.read_text()) for file in (earlier, folder / "joined" / "comparison.json"))
    assert [row["method"] for row in after["rows"] if row["N"] == 4] == ["kmeans", "random", "scdd"]
    assert after["references"] == before["references"] and after["teacher"] == before["teacher"]
    rows = {row["method"]: row for row in before["rows"] if row["N"] == 4}
    joined = {row["method"]: row for row in after["rows"] if row["N"] == 4}
    assert joined["scdd"] == rows["scdd"]
    # Random images were asked for, so that they are measured here: the same ones.
    assert joined["random"]["values"] == rows["random"]["values"]
    pairs = {(one["first"], one["second"]) for one in after["differences"]}
    assert pairs == {("kmeans", "random"), ("kmeans", "scdd"), ("scdd", "random")}
    made = {path.name for path in (folder / "joined").glob("*-seed*")}
    assert made == {f"{method}-N4-seed{seed}" for method in ("kmeans", "random") for seed in (0, 1)}
    # With fewer sizes than the earlier one has, all of its other rows are there.
    assert compare.main(command(folder, "joined", methods="kmeans", N="2", beside=earlier)) == 0
    rows = json.loads((folder / "joined" / "comparison.json").read_text())["rows"]
    assert [(row["N"], row["method"]) for row in rows] == [(2, "kmeans"), (2, "random"), (4, "random"), (4, "scdd")]
    assert compare.main(command(folder, "joined", **chosen)) == 0
    # Another teacher's features cannot be compared.
    other = folder / "other.json"
    other.write_text(json.dumps(before | {"teacher_checksum": "of other weights"}))
    assert before["teacher_checksum"] == after["teacher_checksum"] != ""
    said = refusal(capsys, command(folder, "joined", **chosen | {"beside": other}))
    assert "is of a teacher with other weights" in said
    # Nor can other images.
    other.write_text(json.dumps(before | {"inputs": before["inputs"] | {"test images": "others"}}))
    said = refusal(capsys, command(folder, "joined", **chosen | {"beside": other}))
    assert "is of other test images: choose the same, or make it anew" in said
    page = (folder / "joined" / "report.html").read_text()
    assert "k-means subset, N = 4" in page and "teacher: 1.000" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 1}, "is of other seeds: 2 there, 1 here; they must agree"),
        ({"N": "3"}, "has no rows at N = 3: choose at least one size that it has"),
        ({"beside": "report.html"}, "report.html"),
        ({"beside": "nothing.json"}, "nothing.json"),
        ({"beside": "random-N4-seed0/results.json"}, "results.json is"),
    ],
)
def test_a_comparison_of_other_settings_is_refused(changes, words, finished, folder, capsys):
    beside = finished / changes.get("beside", "comparison.json")
    chosen = {"methods": "kmeans", "N": "4", **changes, "beside": beside}
    assert words in refusal(capsys, command(folder, "refused", **chosen))
    assert not (folder / "refused").exists()


def refusal(capsys, line):
    capsys.readouterr()
    assert compare.main(line) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("compare: "), said
    return said[0]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--methods=random,magic", "unknown method 'magic': there are boost, boost_plus"),
        ("--methods=,", "no method is named"),
        ("--N=ten", "cannot read '--N=ten'"),
        ("--N=0", "cannot read '--N=0'"),
        ("--N=", "cannot read '--N='"),
        ("--seeds=0", "cannot read '--seeds=0'"),
        ("--seeds=²", "cannot read '--seeds=²'"),
        ("--stage=report", "cannot read '--stage=report'"),
        ("digits", "cannot read 'digits'"),
        ("--config=nothing.py", "no config file nothing.py"),
        ("--config=configs/cifar10.py:gpu", "unknown edition 'gpu'"),
        ("--config=configs/digits.py:mkdt", "names a method: name it with --methods=mkdt"),
        ("--config.distill.steps=many", "config.distill.steps='many' is not an int"),
        ("--config.nothing=1", "unknown config key config.nothing"),
        ("--config.storage.N=5", "config.storage.N differs between the runs of a comparison: --N chooses it"),
        ("--config.method=boost", "config.method differs between the runs"),
        ("--config.seed=1", "config.seed differs between the runs"),
        ("--bytes=4096", "--N and --bytes are two budgets: give one of them"),
        ("--config.storage.bytes=4096", "config.storage.bytes differs between the runs of a comparison: --bytes"),
        ("--config.storage.M=40 --bytes=4096", "config.storage.M differs between the runs .*: the plan for --bytes"),
    ],
)
def test_refuses_before_any_work(argument, words, folder, capsys):
    line = [*command(folder, "refused"), *argument.split(" ")]
    if "--bytes" in argument and "M=" in argument:
        line = [one for one in line if not one.startswith("--N=")]
    assert re.search(re.escape(words).replace(r"\.\*", ".*"), refusal(capsys, line))
    assert not (folder / "refused").exists()


@pytest.mark.slow
def test_a_mistake_that_concerns_all_runs_is_told_once(finished, folder, capsys):
    before = times(finished)
    said = refusal(capsys, [*command(folder), "--config.evaluate.steps=3"])
    assert "evaluate.steps (2 there, 3 now); choose another --workdir" in said
    assert times(finished) == before


@pytest.mark.slow
def test_nothing_that_can_run_is_a_mistake(finished, folder, capsys):
    assert "no method could run: SC-DD at N = 2" in refusal(capsys, command(folder, methods="scdd", N="2"))


def test_a_method_named_twice_runs_once(folder):
    assert compare.parse(command(folder, methods="random,random")).methods == ("random",)


def test_M_grows_with_N(folder):
    options = compare.parse(["--methods=boost", "--N=1,10,40", "--config.storage.M=60"])
    assert [compare.config_of(options, "boost", N, 0).storage.M for N in (1, 10, 40)] == [3, 30, 120]
    few = compare.parse(["--methods=boost", "--config.storage.M=5"])
    assert compare.config_of(few, "boost", 1, 0).storage.M == 1, "0 would leave M to be chosen"


def row(method, N, seconds, values, **changes):
    return comparison.Row(method, N, 80 * N, 80 * N, values, [], seconds, 0.0)._replace(**changes)


@pytest.mark.parametrize("budget", ["--N=5,10", "--bytes=5000,9000"])
def test_the_budget_is_the_one_that_is_asked_for(budget, tmp_path):
    """Also of a config file that names one in bytes, or M."""
    path = tmp_path / "bytes.py"
    path.write_text(
        "from ssdd_jax import config\n\n\ndef get_config(edition=''):\n"
        "    chosen = config.edit(config.default(), edition)\n"
        "    chosen.storage.update(N=10, bytes=4096, M=30)\n    return chosen\n"
    )
    options = compare.parse([f"--config={path}", "--methods=boost", budget])
    found = [compare.config_of(options, "boost", size, 0).storage for size in options.bytes or options.sizes]
    in_bytes = "bytes" in budget
    assert [one.bytes for one in found] == ([5000, 9000] if in_bytes else [0, 0])
    assert [one.M for one in found] == ([0, 0] if in_bytes else [15, 30])
    assert in_bytes or [one.N for one in found] == [5, 10]


def test_earlier_rows_are_left_out_only_where_they_were_measured_again():
    """With their reasons of not being measured, and after the methods of this command."""
    none = {name: {} for name in comparison.REFERENCES}
    options = compare.parse(["--methods=rela,random", "--N=4"])
    values = {"linear": [1.0, 2.0]}
    earlier = comparison.Comparison(
        [row(name, N, 1.0, values) for name, N in (("random", 4), ("kmeans", 4), ("random", 9), ("mkdt", 9))],
        none,
        ["random subset at N = 4: too small", "SC-DD at N = 4: too small"],
        2,
        0.0,
        order=("random", "kmeans", "mkdt"),
    )
    found = comparison.Comparison(
        [row(name, 4, 2.0, values) for name in options.methods], none, ["nothing"], 2, 0.0, order=options.methods
    )
    joined = compare._joined(found, earlier, options)
    names = [(one.method, one.N, one.seconds) for one in joined.rows]
    assert names == [("rela", 4, 2.0), ("random", 4, 2.0), ("kmeans", 4, 1.0), ("random", 9, 1.0), ("mkdt", 9, 1.0)]
    assert joined.refused == ["SC-DD at N = 4: too small", "nothing"]
    pairs = [(one["first"], one["second"]) for one in comparison.differences(joined) if one["N"] == 4]
    assert pairs == [("rela", "random"), ("rela", "kmeans"), ("kmeans", "random")]


def test_of_repeated_changes_the_last_one_counts():
    lines = ["--config.distill.steps=9", "--config.data.data_dir=/a", "--config.distill.steps=7"]
    assert compare._settings(lines) == {"distill.steps": "7"} != compare._settings(lines[::-1])


def test_the_table_says_that_rows_without_a_set_are_of_fewer_networks():
    rows, few = [row("random", 4, 1.0, {"linear": [1.0] * 6})], {"linear": [1.0, 2.0]}
    found = comparison.Comparison(rows, dict.fromkeys(comparison.REFERENCES, few), [], 3, 0.0)
    assert "3 sets of each kind; the rows without a set: 2 networks. Seconds" in comparison.table(found)
    whole = dict.fromkeys(comparison.REFERENCES, {"linear": [1.0] * 6})
    assert "3 sets of each kind. Seconds" in comparison.table(found._replace(references=whole))


def test_preparation_is_told_for_every_size(monkeypatch, tmp_path):
    """The first run makes what all others use, and only its record has the seconds."""

    def run(options, name, config, seed, entries=()):
        method, N = {"subset": "random"}.get(config.method, config.method), config.storage.N
        if method == "random" and not entries:
            raise UserError("no\nroom")
        first = method == "mkdt" and N == 2 and seed == 0
        own = {"experts": 30.0 if first else 0.1} if method == "mkdt" else {}
        return {
            "seconds": {"teacher": 5.0 * bool(entries), "features": 0.0, "samples": 1.0, "distill": N, "approximate": 0}
            | own,
            "storage": {"numbers": 7, "budget": 8, "images": 2},
            "linear": {name: {"values": [seed]} for name in ("distilled", *entries)},
        }

    monkeypatch.setattr(compare, "_run", run)
    (tmp_path / "shared" / "experts").mkdir(parents=True)
    options = compare.Options(methods=("mkdt", "random"), sizes=(2, 4), seeds=2, workdir=str(tmp_path))
    found = compare.run_all(options)
    assert [(one.N, one.seconds, one.preparation) for one in found.rows] == [(2, 3.0, 30.0), (4, 5.0, 30.0)]
    assert found.teacher_seconds == 5.0
    assert found.refused == [f"random subset at N = {N}: no room" for N in (2, 4)]
    words = compare.write(options, found)
    assert "| 5.0 + 30 |" in words and words.count("linear probe") == 1 and "R2" not in words


@pytest.mark.parametrize(("arguments", "count"), [([], 3), (["--references=1"], 1), (["--references=9"], 3)])
def test_rows_without_a_set_are_measured_for_the_first_seeds(arguments, count, monkeypatch):
    """One before the methods, so that a mistake is told at once; the others, which may take longest, after them."""
    names = []

    def run(options, name, config, seed, entries=()):
        names.append((name, seed))
        return {
            "seconds": {"teacher": 0.0, "features": 0.0, "samples": 0.0, "distill": 0.0, "approximate": 0.0},
            "storage": {"numbers": 7, "budget": 8, "images": 2},
            "linear": {entry: {"values": [seed]} for entry in ("distilled", *entries)},
        }

    monkeypatch.setattr(compare, "_run", run)
    found = compare.run_all(compare.parse(["--methods=random", "--N=2", "--seeds=3", *arguments]))
    assert found.references["teacher"]["linear"] == list(range(count))
    methods = [("random-N2", seed) for seed in range(3)]
    assert names == [("references", 0), *methods, *(("references", seed) for seed in range(1, count))]


def test_differences_are_paired_by_distillation():
    """The networks on one set are one value; each method against the first, and against random images."""
    values = {
        "boost": [[90, 92], [80, 82], [70, 72]],
        "krr_st": [[88, 88], [79, 79], [66, 66]],
        "random": [[70, 70], [81, 81], [60, 60]],
    }
    rows = [row(name, 4, 1.0, {"linear": [float(x) for one in sets for x in one]}) for name, sets in values.items()]
    # At the first size only one of them can run, which does not make it the first method.
    rows.insert(0, row("random", 2, 1.0, {"linear": [1.0] * 6}))
    found = comparison.Comparison(rows, {name: {} for name in comparison.REFERENCES}, [], 3, 0.0, order=tuple(values))
    lines = comparison.differences(found)
    pairs = [("boost", "krr_st"), ("boost", "random"), ("krr_st", "random")]
    assert [(line["N"], line["first"], line["second"]) for line in lines] == [(4, *pair) for pair in pairs]
    means = {name: np.mean(sets, 1) for name, sets in values.items()}
    for line in lines:
        first, second = means[line["first"]], means[line["second"]]
        expected = stats.ttest_rel(first, second).confidence_interval(0.95)
        assert (line["low"], line["high"]) == pytest.approx((expected.low, expected.high), abs=1e-4)
        assert line["mean"] == pytest.approx(np.mean(first - second), abs=1e-4) and line["sets"] == 3
    words = comparison.table(found)
    assert "| Boost-SSDD − KRR-ST | 4 | +3.3 [" in words and "3 sets are few for them: --seeds=5" in words
    assert not comparison.differences_table(found._replace(seeds=1))[1]
    assert words.startswith("| | N |")
    supervised = comparison.table(found._replace(teacher="supervised ResNet-56"))
    assert supervised.startswith("| supervised teacher | N |")


def test_a_folder_in_use_is_not_a_method_that_cannot_run(tmp_path, monkeypatch, capsys):
    """It ends the comparison with status 2, and no comparison.json is written."""

    def run(options, name, config, seed, entries=()):
        raise StoredError("another run is using it")

    monkeypatch.setattr(compare, "_run", run)
    monkeypatch.setattr(compare, "_references", lambda options, seed: {})
    assert "another run is using it" in refusal(capsys, ["--methods=random", "--N=4", f"--workdir={tmp_path}"])
    assert not (tmp_path / "comparison.json").exists()


def test_equal_seconds(tmp_path, monkeypatch):
    """As many steps as take the first method's time, the same ones after a restart; only methods with a pool."""
    taken = []

    def run(options, name, config, seed, entries=()):
        taken.append((name, seed, config.distill.steps))
        seconds = {"samples": 0.0, "distill": 30.0, "approximate": 0.0}
        return {
            "seconds": seconds,
            "storage": {"numbers": 1, "budget": 2, "images": 2},
            "linear": {"distilled": {"values": [1.0]}},
        }

    monkeypatch.setattr(compare, "_run", run)
    options = compare.parse(
        ["--methods=boost,krr_st,random", "--N=4", "--seeds=2", "--equal_seconds", f"--workdir={tmp_path}"]
    )
    rows = [row("boost", 4, 30.0, {"linear": [2.0, 2.0]}), row("krr_st", 4, 10.0, {}), row("random", 4, 1.0, {})]
    found = comparison.Comparison(rows, {name: {} for name in comparison.REFERENCES}, [], 2, 0.0)
    equal, words = compare.run_equal(options, found)
    steps = 3 * compare.config_of(options, "krr_st", 4, 0).distill.steps
    assert taken == [("krr_st-N4-equal-boost", seed, steps) for seed in (0, 1)]
    assert [(one.method, one.seconds) for one in equal.rows] == [("boost", 30.0), ("krr_st", 30.0)]
    assert words == [f"KRR-ST at N = 4 takes {steps:,} steps instead of {steps // 3:,}."]
    # Other times, measured later, change nothing.
    compare.run_equal(options, found._replace(rows=[rows[0], rows[1]._replace(seconds=11.0)]))
    assert {one[2] for one in taken} == {steps}
    # Beside another first method it takes other steps, in other folders.
    other = options._replace(methods=("random", "krr_st"))
    compare.run_equal(other, found._replace(rows=[rows[2], rows[1]._replace(seconds=3.0)]))
    assert taken[-1][0] == "krr_st-N4-equal-random" and taken[-1][2] == round(steps / 9)
    text = compare.write(options, found, (equal, words))
    assert f"At the seconds of Boost-SSDD: {words[0]}" in text
    content = json.loads((tmp_path / "comparison.json").read_text())["equal_seconds"]
    assert [one["method"] for one in content["rows"]] == ["boost", "krr_st"]


def test_five_sets_by_default():
    assert compare.parse([]).seeds == 5


def test_without_any_measure_there_is_still_a_table(tmp_path):
    """Data without labels, and features of the training images only."""
    nothing = {name: {} for name in comparison.REFERENCES}
    found = comparison.Comparison([row("boost", 2, 0.0, {})], nothing, [], 1, 0.0)
    words = compare.write(compare.Options(workdir=str(tmp_path)), found)
    assert "| Boost-SSDD | 2 | 160 of 160 | 0.0 |" in words
    assert (tmp_path / "comparison.png").exists()


@pytest.mark.slow
def test_runs_from_any_directory(finished, folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.compare", *command(folder, methods="random", N="4")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tiny_runs.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "| random subset | 4 | 320 of 320 |" in done.stdout
    assert not list(tmp_path.iterdir())
