"""The command line: what it refuses, and in which words."""

import errno
import os
import re

import jax
import numpy as np
import pytest
import tiny_runs
from PIL import Image

from ssdd_jax import main
from ssdd_jax.runtime import files

REFUSED = {
    "unknown key": ({"storage__M_": 3}, "unknown config key config.storage.M_: did you mean config.storage.M"),
    "wrong type": ({"distill__steps": "many"}, "config.distill.steps='many' is not an int"),
    "out of range": ({"distill__learning_rate": -1}, "config.distill.learning_rate=-1.0 is out of range"),
    "unknown method": ({"method": "magic"}, "config.method='magic' is out of range: it must be one of"),
    "unknown view": ({"views": "('rot0','rot45')"}, "config.views"),
    "more models than there are": ({"pool__models_per_step": 3}, "pool.models_per_step=3"),
    "no such data": ({"data__name": "npz:nowhere.npz"}, "nowhere.npz"),
    "no such kind of data": ({"data__name": "mnist"}, "tfds:mnist"),
    "too many images asked for": ({"storage__N": 500}, "storage.N=500 asks for more images than the 120"),
    "too many bases": ({"storage__U": 17}, "storage.U=17 is too many"),
    "over the budget": ({"storage__M": 60, "storage__V": 9}, "storage exceeds the budget"),
    "size not divisible": ({"student__widths": "(4,4,4,4)"}, "images of 8x8 cannot be halved 4 times"),
    "batch larger than the data": ({"distill__batch_size": 121}, "config.distill.batch_size=121"),
    "KRR-ST with more than all": ({"method": "krr_st", "storage__N": 121}, "storage.N=121 asks for more images than"),
    "MKDT with more than all": ({"method": "mkdt", "storage__N": 121}, "storage.N=121 asks for more images than"),
    "noise with more than all": ({"method": "noise", "storage__N": 121}, "storage.N=121 asks for more images than"),
    "a subset larger than all": ({"method": "subset", "storage__N": 121}, "storage.N=121 asks for more images than"),
    "unknown samples": ({"distill__samples": "best"}, "config.distill.samples='best' is out of range: it must be one"),
    "SC-DD without a network": (
        {"method": "scdd"},
        "config.method=scdd runs the teacher's network, and only precomputed",
    ),
    "noise without a network": (
        {"method": "noise"},
        "config.method=noise runs the teacher's network, and only precomputed",
    ),
    "too many images per class": (
        {"method": "scdd", "teacher__features": "", "teacher__batch_size": 40, "scdd__images_per_class": 3},
        "603 numbers > 512 = N (HWC + D) with N=4; raise storage.N to 5 or lower scdd.images_per_class",
    ),
    "experts too deep": (
        {"method": "mkdt", "experts__widths": "(4,4,4,4)"},
        "config.experts.widths: images of 8x8 cannot be halved 4 times",
    ),
    "no such features": ({"teacher__features": "nowhere.npy"}, "there is no file nowhere.npy"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("main")
    tiny_runs.write_data(path)
    return path


def refusal(capsys, line):
    """Run a command line that must be refused; the one line that it says."""
    assert main.main(line) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("ssdd_jax: "), said
    return said[0]


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_before_any_work(case, folder, capsys):
    changes, words = REFUSED[case]
    assert words in refusal(capsys, tiny_runs.arguments(folder, "refused", **changes))
    assert {file.name for file in (folder / "refused").glob("*")} <= {".lock", "seconds.json", "memory.json"}


def test_compiled_programs_are_kept_in_the_work_dir(folder, monkeypatch):
    """Unless the environment names another folder, as tests/conftest.py does."""
    line = [*tiny_runs.arguments(folder, "compiles"), "--stage=data"]
    before = jax.config.jax_compilation_cache_dir
    try:
        assert main.main(line) == 0
        assert jax.config.jax_compilation_cache_dir == before == os.environ["JAX_COMPILATION_CACHE_DIR"]
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        assert main.main(line) == 0
        assert jax.config.jax_compilation_cache_dir == str(folder / "compiles" / "compiled")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("method", ["boost", "subset"])
def test_high_loss_with_experts_too_deep(method, folder, capsys):
    changes = {"method": method, "distill__samples": "high_loss", "experts__widths": "(4,4,4,4)"}
    said = refusal(capsys, tiny_runs.arguments(folder, f"too-deep-{method}", **changes))
    assert "config.experts.widths: images of 8x8 cannot be halved 4 times" in said


def test_scdd_needs_labels(tmp_path, capsys):
    tiny_runs.write_data(tmp_path, labels=False)
    said = refusal(capsys, tiny_runs.taught(tmp_path, "scdd"))
    assert "config.method=scdd needs labels, and the data set has none" in said
    assert not (tmp_path / "shared").exists()


def test_the_sum_is_written_out(folder, capsys):
    said = refusal(capsys, tiny_runs.arguments(folder, "refused", storage__M=60, storage__V=9, storage__U=9))
    for words in ("540 (image coefficients)", "540 (feature coefficients)", "> 304 = N (HWC + D)"):
        assert words in said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--config=configs/nothing.py"], "configs/digits.py"),
        (
            ["--config=configs/cifar10.py:gpu"],
            "unknown edition 'gpu': there are cpu, all_models, boost, boost_plus, krr_st",
        ),
        (["--config=configs/digits.py:mkdt,magic"], "unknown edition 'magic': there are krr_st, mkdt"),
        (["--confg=1"], "unknown option --confg"),
        (["digits"], "unexpected argument 'digits'"),
        (["--workdir"], "needs a value"),
        (["--stage=later"], "the stages are data, teacher"),
        (["--dry_run", "--stage=later"], "the stages are data, teacher"),
        (["--dry_run=perhaps"], "dry_run=perhaps"),
        (["--dry_run", "later"], "unexpected argument 'later'"),
        (["--config=configs/folder.py"], "configs/folder.py needs a folder of images"),
        (["--config=configs/folder.py:nowhere"], "nowhere is not a folder"),
    ],
)
def test_refuses_other_mistakes(line, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert words in refusal(capsys, line)


@pytest.mark.parametrize("rows", [119, 121])
def test_features_of_the_wrong_length(rows, folder, tmp_path, capsys):
    np.save(tmp_path / "f.npy", np.zeros((rows, 5), np.float32))
    line = tiny_runs.arguments(folder, "refused", teacher__features=tmp_path / "f.npy")
    assert f"features of {rows} images, the data set has 120 training images" in refusal(capsys, line)


def test_features_that_would_be_unpickled(folder, tmp_path, capsys):
    np.save(tmp_path / "f.npy", np.array([{}], object), allow_pickle=True)
    line = tiny_runs.arguments(folder, "refused", teacher__features=tmp_path / "f.npy")
    assert "holds pickled objects, which are never loaded" in refusal(capsys, line)


def test_a_corrupt_image_is_named(folder, tmp_path, capsys):
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    line = tiny_runs.arguments(folder, "refused", data__name=f"folder:{tmp_path}", data__image_size=8)
    assert str(tmp_path / "1.png") in refusal(capsys, line)


def test_another_config_is_refused_naming_what_differs(folder, capsys):
    assert main.main([*tiny_runs.arguments(folder, "other"), "--stage=data"]) == 0
    capsys.readouterr()
    said = refusal(capsys, tiny_runs.arguments(folder, "other", seed=7, storage__N=5))
    assert "seed (0 there, 7 now)" in said and "storage.N (4 there, 5 now)" in said


def test_other_images_are_refused(folder, tmp_path, capsys):
    tiny_runs.write_data(tmp_path)
    line = [*tiny_runs.arguments(tmp_path), "--stage=features"]
    assert main.main(line) == 0
    with np.load(tmp_path / "images.npz") as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "images.npz", **{**arrays, "train_images": 255 - arrays["train_images"]})
    capsys.readouterr()
    assert "was made with other training images than there are now" in refusal(capsys, line)


