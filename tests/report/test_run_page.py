"""The page of a run: what it says, what it needs, and what it was made from."""

import html
import json
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest
import tiny_runs
from pages import ENTRIES, text_of

from ssdd_jax import config as configuration
from ssdd_jax import report
from ssdd_jax.cli import arguments as commandline
from ssdd_jax.report import (
    labels,
    measures,
    render,
    run_page,
    statistics,
)
from ssdd_jax.runtime import files, history, memory

pytestmark = pytest.mark.medium


def test_everything_measured_is_on_the_page(finished):
    results, said = json.loads((finished / "results.json").read_text()), text_of(finished / "report.html")
    for measure in ("linear", "linear_krr_st", "few_shot", "feature_r2", "feature_r2_whitened"):
        assert labels.MEASURES[measure] in said
        for entry in ENTRIES:
            row = results[measure][entry]
            assert f"{labels.ENTRIES[entry]} {labels.value(measure, row['mean'], row['std'], row['seeds'])}" in said
    kept = results["storage"]
    for number in (*labels.parts(kept["parts"]).values(), kept["numbers"], kept["budget"], kept["bytes"]):
        assert f"{number:,}" in said
    for stage, spent in results["seconds"].items():
        assert f"{stage} {labels.seconds(spent)} {labels.size(results['memory'][stage]['host'])}" in said
    assert results["machine"] in said and results["version"] in said
    assert "120 for training, 40 for testing, 3 classes" in said
    chosen = results["training"]["random_real"]
    words = f"rate {chosen['learning_rate']:g}, weight decay {chosen['weight_decay']:g}"
    assert f"random images: 5 steps, {words}" in said and "distilled set: 5 steps, rate 0.1, weight decay 0.001" in said
    assert "statistics of training images for the untrained network" in said
    assert f"an untrained student {results['gate']['untrained']:.1f} %" in said


# What results have that those of the first version have not.
FORMER = ("schema", "training", "calibrate", "gate", files.SEAL)


def test_results_of_the_first_version_are_read(finished, tmp_path):
    """Show results without a schema number, whose linear probe is KRR-ST's."""
    folder = tmp_path / "old"
    shutil.copytree(finished, folder)
    results = json.loads((folder / "results.json").read_text())
    old = {key: value for key, value in results.items() if key not in FORMER}
    old["linear"] = old.pop("linear_krr_st")
    old.pop("feature_r2_whitened")
    files.write_json(folder / "results.json", old)
    found = report.read(folder)
    assert found.results["linear_krr_st"] == old["linear"] and "linear" not in found.results
    assert report.upgrade(found.results) == found.results
    report.write(tmp_path / "page.html", found)
    said = text_of(tmp_path / "page.html")
    row = old["linear"]["distilled"]
    assert (
        f"KRR-ST's linear probe (%) Trained on Chart Mean and standard deviation distilled set {row['mean']:.1f}"
        in said
    )
    assert labels.MEASURES["linear"] not in said and labels.CALIBRATED["none"] in said
    # Beside a run of this version it stands in the table of that measure.
    sides = [report.side_of(name, [one]) for name, one in (("new", report.read(finished)), ("old", found))]
    assert [list(side.values) for side in sides] == [
        ["linear", "linear_krr_st", "few_shot", "feature_r2", "feature_r2_whitened"],
        ["linear_krr_st", "few_shot", "feature_r2"],
    ]


def test_what_a_run_records(finished, record):
    """Memory of every stage, ages of the pool, its command, and pictures of its way."""
    results = record.results
    assert set(results["memory"]) == set(results["seconds"])
    assert all(10**7 < held["host"] < 10**12 for held in results["memory"].values())
    ages = [line for line in record.lines if line["stage"] == "distill"]
    assert all(line["min_age"] <= line["mean_age"] <= line["max_age"] <= 5 for line in ages)
    assert any(line["min_age"] < line["max_age"] for line in ages)
    assert record.calls[-1]["command"] == commandline.typed(tiny_runs.arguments(finished.parent, **tiny_runs.CHECKED))
    assert list(record.snapshots) == [5, 15, 25, 40]
    for seen in record.snapshots.values():
        assert seen["images"].shape == (min(8, len(record.images)), 8, 8, 1) and seen["images"].dtype == np.uint8
        assert seen["bases"].shape[1:] == record.bases.shape[1:]
    np.testing.assert_array_equal(record.snapshots[40]["images"], record.images[:8])
    assert (record.snapshots[5]["images"] != record.images[:8]).any()


def test_the_command_on_the_page_is_the_one_typed(finished, record):
    (code,) = re.findall(r"<pre><code>(.*?)</code></pre>", (finished / "report.html").read_text())[:1]
    assert html.unescape(re.sub(r"</?span>", "", code)) == record.calls[-1]["command"]


def test_pages_need_nothing_else(finished):
    text = (finished / "report.html").read_text()
    addresses = re.findall(r'(?:src|href|action|poster)="([^"]*)"', text) + re.findall(r"url\(([^)]*)\)", text)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert "<script" not in text and "@import" not in text


def test_what_a_run_is_called_is_escaped(record, tmp_path):
    bad = "<script>alert(1)</script>"
    config = {**record.config, "data.name": bad}
    call = {**record.calls[-1], "command": f"python {bad}"}
    changed = record._replace(results={**record.results, "dataset": bad}, config=config, calls=[call])
    report.write(tmp_path / "report.html", changed)
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text and "Boost-SSDD on &lt;script&gt;" in text
    sides = [report.side_of(bad, [changed])]
    report.compare(tmp_path / "comparison.html", sides, beside={}, title=bad, notes=[bad], command=bad)
    assert "<script" not in (tmp_path / "comparison.html").read_text()


