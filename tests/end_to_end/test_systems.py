"""One whole tiny run of every method but the first: what it leaves, where it stops, and what runs may share."""

import fcntl
import json
import os
import shutil
import signal

import numpy as np
import pytest
import tiny_runs
from PIL import Image

import ssdd_jax
from ssdd_jax import main
from ssdd_jax.errors import UserError
from ssdd_jax.training import loop

pytestmark = pytest.mark.medium

SUBSETS = ("random", "kmeans", "high_loss", "rela")
LEARNED = ("krr_st", "mkdt", "scdd")
EDITIONS = (*LEARNED, *SUBSETS, "boost_plus", "noise")
SLOW = (*LEARNED, "noise")
OWN_STAGES = {"mkdt": {"experts"}, "high_loss": {"experts"}, "scdd": {"probe", "post_training"}}
BUDGET = 4 * (8 * 8 * 1 + 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_runs.with_teacher(tmp_path_factory.getbasetemp())


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in EDITIONS],
)
def finished(request, folder):
    """An edition's name and its folder, once it has run."""
    checks = tiny_runs.CHECKED if request.param == "krr_st" else {}
    assert main.main(tiny_runs.taught(folder, request.param, **checks)) == 0
    return request.param, folder / request.param


def read(path):
    return json.loads(path.read_text())


def rows_of(run):
    return np.load(run / "samples" / "rows.npy")


def refusal(capsys, line):
    """Run a command line that must be refused; the one line that it says."""
    capsys.readouterr()
    assert main.main(line) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("ssdd_jax: "), said
    return said[0]


def test_results_are_complete(finished):
    edition, run = finished
    results = read(run / "results.json")
    for measure in ("linear", "linear_krr_st", "few_shot", "feature_r2", "feature_r2_whitened"):
        assert list(results[measure]) == ["distilled", "random_real", "random_init", "full_data", "teacher"]
        for row in results[measure].values():
            assert row["seeds"] == 2 and np.isclose(np.mean(row["values"]), row["mean"], atol=1e-3)
    own = OWN_STAGES.get(edition, set()) | ({"gate"} if edition == "krr_st" else set())
    assert set(results["seconds"]) == own | {
        *("data", "teacher", "features", "samples", "distill", "approximate", "evaluate")
    }
    chosen = edition in SUBSETS and edition != "rela"
    assert results["method"] == ("subset" if chosen else "composed" if edition == "boost_plus" else edition)
    if edition in SUBSETS:
        assert results["samples"] == (edition if chosen else "random")


def test_the_storage_is_used_and_not_exceeded(finished):
    edition, run = finished
    storage = read(run / "results.json")["storage"]
    assert storage["budget"] == BUDGET and storage["N"] == 4
    # SC-DD: as many images with soft labels for each of three classes as there is room for, one.
    if edition == "boost_plus":  # whatever is less than another target
        assert BUDGET - 16 < storage["numbers"] <= BUDGET
    else:
        assert storage["numbers"] == (3 * (64 + 3) if edition == "scdd" else BUDGET)
    assert storage["numbers"] == sum(storage["parts"].values())
    assert storage["bytes"] == sum(file.stat().st_size for file in (run / "distilled").iterdir())


def test_the_set_loads(finished):
    edition, run = finished
    found = ssdd_jax.load(run / "distilled")
    images, targets = (np.asarray(part) for part in found.pairs())
    count, dim = (3, 3) if edition == "scdd" else (4, 16)
    if edition == "boost_plus":
        count = len(found.arrays["feature_coefficients"])
        assert count > 20
    assert images.shape == (count, 8, 8, 1) and targets.shape == (count, dim)
    assert np.isfinite(images).all() and np.isfinite(targets).all()
    assert images.std() > 0.1 and targets.std() > 1e-3
    assert found.numbers_stored() == read(run / "results.json")["storage"]["numbers"]


def test_figures_show_something(finished):
    edition, run = finished
    further = {"boost_plus": ["stored.png"], **dict.fromkeys(LEARNED, ["loss.png"])}.get(edition, [])
    names = {"distilled.png", "results.png", *further}
    assert {file.name for file in (run / "figures").iterdir()} == names
    for file in (run / "figures").iterdir():
        with Image.open(file) as image:
            assert np.asarray(image.convert("L")).std() > 5, file


def test_subsets_are_images_of_the_data(finished, folder):
    edition, run = finished
    with np.load(folder / "images.npz") as archive:
        known = archive["train_images"]
    images = np.rint(np.asarray(ssdd_jax.load(run / "distilled").images()) * 255)
    matches = [np.flatnonzero((np.abs(known - image) < 1.5).all((1, 2, 3))).tolist() for image in images]
    if edition in SUBSETS:
        rows = rows_of(run)
        assert len(set(rows.tolist())) == 4 and all(row in match for row, match in zip(rows, matches, strict=True))
    else:
        assert not any(matches)


