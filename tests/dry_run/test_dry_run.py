"""The plan of a run: what it says, that every method can be measured, and that nothing is written."""

import math

import pytest
import tiny_runs

from ssdd_jax import dry_run, errors, main, pipeline
from ssdd_jax.cli import arguments as commandline
from ssdd_jax.dry_run import contents, table, timing
from ssdd_jax.dry_run.predictions import Plan, Prediction
from ssdd_jax.dry_run.timing import Cost

# Small enough that compiling is all there is.
SMALL = {
    "student__widths": "(2,)",
    "teacher__epochs": 3,
    "teacher__gate": "warn",
    "views": "('rot0','rot90')",
    "evaluate__seeds": 1,
}


def predicted(line, until="report"):
    options = commandline.parse(line)
    return pipeline.plan(options.config, options.workdir, shared=options.shared, until=until)


def everything(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_a_run_from_the_beginning_is_measured_and_nothing_written(tmp_path):
    tiny_runs.write_data(tmp_path)
    before = everything(tmp_path)
    found = predicted(tiny_runs.taught(tmp_path, "boost", **SMALL))
    assert everything(tmp_path) == before
    by_name = {one.name: one for one in found.stages}
    names = ["data", "teacher", "features", "gate", "samples", "distill", "approximate", "evaluate", "report"]
    assert list(by_name) == names and not any(one.done for one in found.stages)
    (teacher,) = by_name["teacher"].costs
    assert teacher.count == 3 * (120 // 40) and teacher.compiling > 0
    assert teacher.memory > 120 * 64  # the images are among it
    assert by_name["teacher"].lower == "config.teacher.batch_size or config.teacher.width"
    assert by_name["distill"].lower == "config.pool.vectorize, config.distill.batch_size or config.storage.M"
    assert by_name["distill"].costs[-1].count == 40
    # Two pool models, one after the other, to half of five steps each; two sets of pairs on one network, and all
    # images.
    assert by_name["distill"].costs[1].count == 2 * 5 / 2
    # Random images at both published settings.
    assert [cost.count for cost in by_name["evaluate"].costs][:3] == [5, 2 * 5, 3]
    assert all(cost.seconds > 0 for one in found.stages for cost in one.costs)
    assert math.isfinite(found.seconds) and 0 < found.memory < found.available


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder with data, a teacher and its features."""
    return tiny_runs.with_teacher(tmp_path_factory.mktemp("plan"))


# The costs of the method's own stage, and how often the first of them is left to do.
OWN = {
    "krr_st": ("distill", 1),
    "mkdt": ("experts", 3 * 3),  # three side by side: 3 epochs (starts before the second, two more) of 3 steps
    "scdd": ("post_training", 2),
    "lgm": ("linear_head", 4 * 5),  # epochs of the heads on the set and three baselines
    "clp_dd": ("hard_labels", 2 * 7 + 5),  # steps on the set, on random images, and on all of them
    "kmeans": ("samples", 120),
    "noise": ("approximate", 1),
    "boost_plus": ("approximate", 1),
}


QUICKEST = ("noise",)


@pytest.mark.medium
@pytest.mark.parametrize(
    "edition", [name if name in QUICKEST else pytest.param(name, marks=pytest.mark.slow) for name in OWN]
)
def test_every_method_is_measured(edition, taught):
    """With a teacher that is there already."""
    before = everything(taught)
    stage, count = OWN[edition]
    until = {"scdd": "post_training", "lgm": "linear_head", "clp_dd": "dd_ranking"}.get(edition, "approximate")
    changes = {"evaluate__seeds": 1, "evaluate__full_steps": 5, "encoder__label_steps": 7}
    found = predicted(tiny_runs.taught(taught, edition, "planned", **changes), until=until)
    assert everything(taught) == before
    by_name = {one.name: one for one in found.stages}
    assert by_name["teacher"].done and by_name["features"].done and list(by_name)[-1] == until
    assert by_name[stage].costs[0].count == count
    if edition in ("krr_st", "mkdt", "scdd"):
        assert by_name["distill"].costs[-1].count == 40 and by_name["distill"].costs[-1].measured >= 1
    if edition == "boost_plus":
        assert by_name["approximate"].costs[-1].count > 4 and by_name["approximate"].costs[-1].measured >= 1
    assert sum(found.parts.values()) <= found.budget == 4 * (64 + 16)
    assert math.isfinite(found.seconds) and found.seconds > 0


@pytest.mark.slow
def test_what_is_done_is_not_done_again(tmp_path):
    """The counts of a run that was stopped, and that of one that has ended."""
    tiny_runs.write_data(tmp_path)
    line = tiny_runs.arguments(tmp_path, **SMALL)
    assert main.main([*line, "--stage=samples"]) == 0
    (tmp_path / "run" / "checkpoints" / "20").mkdir(parents=True)
    found = {one.name: one for one in predicted(line, until="distill").stages}
    assert found["teacher"].state == "precomputed" and found["features"].done and found["samples"].done
    (steps,) = found["distill"].costs
    assert found["distill"].state == "20 steps done" and steps.count == 20
    (tmp_path / "run" / "distilled").mkdir()
    (tmp_path / "run" / "distilled" / "set.json").write_text("{}")
    (tmp_path / "run" / "results.json").write_text("{}")
    found = predicted(line)
    assert [one.name for one in found.stages if not one.done] == ["data", "report"]
    assert found.compiling == 0 and found.seconds < 5


def test_another_config_is_refused(tmp_path):
    tiny_runs.write_data(tmp_path)
    assert main.main([*tiny_runs.arguments(tmp_path), "--stage=data"]) == 0
    with pytest.raises(errors.UserError, match="storage.N"):
        predicted(tiny_runs.arguments(tmp_path, storage__N=5))


@pytest.mark.medium
def test_a_shared_teacher_of_another_config_is_refused(taught):
    with pytest.raises(errors.UserError, match="teacher.width"):
        predicted(tiny_runs.taught(taught, "random", "other", teacher__width=3))
    assert not (taught / "other").exists()


@pytest.mark.slow
def test_the_numbers_stored_are_those_of_the_set(tmp_path):
    """The plan's parts sum to what the run then stores, with sizes that the data do not decide."""
    tiny_runs.write_data(tmp_path)
    line = tiny_runs.arguments(tmp_path, storage__M=6, storage__U=3, storage__V=3)
    options = commandline.parse(line)
    job = pipeline.prepare(options.config, pipeline.Workdir(options.workdir), lambda line: None)
    assert main.main([*line, "--stage=approximate"]) == 0
    import ssdd_jax

    stored = ssdd_jax.load(tmp_path / "run" / "distilled").numbers_stored()
    assert sum(contents.parts_of(job).values()) == stored


def made(*stages, available=10**9):
    return Plan("here", 4, [("pairs", "3")], {"images": 10}, 20, list(stages), available)


def test_the_text_sums_up_and_says_what_does_not_fit():
    costs = (Cost("steps", 100, 0.5, 3, 10.0, 2 * 10**9), Cost("starts", 1, 2.0, 1))
    teacher = Prediction("teacher", "", costs, lower="config.teacher.batch_size or another")
    found = made(Prediction("features", "done"), teacher, Prediction("report", ""))
    assert found.seconds == 62 and found.compiling == 10 and found.memory == 2 * 10**9
    lines = dry_run.text(found).splitlines()
    assert any(line.split() == ["teacher", "100", "steps", "1:02", "0:10", "2.0", "GB"] for line in lines)
    assert any(line.split() == ["features", "done"] for line in lines)
    assert "numbers stored: 10 of 20 = N (HWC + D)" in lines
    assert any(
        "teacher needs more memory than the device has: lower config.teacher.batch_size or another." in x for x in lines
    )
    assert "about 1:02" in dry_run.short(found) and "2.0 GB of 1.0 GB" in dry_run.short(found)
    enough = made(teacher, available=10**10)
    assert not any("needs more memory" in line for line in dry_run.text(enough).splitlines())


def test_what_could_not_be_measured_is_not_guessed():
    found = made(Prediction("teacher", "", (Cost("steps", 100, math.nan, 0, 1.0, 5),)))
    assert math.isnan(found.seconds) and "?" in dry_run.text(found) and "unknown" in dry_run.short(found)


@pytest.mark.parametrize(("seconds", "words"), [(0.04, "0.0 s"), (9.96, "0:10"), (61, "1:01"), (7322, "2:02:02")])
def test_durations(seconds, words):
    assert table.duration(seconds) == words


def test_the_clock_counts_steps_not_calls():
    calls = []
    _, measured = timing.clock(calls.append, most=7)
    assert calls == [1, 1, 7] and measured == 7


def test_the_newest_checkpoint(tmp_path):
    assert contents.newest(tmp_path / "none") == 0
    for name in ("30", "5", "40.orbax-checkpoint-tmp-1", "notes"):
        (tmp_path / name).mkdir()
    assert contents.newest(tmp_path) == 30


def test_dry_run_prints_and_leaves_no_folder(tmp_path, capsys):
    tiny_runs.write_data(tmp_path)
    before = everything(tmp_path)
    line = tiny_runs.arguments(tmp_path, **SMALL)
    assert main.main([*line, "--dry_run", "--stage=samples"]) == 0
    said = capsys.readouterr().out
    assert everything(tmp_path) == before
    for words in ("training images n", "120 of 8x8x1", "numbers stored: ", "samples", "precomputed"):
        assert words in said
    assert "evaluate" not in said


def test_a_budget_in_bytes_is_told_as_such():
    found = made()._replace(budget=2048, unit="bytes")
    assert "numbers stored: 10 in 2,048 bytes" in table.text(found)
    assert table.short(found).startswith("2,048 bytes: about 10 numbers; expected memory")
    assert "numbers stored: 10 of 20 = N (HWC + D)" in table.text(made())
