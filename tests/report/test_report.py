"""Reports: what charts show, what pages say, and the command that writes them."""

import base64
import html
import io
import json
import pathlib
import re
import shlex
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import tiny_runs
from PIL import Image

from ssdd_jax import config as configuration
from ssdd_jax import report
from ssdd_jax.cli import arguments as commandline
from ssdd_jax.errors import UserError
from ssdd_jax.report import __main__ as command
from ssdd_jax.report import (
    comparison_page,
    figures,
    labels,
    measures,
    render,
    run_page,
    statistics,
    storage,
    summary,
    svg,
)
from ssdd_jax.report.pictures import picture
from ssdd_jax.runtime import files, history, memory

pytestmark = pytest.mark.medium

ENTRIES = ("distilled", "random_real", "random_init", "full_data", "teacher")
SPACE = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def finished(session_folder):
    """The folder of a tiny run."""
    return tiny_runs.finished(session_folder)[0]


@pytest.fixture(scope="module")
def record(finished):
    return report.read(finished)


def parse(drawing):
    return ElementTree.fromstring(str(drawing))


def of_class(root, name):
    return [one for one in root.iter() if name in one.get("class", "").split()]


def text_of(path):
    """A page's words as a reader sees them."""
    plain = re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", path.read_text(), flags=re.S))
    return " ".join(html.unescape(plain).split())


def test_ticks_are_round_and_inside():
    assert svg.ticks(0, 500) == [0, 200, 400]
    assert svg.ticks(0.871, 1.0) == [0.9, 0.95, 1.0]
    for low, high in ((0.0, 1.0), (93.2, 98.1), (-3e-5, 2e-5), (7.0, 30_000.0)):
        found = svg.ticks(low, high)
        assert 2 <= len(found) <= 4 and all(low <= value <= high for value in found)
        assert np.allclose(np.diff(found), found[1] - found[0])


@pytest.mark.parametrize("scale", [(0.86, 0.945), (91, 96.5), (0.6051, 0.6142), (22, 98), (0.9398, 0.9402), (-1, 1)])
def test_numbers_of_an_axis_do_not_touch(scale):
    texts = parse(svg.axis(svg.Scale(*scale))).findall(f"{SPACE}text")
    assert len(texts) >= 2 and all(scale[0] <= float(text.text) <= scale[1] for text in texts)
    for left, right in zip(texts, texts[1:], strict=False):
        between = float(right.get("x")) - float(left.get("x"))
        assert between > 3 * (len(left.text) + len(right.text))


def test_error_bars_are_where_they_belong():
    scale = svg.Scale(90.0, 100.0)
    root = parse(svg.interval(95.0, 1.0, [94.0, 95.0, 96.0], scale, strong=True, words="mine"))
    width = svg.STRIP[0] - 2 * svg.INSET

    def place(value):
        return pytest.approx(svg.INSET + (value - 90) / 10 * width, abs=0.01)

    (mark,) = of_class(root, "mark")
    assert float(mark.get("cx")) == place(95.0)
    line, *caps = of_class(root, "bar")
    assert (float(line.get("x1")), float(line.get("x2"))) == (place(94.0), place(96.0))
    assert [float(cap.get("x1")) for cap in caps] == [place(94.0), place(96.0)]
    assert [float(seed.get("x1")) for seed in of_class(root, "seed")] == [place(94.0), place(95.0), place(96.0)]
    assert root.get("aria-label") == "mine"


def test_what_is_beyond_the_axis_is_an_arrow():
    scale = svg.scale_of([(94, 96), (95, 98)], [(20, 25), (99, 99)])
    assert scale.low > 25 and scale.low < 94 and scale.high > 99
    root = parse(svg.interval(22.0, 5.0, [20.0], scale, strong=False, words=""))
    (arrow,) = of_class(root, "mark")
    assert arrow.tag == f"{SPACE}polygon" and arrow.get("points").startswith("1,") and not of_class(root, "bar")


def test_equal_values_have_a_scale():
    scale = svg.scale_of([(0.0, 0.0), (0.0, 0.0)])
    assert scale.low < 0 < scale.high
    parse(svg.interval(0.0, 0.0, [], scale, strong=True, words=""))


@pytest.mark.parametrize("log", [False, True])
def test_a_chart_follows_its_numbers(log):
    series = svg.Series([10, 20, 40], [1.0, 10.0, 100.0], [0.5, 5.0, 50.0], [2.0, 20.0, 200.0])
    root = parse(svg.chart({"loss": series}, words="<loss>", log=log, level=150.0))
    (line,), (band,) = of_class(root, "line"), of_class(root, "band")
    points = np.array([point.split(",") for point in line.get("points").split()], float)
    assert np.isclose((points[2, 0] - points[1, 0]) / (points[1, 0] - points[0, 0]), 2, rtol=0.01)
    rises = -np.diff(points[:, 1])
    assert np.isclose(rises[1] / rises[0], 1 if log else 10, rtol=0.02)
    assert len(band.get("points").split()) == 6
    (level,) = of_class(root, "level")
    assert points[2, 1] > float(level.get("y1")) > 0


@pytest.mark.parametrize("ys", [[0.5], [0.0, 0.0], [2.0, 2.0], [-1.0, 1.0]])
def test_a_chart_of_little(ys):
    root = parse(svg.chart({"loss": svg.Series(range(len(ys)), ys)}, words="", log=min(ys) > 0))
    assert "nan" not in ElementTree.tostring(root).decode() and of_class(root, "line")


def test_the_storage_bar_adds_up():
    parts = {"image_bases": 30, "networks.one": 10, "networks.two": 15, "image_mean": 5}
    kept = {"numbers": 60, "budget": 80, "bytes": 300, "parts": parts}
    found = storage.of_results({"storage": kept})
    rects = parse(found.bar).findall(f"{SPACE}rect")
    widths = [float(rect.get("width")) for rect in rects]
    assert widths == [375.0, 62.5, 312.5] and sum(widths) == 1000 * 60 / 80
    assert [float(rect.get("x")) for rect in rects] == [0.0, 375.0, 437.5]
    assert [(part.name, part.size) for part in found.parts] == [
        ("image bases", 30),
        ("image mean", 5),
        ("approximation networks", 25),
    ]
    assert found.left == 20 and found.left_share == "25.0 %"
    # Results of versions before budgets in bytes name no unit; those of later ones do.
    assert storage.used(kept) == (60, "numbers") == (found.used, found.unit)
    assert storage.used(kept | {"used": 290, "unit": "bytes"}) == (290, "bytes")
    assert len({part.colour for part in found.parts}) == 3


def test_pictures_hold_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    found = picture(pixels, "one")
    content = base64.b64decode(found.source.removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)
    assert (found.width, found.height) == (7, 5)


def test_units():
    assert [labels.seconds(value) for value in (0.04, 99.0, 240, 3000, 90_000)] == [
        *("0.0 s", "99.0 s", "4.0 min", "50 min", "25.0 h")
    ]
    assert [labels.size(value) for value in (12, 3100, 2.5e9)] == ["12 bytes", "3.1 kB", "2.5 GB"]
    assert [labels.size(value) for value in (999.4e6, 999.7e6, 1.2e13)] == ["999 MB", "1 GB", "12,000 GB"]


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


@pytest.mark.parametrize("start", ["digits", "digits:kmeans", "cifar100:mkdt", "tinyimagenet"])
def test_a_call_from_python_has_a_command(start, tmp_path):
    """Which gives the same config again, and begins with the config file it came from."""
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