def test_the_page_shows_what_images_are_composed_of(finished):
    edition, run = finished
    page = (run / "report.html").read_text()
    stored = ssdd_jax.load(run / "distilled").stored_images()
    assert (stored is not None) == (edition == "boost_plus")
    if stored is not None:
        assert f"{len(stored)} stored images. Every image above is composed" in page
        assert page.count("stored image ") >= len(stored)
    assert ("This method stores images directly" in page) == (stored is None)


def test_high_loss_chooses_the_worst_fitted(folder):
    for edition in ("high_loss", "mkdt"):
        assert main.main([*tiny_runs.taught(folder, edition), "--stage=samples"]) == 0
        losses = np.load(folder / "shared" / "experts" / "losses.npy")
        assert set(rows_of(folder / edition)) == set(np.argsort(losses)[-4:])


def test_learned_sets_have_left_their_start(finished):
    edition, run = finished
    if edition not in LEARNED:
        assert not (run / "metrics.jsonl").exists() or not loop.read_metrics(run / "metrics.jsonl")
        return
    lines = [line for line in loop.read_metrics(run / "metrics.jsonl") if line["stage"] == "distill"]
    assert [line["step"] for line in lines] == list(range(5, 41, 5))
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.slow
def test_scdd_is_measured_in_its_own_way(folder):
    assert main.main(tiny_runs.taught(folder, "scdd")) == 0
    top1 = read(folder / "scdd" / "results.json")["post_training"]["top1"]
    assert top1["seeds"] == 2 == len(top1["values"]) and 0 <= top1["mean"] <= 100
    assert top1 == read(folder / "scdd" / "post_training" / "results.json")["top1"]


def test_without_post_training_there_is_no_such_stage(folder, capsys):
    line = tiny_runs.taught(folder, "scdd", "without", scdd__post_epochs=0)
    assert "post_training" not in refusal(capsys, [*line, "--stage=post_training"]).partition("the stages are")[2]


@pytest.mark.parametrize(("edition", "stage"), [("mkdt", "experts"), ("high_loss", "experts"), ("scdd", "probe")])
def test_stops_after_a_stage_of_its_own(edition, stage, folder):
    run = folder / f"{edition}-{stage}"
    assert main.main([*tiny_runs.taught(folder, edition, run.name), f"--stage={stage}"]) == 0
    assert any((folder / "shared" / stage).glob("*.npy"))
    assert {file.name for file in run.iterdir()} <= {
        *(".lock", "config.json", "gate.json", "seconds.json", "memory.json", "calls.jsonl", "inputs.json")
    }
    assert list(read(run / "seconds.json"))[-1] == stage


