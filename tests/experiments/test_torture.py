"""The command that runs methods under faults: what it draws, what it takes for a finding, and one real kill."""

import json
import re

import numpy as np
import pytest

from experiments import endurance, torture
from experiments.measure import faults, trials
from ssdd_jax.errors import UserError


def test_a_number_stands_for_its_trial():
    options = torture.parse(["--seed=3"])
    drawn = [torture.draw(options, number)[:2] for number in range(200)]
    assert drawn == [torture.draw(options, number)[:2] for number in range(200)]
    assert {fault for _, fault in drawn} == set(faults.FAULTS) and len({method for method, _ in drawn}) > 5
    assert drawn != [torture.draw(options._replace(seed=4), number)[:2] for number in range(200)]
    assert set(faults.WEIGHTS) < set(faults.FAULTS)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--minutes=a", "cannot read"),
        ("--faults=flood", "unknown fault 'flood'"),
        ("--methods=mine", "unknown method 'mine'"),
    ],
)
def test_mistakes(argument, words, capsys):
    assert torture.main([argument]) == 2
    assert words in capsys.readouterr().err


@pytest.fixture
def trial(tmp_path):
    folder = tmp_path / "undisturbed"
    folder.mkdir()
    content = {"seconds": 1.0, "memory": 1, "artefacts": {"distilled/set.json": "x"}}
    (folder / "boost.json").write_text(json.dumps(content))
    return trials.Trial("boost", tmp_path, tmp_path / "trial", np.random.default_rng(0))


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        (trials.Answer(0, "", ""), ""),
        (trials.Answer(2, "", "ssdd_jax: the disk is full\n"), ""),
        (trials.Answer(None, "", ""), "still running"),
        (trials.Answer(1, "", 'Traceback\n File "ssdd_jax/x.py"\nKeyError: 1'), "a traceback; KeyError: 1"),
        (trials.Answer(-2, "", "Traceback\n ssdd_jax/__init__.py, in _get_module_details\nKeyboardInterrupt\n"), ""),
        (trials.Answer(-2, "", "Traceback\n ssdd_jax/main.py, in _run\nKeyboardInterrupt\n"), "a traceback"),
        (trials.Answer(1, "", "gone"), "status 1; gone"),
        (trials.Answer(2, "", "Killed"), "status 2 without a line"),
    ],
)
def test_what_is_a_finding(trial, answer, finding):
    trial.expect(answer, [0, 2], "it")
    assert len(trial.findings) == bool(finding) and finding in "".join(trial.findings)


def test_other_artefacts_are_a_finding(trial):
    trial.compare()
    assert "distilled/set.json" in trial.findings[0]


@pytest.mark.slow
def test_a_killed_run_ends_as_promised(tmp_path, capsys):
    line = ["--methods=random", "--faults=SIGKILL", "--only=0", f"--workdir={tmp_path}"]
    assert torture.main(line) == 0, capsys.readouterr()
    (found,) = json.loads((tmp_path / "torture.json").read_text())["trials"]
    assert re.match(r"killed after \d+\.\d s", found["done"][0]) and not found["findings"]
    assert "| SIGKILL | 1 | 1 | 0 |" in (tmp_path / "torture.md").read_text()
    assert not (tmp_path / "trial-0").exists()


def test_growth_is_the_slope():
    samples = [endurance.Sample(100 * k, 10**9 + 300 * k, 5) for k in range(100)]
    assert endurance.growth(samples) == pytest.approx(30_000)
    # What the allocator adds once is none, and files of a checkpoint that is just written are not left open.
    once = [
        sample._replace(memory=sample.memory + (3 << 20) * (k > 60), files=5 + k % 9)
        for k, sample in enumerate(samples)
    ]
    assert endurance.growth(once) == pytest.approx(30_000) and endurance.open_files(once) == (5, 5)
    assert endurance.open_files([sample._replace(files=5 + k // 10) for k, sample in enumerate(samples)]) == (7, 13)
    # The last look of a short run may see a file that is just written.
    short = [sample._replace(files=4 + 2 * (k == 11)) for k, sample in enumerate(samples[:12])]
    assert endurance.open_files(short) == (4, 4)
    with pytest.raises(UserError, match="at least"):
        endurance.parse(["--steps=10"])


@pytest.mark.slow
def test_endurance_in_small(tmp_path, capsys):
    line = ["--steps=600", "--restarts=1", "--lines=5000", f"--workdir={tmp_path}"]
    status = endurance.main(line)
    found = json.loads((tmp_path / "endurance.json").read_text())
    # Too few steps for a slope; everything else is as in long runs.
    assert not [words for words in found["findings"] if "memory grows" not in words], (status, capsys.readouterr())
    assert len(found["checkpoints"]) == 1 and found["report"]["lines"] == 5000 and found["report"]["page"] < 10**6
