"""Several processes on this machine, as hosts would be: the losses of one, one stop and one end for all, and kills."""

import fcntl
import os
import random
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny_runs

from ssdd_jax import main
from ssdd_jax.training import loop

STEPS = 40
# Up to which rounding has not grown.
ALIKE = 30
# The regression is well-posed, so that what is compared is not how it magnifies rounding.
CHANGES = {
    "distill__steps": STEPS,
    "distill__steps_per_call": 1,  # so that the signal comes before the last of them
    "distill__ridge_scale": 1e-2,
    "distill__learning_rate": 1e-3,
    "pool__models_per_step": 2,
    "teacher__epochs": 1,
    "teacher__warmup_epochs": 0,
    "evaluate__entries": "('distilled',)",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    tiny_runs.write_data(path)
    return path


def command(folder, workdir, *last, edition="boost"):
    return [*tiny_runs.taught(folder, edition, workdir, **CHANGES)[:-1], *last]


FLAGS = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"  # the last count holds


def hosts(count):
    """The values of `devices.hosts` of several processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [f"localhost:{port},{count},{i}" for i in range(count)]


def start_several(count, folder, workdir, *last, edition="boost"):
    """Processes of one run, with a device each."""
    lines = [
        command(folder, workdir, f"--config.devices.hosts={host}", *last, edition=edition) for host in hosts(count)
    ]
    return [tiny_runs.start(line, folder, XLA_FLAGS=FLAGS) for line in lines]


def start_two(folder, workdir, *last):
    return start_several(2, folder, workdir, *last)


def ends(processes):
    """What both have printed, and their statuses."""
    try:
        said = [process.communicate(timeout=tiny_runs.TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return said, [process.returncode for process in processes]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(folder):
    """A run that is stopped in one of two, and continued by two, and one that one process makes alone."""
    processes = start_two(folder, "two")
    tiny_runs.wait_for_step(folder / "two", 5, processes[0])
    tiny_runs.wait_until(lambda: '"distill"' in (folder / "two" / "metrics.jsonl").read_text(), processes[0])
    processes[1].send_signal(signal.SIGTERM)
    said, statuses = ends(processes)
    assert statuses == [0, 0], said
    lines = [err.splitlines()[-1] for _, err in said]
    assert lines[0] == lines[1] and "ssdd_jax: distill: stopped at step" in lines[0]
    assert "devices: 2 x cpu in 2 processes, models over 2, real images over 1" in said[0][0]
    assert "distill" not in said[1][0] and "step/s" not in said[1][1]  # the first speaks for both
    assert not (folder / "two" / "distilled").exists()

    said, statuses = ends(start_two(folder, "two"))
    assert statuses == [0, 0], said
    assert (folder / "two" / "results.json").exists() and "| distilled |" in said[0][0]
    assert "| distilled |" not in said[1][0]

    assert main.main(command(folder, "one", "--stage=distill")) == 0
    two, one = (loop.read_metrics(folder / name / "metrics.jsonl") for name in ("two", "one"))
    assert [(line["stage"], line["step"]) for line in two] == [(line["stage"], line["step"]) for line in one]
    assert {line["stage"] for line in one} == {"teacher", "distill"} and one[-1]["step"] == STEPS
    for found, expected in zip(two, one, strict=True):
        if found["stage"] == "distill" and found["step"] > ALIKE:
            break
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-3)
    np.testing.assert_allclose(two[0]["loss"], one[0]["loss"], rtol=1e-5)  # the teacher, before rounding grows


@pytest.mark.medium
def test_a_mistake_ends_both(folder):
    """Also one that only the first of them can see: its work dir is taken."""
    (folder / "taken").mkdir()
    with open(folder / "taken" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said, statuses = ends(start_two(folder, "taken"))
    assert statuses == [2, 2], said
    # The second says it by itself, or repeats the line of the first.
    assert "another run is using" in said[0][1]
    assert "another process could not go on" in said[1][1] or "another run is using" in said[1][1]


ONE_FAILS = """
import sys
from ssdd_jax.cli import console
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import devices

def work():
    devices.join(sys.argv[1])
    devices.any_process(False)
    if sys.argv[1].endswith("," + sys.argv[2]):
        raise UserError("the disk of this host is full")
    devices.any_process(False)

status = console.answer(work, memory="")
devices.leave(status)
sys.exit(status)
"""


@pytest.mark.medium
@pytest.mark.parametrize(("count", "failing"), [(2, 0), (2, 1), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_an_error_of_one_ends_the_others_with_its_line(count, failing):
    """While they wait for it in a computation, which would never end."""
    environment = os.environ | {"XLA_FLAGS": FLAGS, "PYTHONPATH": str(tiny_runs.ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_FAILS, host, str(failing)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for host in hosts(count)
    ]  # fmt: skip
    said, statuses = ends(processes)
    assert statuses == [2] * count, said
    line = "ssdd_jax: the disk of this host is full"
    for index, (_, err) in enumerate(said):
        assert (line if index == failing else f"{line} (process {failing})") in err.splitlines()


@pytest.mark.slow
def test_a_run_goes_on_after_one_process_was_killed(folder):
    """Any of them, at any step: the other ends by itself, and one process continues from the checkpoint.

    `experiments.torture` does it with more processes, and at any moment.
    """
    count, generator, run = 2, random.Random(), folder / "killed"
    victim, step = generator.randrange(count), generator.randrange(12, 26)
    # KRR-ST, which compiles less: every process compiles for itself.
    processes = start_several(count, folder, run.name, "--stage=distill", edition="krr_st")
    tiny_runs.wait_until(lambda: _steps(run)[-1:] >= [step], processes[0])
    processes[victim].send_signal(signal.SIGKILL)
    said, statuses = ends(processes)
    assert statuses[victim] == -signal.SIGKILL and 0 not in statuses, (victim, step, said)
    saved = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    assert saved >= 10 and saved % 10 == 0 and _steps(run)[-1] < STEPS, (victim, step)
    alone = tiny_runs.start(command(folder, run.name, "--stage=distill", edition="krr_st"), folder, XLA_FLAGS=FLAGS)
    said, statuses = ends([alone])
    assert statuses == [0] and f"| {saved}/{STEPS} " in said[0][1], (victim, step, said)
    assert _steps(run) == list(range(1, STEPS + 1))


def _steps(run):
    """Steps of the distillation in the metrics of a run."""
    path = run / "metrics.jsonl"
    return [line["step"] for line in loop.read_metrics(path) if line["stage"] == "distill"] if path.exists() else []
