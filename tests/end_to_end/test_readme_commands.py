"""Every command of the README: typed here, or in the list of those that take too long."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import tiny_runs
from PIL import Image
from tiny_runs import ROOT, TIMEOUT

from ssdd_jax import main
from ssdd_jax.cli import arguments as commandline
from ssdd_jax.evaluate import __main__ as evaluate

README = (ROOT / "README.md").read_text()

MINUTES, HOURS = "minutes on two cores", "hours on an accelerator"
DOWNLOADED = "needs images that are not in the repository"
# What is not typed here, and why; the first two are what `.ci/run` types.
TOO_LONG = {
    "python -m pip install . && python -m ssdd_jax.main": MINUTES,
    "python -m pip install '.[test]' && python -m pytest -n 2 --dist loadfile": "runs this test",
    "python -m ssdd_jax.main": MINUTES,
    "python -m ssdd_jax.main --dry_run": "a minute",  # `tests/test_plan.py`, in small
    "python -m experiments.compare": MINUTES,
    "python -m experiments.compare --config=configs/cifar10.py:cpu --N=50 --seeds=1 --methods=boost,krr_st,random "
    "--config.data.data_dir=DIR": DOWNLOADED,
    "python -m ssdd_jax.main --config=configs/cifar10.py:cpu --config.data.data_dir=DIR": DOWNLOADED,
    "python -m ssdd_jax.main --config=configs/cifar100.py:mkdt --shared=runs/cifar100-shared "
    "--config.data.data_dir=DIR": HOURS,
    "python -m ssdd_jax.main --config=configs/folder.py:PATH": MINUTES,  # `tests/test_folder_config.py`, in small
    "python -m ssdd_jax.main --config=configs/folder.py:PATH --config.teacher.source=FILE": MINUTES,
    "python -m ssdd_jax.main --config=configs/cifar10.py --config.data.data_dir=DIR": HOURS,
    "python -m ssdd_jax.main --config=configs/tinyimagenet.py --config.data.data_dir=tiny-imagenet-200.zip": HOURS,
    "python -m ssdd_jax.main --config=configs/cifar10.py --config.data.name=npz:mine.npz "
    "--config.teacher.features=features.npz": HOURS,
    "python -m ssdd_jax.evaluate": MINUTES,
    "python -m ssdd_jax.evaluate --set=PATH --models=convnet,resnet18,vit_tiny --targets=cifar10,stanford_dogs "
    "--protocol=linear,finetune,few_labels,zero_shot_kd --seeds=5 --data_dir=DIR": HOURS,
    "python -m experiments.benchmark": MINUTES,  # `tests/test_benchmark.py`, in small
    "python -m experiments.benchmark --stages=inner,outer,whole,approximation,evaluation --official=selfsup_dd "
    "--pairs=100,400 --repeats=3": MINUTES,
    "python -m experiments.accelerator": MINUTES,
    "python -m experiments.resident": MINUTES,
}
# What is typed, and what it then says or leaves.
TYPED = {
    "python -m ssdd_jax.report runs/digits runs/digits-krr_st --out=side_by_side.html": "side_by_side.html",
    "python -m ssdd_jax.export --set=PATH --form=krr_st": "krr_st",
    "python -m pydoc ssdd_jax.krr": "predict(",
    "python -m pydoc ssdd_jax.methods.krr_st": "make(",
}


def commands():
    """Lines of the blocks, without what is said beside them, and what stands in backticks."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    lines = [line.split("  #")[0].split(" # ")[0].strip() for line in blocks.splitlines()]
    return {line for line in [*lines, *re.findall(r"`(python -m [^`]+)`", README)] if line}


def test_every_command_is_typed_or_too_long():
    assert commands() == set(TOO_LONG) | set(TYPED)


@pytest.mark.parametrize("command", sorted(c for c in TOO_LONG if c.startswith("python -m ssdd_jax.main")))
def test_the_words_of_a_long_command_are_known(command, tmp_path, monkeypatch):
    (tmp_path / "PATH").mkdir()
    for i in range(30):
        Image.new("RGB", (50, 40)).save(tmp_path / "PATH" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    options = commandline.parse(shlex.split(command)[3:])
    assert options.stage == "report" and options.workdir.parent == pathlib.Path("runs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place with the runs that the commands name, in small."""
    path = tmp_path_factory.mktemp("readme")
    tiny_runs.write_data(path)
    with tiny_runs.quick_compilation():
        for name, method in (("digits", "boost"), ("digits-krr_st", "krr_st")):
            line = tiny_runs.arguments(path, f"runs/{name}", method=method, evaluate__seeds=1)
            assert main.main(line) == 0
    return path


# Those that need no run; of the others the command lines are in `tests/report` and `tests/test_export.py`, too.
ALONE = [command for command in sorted(TYPED) if command.startswith("python -m pydoc")]


@pytest.mark.medium
@pytest.mark.parametrize(
    "command",
    [name if name in ALONE else pytest.param(name, marks=pytest.mark.slow) for name in sorted(TYPED)],
)
def test_typed(command, request, tmp_path):
    folder = tmp_path if command in ALONE else request.getfixturevalue("folder")
    words = shlex.split(command.replace("PATH", "runs/digits/distilled"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr
    assert TYPED[command] in done.stdout + done.stderr


def test_the_long_evaluation_has_these_options():
    lines = [line.split()[3:] for line in TOO_LONG if line.startswith("python -m ssdd_jax.evaluate")]
    assert all(word.split("=")[0] in evaluate.HELP for words in lines for word in words)
