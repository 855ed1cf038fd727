"""The command `python -m ssdd_jax.evaluate`, and how it finds sets, their source, and targets."""

import json
import re

import numpy as np
import pytest
import tiny_runs
from helpers import normal

from ssdd_jax import data, distilled, formats, main
from ssdd_jax.data import preprocess
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate import __main__ as command
from ssdd_jax.evaluate import extraction, options, sources, training

pytestmark = pytest.mark.slow

FAST = [
    "--edition=digits",
    "--models=convnet_4_8_bn",
    "--steps=2",
    "--full_steps=1",
    "--weight_decays=1e-3",
    "--seeds=1",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a teacher of its own in a shared folder, and a random subset as its set."""
    folder = tiny_runs.with_teacher(tmp_path_factory.mktemp("command"))
    assert main.main([*tiny_runs.taught(folder, "random"), "--stage=approximate"]) == 0
    return folder


def shared(run):
    return f"--shared={run / 'shared'}"


def test_the_whole_command(run, tmp_path, capsys):
    line = [
        f"--set={run / 'random' / 'distilled'}",
        shared(run),
        f"--workdir={tmp_path}",
        *FAST,
        "--protocol=linear,knn",
    ]
    assert command.main(line) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "evaluation.json").read_text())
    words = (tmp_path / "evaluation.md").read_text()
    assert words in out and (tmp_path / "evaluation.png").stat().st_size > 5000
    entries = {row["entry"] for row in result["rows"]}
    assert entries == {"distilled", "random_real", "random_init", "full_data", "teacher", "chance"}
    assert result["targets"] == [f"npz:{run / 'images.npz'}"] and result["settings"]["steps"] == 2
    # One more target, another data set, and a set from outside beside the run's own.
    exported = tmp_path / "outside"
    formats.write(formats.read(run / "random" / "distilled"), exported, "npz")
    line = [
        f"--set=mine={run / 'random' / 'distilled'},theirs={exported / 'pairs.npz'}", *line[1:],
        f"--targets=npz:{run / 'images.npz'},digits",
    ]  # fmt: skip
    assert command.main(line) == 0
    rows = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    values = {
        row["entry"]: row["values"] for row in rows if row["target"].startswith("npz") and row["measure"] == "knn"
    }
    assert values["mine"] == values["theirs"]  # the same pairs
    assert {row["target"] for row in rows} == {f"npz:{run / 'images.npz'}", "digits"}


def test_what_the_run_has_measured_is_not_measured_again(run, tmp_path, monkeypatch):
    assert main.main(tiny_runs.taught(run, "random")) == 0
    own = json.loads((run / "random" / "results.json").read_text())
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("a network is trained again"))
    line = [
        f"--set={run / 'random' / 'distilled'}", shared(run), f"--workdir={tmp_path}", "--models=convnet_4_8_bn",
        "--edition=digits", "--steps=5", "--full_steps=3", "--weight_decays=1e-3", "--seeds=2", "--protocol=linear",
    ]  # fmt: skip
    assert command.main(line) == 0
    rows = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert {row["entry"]: row["values"] for row in rows if row["entry"] != "chance"} == {
        entry: value["values"] for entry, value in own["linear"].items()
    }


def test_a_run_s_teacher_is_the_network_that_made_its_features(run):
    source = sources.of_run(run / "random", shared=run / "shared")
    mean, std = preprocess.channel_moments(source.dataset.train_images)
    found = extraction.extract(*source.teacher, source.dataset.test_images, mean=mean, std=std)
    np.testing.assert_allclose(found, source.features.test, rtol=1e-3, atol=1e-4)


def test_a_source_may_be_data_with_features(run):
    found = sources.of_features(f"npz:{run / 'images.npz'}", run / "features.npz", image_shape=(8, 8, 1))
    assert found.features.train.shape == (120, 12) and found.teacher is None
    assert len(found.dataset.train_images) == 120


def test_a_source_that_is_not_square_is_read_as_it_is(tmp_path):
    images = np.arange(9 * 8 * 4, dtype=np.uint8).reshape(9, 4, 8, 1)
    np.savez(tmp_path / "images.npz", train_images=images[:6], test_images=images[6:])
    np.savez(tmp_path / "features.npz", train=np.eye(6, dtype=np.float32), test=np.eye(3, 6, dtype=np.float32))
    found = sources.of_features(f"npz:{tmp_path / 'images.npz'}", tmp_path / "features.npz", image_shape=(4, 8, 1))
    np.testing.assert_array_equal(found.dataset.train_images, images[:6])


def test_names_of_sets(tmp_path):
    one = distilled.from_pairs(normal(0, 2, 8, 8, 1), normal(1, 2, 3), preprocess.Preprocessing(*[normal(2, 1)] * 4))
    assert list(sources.name_sets(one)) == ["distilled"] == list(sources.name_sets(tmp_path))
    assert list(sources.name_sets([tmp_path / "a" / "distilled", tmp_path / "b.npz"])) == ["a", "b"]
    assert list(sources.name_sets({"x": one, "y": tmp_path})) == ["x", "y"]
    with pytest.raises(UserError, match="two sets are called a: name them"):
        sources.name_sets([tmp_path / "a", tmp_path / "b" / "a"])
    with pytest.raises(UserError, match="no distilled set is given"):
        sources.name_sets([])


def test_a_target_of_the_source_s_name_is_the_source(run):
    source = sources.of_run(run / "random", shared=run / "shared")
    found = sources.target(f"npz:{run / 'images.npz'}", source, image_shape=(8, 8, 1))
    assert found.dataset.train_images is source.dataset.train_images or np.shares_memory(
        found.dataset.train_images, source.dataset.train_images
    )
    again = sources.target(f"npz:{run / 'images.npz'}", None, image_shape=(8, 8, 1))
    assert again.mark == found.mark
    labels = source.dataset.train_labels.copy()
    labels[0] = 1 - min(labels[0], 1)
    other = data.Dataset("other", source.dataset.train_images, labels, source.dataset.test_images,
                         source.dataset.test_labels, source.dataset.class_names)  # fmt: skip
    assert sources.target(other, None, image_shape=(8, 8, 1)).mark != found.mark


def test_what_a_command_line_says():
    assert command.parse(["--set=runs/rate=0.1/distilled"]) == {"sets": ["runs/rate=0.1/distilled"]}
    found = command.parse(["--set=a=x,y", "--models=convnet,vgg11", "--protocol=linear", "--seeds=5", "--epochs=7",
                           "--own_rate=True", "--references=none", "--learning_rate=1e-2", "--data_dir=d"])  # fmt: skip
    assert found == {
        "sets": {"a": "x", "y": "y"},
        "models": ["convnet", "vgg11"],
        "protocols": ["linear"],
        "seeds": 5,
        "epochs": 7,
        "own_rate": True,
        "references": [],
        "learning_rate": 0.01,
        "data_dir": "d",
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--set=nowhere"], "nowhere"),
        (["--set=A=x,A=y"], "two sets have one name"),
        (["--seeds=0"], "--seeds=0 is out of range"),
        (["--modles=convnet"], "unknown option '--modles=convnet': did you mean --models?"),
        (["convnet"], "unknown option 'convnet'"),
        (["--models"], "--models has no value"),
        (["--models="], "--models has no value"),
        (["--epochs=many"], "--epochs=many is not an int"),
        (["--own_rate=2"], "--own_rate=2 is not a bool"),
        (["--set=RUN", "--protocol=liner"], "holds no features of the teacher: if the run had a --shared folder"),
        (["--set=RUN", "SHARED", "--protocol=liner"], "unknown protocol 'liner'"),
        (["--set=RUN", "SHARED", "--targets=cifar10", "--data_dir=nowhere"], "target cifar10: "),
        (["--set=RUN", "--source=nowhere"], "nowhere is not a run's folder"),
    ],
)
def test_refuses_in_one_line(line, words, run, tmp_path, capsys):
    line = [part.replace("RUN", str(run / "random" / "distilled")).replace("SHARED", shared(run)) for part in line]
    assert command.main([*line, f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ssdd_jax: ") and error.count("\n") == 1
    assert words in error


def test_help_lists_every_setting_and_its_source(capsys):
    assert command.main(["--help"]) == 0
    page = capsys.readouterr().out
    for name, default in options.Options._field_defaults.items():
        assert f"--{name}=" in page
        if isinstance(default, str | bool):
            continue
        shown = re.search(rf"--{name}=(\S*)", page)[1].split(",")
        assert [float(value) for value in shown] == list(default if isinstance(default, tuple) else (default,))
    assert max(map(len, page.splitlines())) <= 140


def test_editions_are_workable():
    for name, edition in options.EDITIONS.items():
        made = options.make(edition, {})
        assert options.for_training(made).pairs[:2] == (made.steps, made.epochs)
        assert options.for_judging(made).tuning.steps == made.finetune_steps, name
    paper = options.make(options.EDITIONS["paper"], {})
    # KRR-ST, test.py and train.py; MKDT, eval.py.
    one = options.for_training(paper._replace(weight_decays=(1e-3,)))
    assert one.pairs == training.Settings() and one.full == training.Settings(20_000, rates=((0.1, 1e-4),), cosine=True)
    mkdt = options.for_training(options.make(options.EDITIONS["mkdt"], {}))
    assert mkdt.pairs.epochs == mkdt.full.epochs == 20 and mkdt.own_rate and not mkdt.full.cosine
    falling = options.for_training(paper._replace(cosine=True))
    assert falling.pairs.cosine and not one.pairs.cosine and falling.full.cosine
    assert mkdt.pairs.rates == mkdt.full.rates == ((0.1, 1e-4),)
    assert options.for_judging(paper).distilling.noise_learning_rate == pytest.approx(1e-3)