@pytest.mark.slow
def test_nan_stops_and_keeps_the_last_good_state(folder, capsys):
    line = tiny_runs.arguments(folder, "nan", distill__learning_rate=1e18)
    said = refusal_at_end(capsys, line)
    assert "the loss is not a number at step" in said and "config.distill.learning_rate" in said
    assert not (folder / "nan" / "distilled").exists()


def refusal_at_end(capsys, line):
    """As `refusal`, for an error that comes after the progress bar."""
    assert main.main(line) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["checkpoint", "features", "distilled", "figures"])
def test_a_full_disk_loses_nothing(when, tmp_path, capsys, monkeypatch):
    """The disk is full at one kind of file; with room again the same command ends the run."""
    tiny_runs.write_data(tmp_path)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*_, **__):
        raise full

    with monkeypatch.context() as patch:
        if when == "checkpoint":
            patch.setattr("orbax.checkpoint.CheckpointManager.save", refuse)
        elif when == "figures":
            patch.setattr("matplotlib.figure.Figure.savefig", refuse)
        else:
            write = files.write_array if when == "features" else files.write_tensors
            patch.setattr(files, write.__name__, lambda path, *_: _raise_saving(path, full))
        said = refusal_at_end(capsys, tiny_runs.arguments(tmp_path))
    assert "no space left on the disk" in said
    assert main.main(tiny_runs.arguments(tmp_path)) == 0
    assert (tmp_path / "run" / "results.json").exists()


def _raise_saving(path, error):
    with files.saving(path):
        raise error


def test_help_is_a_page(capsys):
    assert main.main(["--help"]) == 0
    page = capsys.readouterr().out
    assert max(len(line) for line in page.splitlines()) <= 120
    for words in ("configs/tinyimagenet.py", "--config.KEY=VALUE", "--workdir", "results.json", "--dry_run"):
        assert words in page


def test_every_key_is_listed(capsys):
    from ssdd_jax import config

    assert main.main(["--help_config"]) == 0
    page = capsys.readouterr().out
    for key in config.flatten(config.default()):
        assert f"--config.{key} = " in page, key
    for line in filter(None, page.splitlines()):
        assert re.match(r"--config\.[\w.]+ = \S|# ", line), line


def test_two_budgets_are_refused(capsys):
    assert main.main(["--config.storage.bytes=4096", "--config.storage.N=50", "--stage=data"]) == 2
    assert "config.storage.N and config.storage.bytes are two budgets: give one" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--dry_run=maybe", "--tensorboard=2", "--dry_run="])
def test_a_switch_is_on_or_off(option, capsys):
    assert main.main([option]) == 2
    said = capsys.readouterr().err
    assert f"cannot read '{option}'" in said and "alone turns it on" in said and said.count("\n") == 1