def test_what_is_missing_is_said(record):
    """A subset without labels: no measures, no loss, no bases, and a run of a version that noted no call."""
    results = {key: value for key, value in record.results.items() if key not in (*labels.MEASURES, "data", "memory")}
    bare = record._replace(results=results, lines=[], calls=[], bases=None, snapshots={})
    said = render.render("run.html", run_page.content(bare))
    for sentence in (
        "Nothing was measured",
        "there are no bases",
        "This method does not optimise its set",
        "There is no outer loss",
        "The command was not recorded",
    ):
        assert sentence in said
    assert ">Memory<" not in said


def test_results_with_a_supervised_teacher_are_headed_so(record, tmp_path):
    words = "supervised ResNet-56 of width 16 in the names of torchvision, 64 features"
    results = {**record.results, "teacher": words}
    assert report.table(results).startswith("| supervised teacher | ") and report.table(record.results)[:4] == "| | "
    supervised = record._replace(results=results, about={**record.about, "teacher": words})
    report.write(tmp_path / "run.html", supervised)
    assert ", supervised teacher</h1>" in (tmp_path / "run.html").read_text()
    side = report.side_of("one", [supervised])
    report.compare(tmp_path / "sides.html", [side, side], beside={}, title="Two")
    assert "<h1>Two, supervised teacher</h1>" in (tmp_path / "sides.html").read_text()
    report.compare(tmp_path / "sides.html", [side, report.side_of("two", [record])], beside={}, title="Two")
    assert "<h1>Two</h1>" in (tmp_path / "sides.html").read_text()


def test_an_own_stage_is_a_measure():
    found = measures.of_results({"post_training": {"top1": {"mean": 60.0, "std": 6.0, "values": [54.0, 66.0]}}})
    table = measures.table("post_training", found["post_training"])
    assert table.title == "its own post-training, top-1 (%)" and table.rows[0].text == "60.0 ± 6.0"


@pytest.mark.parametrize("start", ["digits", "digits:kmeans", "cifar100:mkdt", "tinyimagenet"])
def test_a_call_from_python_has_a_command(start, tmp_path):
    """The command gives the same config again, and begins with the config file it came from."""
    name, _, edition = start.partition(":")
    config = commandline.parse([f"--config=configs/{name}.py:{edition}"]).config
    with config.unlocked():
        config.seed, config.views, config.data.data_dir = 5, ("rot0", "rot180"), "some where's"
    found = commandline.equivalent(config, tmp_path / "a run", tmp_path / "shared")
    typed = shlex.split(found)
    assert typed[:4] == ["python", "-m", "ssdd_jax.main", f"--config=configs/{name}.py{':' * bool(edition)}{edition}"]
    options = commandline.parse(typed[3:])
    assert configuration.flatten(options.config) == configuration.flatten(config)
    assert (options.workdir, options.shared) == (tmp_path / "a run", tmp_path / "shared")


def test_calls_cut_short_are_left_out(tmp_path):
    history.note(tmp_path / "calls.jsonl", "python one")
    with open(tmp_path / "calls.jsonl", "a") as file:
        file.write('{"command": "py')
    assert [call["command"] for call in history.read(tmp_path / "calls.jsonl")] == ["python one"]
    history.note(tmp_path / "calls.jsonl", "python two")
    assert [call["command"] for call in history.read(tmp_path / "calls.jsonl")] == ["python one", "python two"]


def test_memory_where_the_system_tells_less(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t1234 kB\n")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    with memory.peaks() as held:
        pass
    assert held["host"] == 1234 * 1024
    (tmp_path / "status").write_text("")
    with memory.peaks() as held:
        pass
    assert "host" not in held


def test_memory_sees_what_was_held_and_given_back(monkeypatch):
    if not pathlib.Path("/proc/self/status").exists():
        pytest.skip("only Linux tells what a process holds now")
    with memory.peaks() as quiet:
        pass
    looks, usage = [], memory._usage
    monkeypatch.setattr(memory, "_usage", lambda: looks.append(None) or usage())
    for _ in range(2):  # the second time the highest value of the process does not rise any more
        with memory.peaks() as held:
            block = np.ones(30_000_000)
            looks.clear()
            tiny_runs.wait_until(lambda: len(looks) > 1)  # the first may have begun before the block was there
            assert block[7] == 1
            del block
        assert quiet["host"] + 200e6 < held["host"] < files.machine_bytes()


def test_a_table_ends_with_the_paired_difference_to_random_images(record):
    """By hand: differences 1, 2, 3 have a mean of 2 and the interval 2 ± 4.303 / sqrt(3)."""
    rows = {"distilled": statistics.summary([61.0, 64.0, 63.0]), "random_real": statistics.summary([60.0, 62.0, 60.0])}
    results = {**{key: value for key, value in record.results.items() if key not in labels.MEASURES}, "linear": rows}
    assert report.table(results).endswith("| distilled set − random images | +2.0 [-0.5, +4.5] |")
    # One network, or networks of other seeds, cannot be paired.
    for first, second in (([61.0], [60.0]), ([61.0, 62.0], [60.0])):
        rows = {"distilled": statistics.summary(first), "random_real": statistics.summary(second)}
        assert "−" not in report.table({**results, "linear": rows})