@pytest.mark.parametrize(
    ("edition", "stages"),
    [
        ("krr_st", "teacher, features, gate, samples, distill, approximate, evaluate, report"),
        ("mkdt", "teacher, features, gate, experts, samples, distill, approximate, evaluate, report"),
        ("high_loss", "teacher, features, gate, experts, samples, distill, approximate, evaluate, report"),
        ("scdd", "teacher, features, gate, probe, samples, distill, approximate, post_training, evaluate, report"),
    ],
)
def test_an_unknown_stage_is_answered_with_those_there_are(edition, stages, folder, capsys):
    said = refusal(capsys, [*tiny_runs.taught(folder, edition, "unknown", **tiny_runs.CHECKED), "--stage=later"])
    assert said == f"ssdd_jax: unknown stage 'later': the stages are data, {stages}"
    assert not (folder / "unknown" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("edition", ["mkdt", "scdd"])
def test_killed_run_ends_with_the_same_bits(edition, folder):
    changes = {"distill__steps": 600, "distill__save_every": 50, "scdd__post_epochs": 0, "evaluate__seeds": 1}
    alone, killed = (tiny_runs.taught(folder, edition, f"{edition}-{name}", **changes) for name in ("alone", "killed"))
    assert main.main([*alone, "--stage=approximate"]) == 0
    process = tiny_runs.start([*killed, "--stage=approximate"], folder)
    run = folder / f"{edition}-killed"
    tiny_runs.wait_for_step(run, 150, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=tiny_runs.TIMEOUT)
    assert process.returncode == -signal.SIGKILL
    assert not (run / "distilled").exists(), "the distillation was over before it was killed"
    assert main.main([*killed, "--stage=approximate"]) == 0
    for name in ("set.safetensors", "set.json"):
        expected, found = ((folder / f"{edition}-{which}" / "distilled" / name) for which in ("alone", "killed"))
        assert found.read_bytes() == expected.read_bytes(), name
    steps = [line["step"] for line in loop.read_metrics(run / "metrics.jsonl")]
    assert steps == list(range(5, 601, 5))


def test_mkdt_learns_its_rate(folder):
    assert main.main([*tiny_runs.taught(folder, "mkdt"), "--stage=approximate"]) == 0
    rate = ssdd_jax.load(folder / "mkdt" / "distilled").statics["learning_rate"]
    assert rate > 0 and rate != np.float32(0.03)


def shared_files(folder):
    """What the stages wrote there, with its times; not what XLA compiled, which depends on how long compiling took."""
    shared = folder / "shared"
    return {
        file: file.stat().st_mtime_ns
        for file in shared.rglob("*")
        if file.is_file() and not file.name.startswith(".lock") and "compiled" not in file.relative_to(shared).parts
    }


def test_another_seed_and_method_reuse_what_is_shared(folder):
    for edition, stage in (("mkdt", "experts"), ("scdd", "probe")):
        assert main.main([*tiny_runs.taught(folder, edition, f"{edition}-{stage}"), f"--stage={stage}"]) == 0
    before = shared_files(folder)
    assert {file.parent.name for file in before} == {"shared", "teacher", "features", "experts", "probe"}
    for edition in ("random", "mkdt", "scdd", "high_loss"):
        for seed in (0, 1):
            line = tiny_runs.taught(folder, edition, f"{edition}-seed{seed}", seed=seed, evaluate__seeds=1)
            assert main.main([*line, "--stage=samples"]) == 0
    assert shared_files(folder) == before
    assert set(rows_of(folder / "random-seed0")) != set(rows_of(folder / "random-seed1"))
    assert (rows_of(folder / "high_loss-seed0") == rows_of(folder / "high_loss-seed1")).all()


@pytest.mark.parametrize(
    ("edition", "changes", "words"),
    [
        (
            "random",
            {"teacher__epochs": 3},
            "shared/teacher was made with another config: teacher.epochs (2 there, 3 now",
        ),
        ("krr_st", {"teacher__seed": 1}, "teacher.seed (0 there, 1 now)"),
        ("scdd", {"data__train_limit": 100}, "made with other training images"),
        ("mkdt", {"experts__count": 4}, "shared/experts was made with another config: experts.count (3 there, 4 now)"),
        ("scdd", {"evaluate__probe_steps": 21}, "shared/probe was made with another config: evaluate.probe_steps (20"),
    ],
)
def test_what_was_made_with_other_settings_is_refused(edition, changes, words, folder, capsys):
    for name, stage in (("mkdt", "experts"), ("scdd", "probe")):
        assert main.main([*tiny_runs.taught(folder, name, f"{name}-{stage}"), f"--stage={stage}"]) == 0
    before = shared_files(folder)
    said = refusal(capsys, tiny_runs.taught(folder, edition, f"other-{'-'.join(changes)}", **changes))
    assert words in said and "choose another --shared" in said
    assert shared_files(folder) == before


def test_settings_of_what_a_method_does_not_use_may_differ(folder):
    line = tiny_runs.taught(folder, "random", "differs", experts__count=4, evaluate__probe_steps=21)
    assert main.main([*line, "--stage=samples"]) == 0


def test_the_shared_folder_may_be_the_runs_own(tmp_path):
    """However its path is written: a process that waits for its own lock would wait for ever."""
    tiny_runs.write_data(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)

    def too_long(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(tiny_runs.TIMEOUT)
    try:
        line = tiny_runs.arguments(tmp_path, "run", teacher__features=tmp_path / "features.npz")
        assert main.main([*line, f"--shared={tmp_path / 'link' / 'run'}", "--stage=samples"]) == 0
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_the_teacher_of_another_run_is_bound_to_that_runs_config(tmp_path, capsys):
    """The folder of a run that was made without --shared holds features too, and says how they were made."""
    tiny_runs.write_data(tmp_path)
    assert main.main([*tiny_runs.arguments(tmp_path, "first"), "--stage=features"]) == 0
    with np.load(tmp_path / "features.npz") as archive:
        np.savez(tmp_path / "others.npz", **{name: -array for name, array in archive.items()})
    line = tiny_runs.arguments(tmp_path, "second", teacher__features=tmp_path / "others.npz")
    assert "made with other features" in refusal(capsys, [*line, f"--shared={tmp_path / 'first'}", "--stage=features"])


def test_a_teacher_that_came_to_nothing_can_be_given_up(tmp_path, capsys, monkeypatch):
    """What it left is never continued with another rate; without it another rate can be tried."""
    tiny_runs.write_data(tmp_path)

    def diverge(*_, **__):
        raise UserError("teacher: the loss is not a number")

    monkeypatch.setattr(loop, "run", diverge)
    high, low = (
        tiny_runs.taught(tmp_path, "random", f"rate-{rate}", teacher__learning_rate=rate) for rate in (10.0, 0.1)
    )
    assert "the loss is not a number" in refusal(capsys, high)
    said = refusal(capsys, low)
    assert "teacher.learning_rate (10.0 there, 0.1 now); delete it, choose another --shared" in said
    shutil.rmtree(tmp_path / "shared" / "teacher")
    assert "the loss is not a number" in refusal(capsys, low)


def test_a_shared_folder_in_use_is_waited_for(folder):
    """Another process holds the shared folder: nothing is made until it lets go."""
    with open(folder / "shared" / ".lock-teacher", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = tiny_runs.start([*tiny_runs.taught(folder, "random", "waits"), "--stage=samples"], folder)
        tiny_runs.wait_until((folder / "waits" / "config.json").exists, process)
        assert not (folder / "waits" / "samples").exists() and process.poll() is None
    _, err = process.communicate(timeout=tiny_runs.TIMEOUT)
    assert process.returncode == 0, err
    assert (folder / "waits" / "samples" / "rows.npy").exists()
