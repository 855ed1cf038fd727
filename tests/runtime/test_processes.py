"""Several processes on this machine, as hosts would be: the losses of one, one stop and one end for all, and kills."""

import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tiny_runs

from ssdd_jax import config, data, main
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
    assert (folder / "two" / "results.json").exists() and "| distilled set |" in said[0][0]
    assert "| distilled set |" not in said[1][0]

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


READS_ITS_OWN = """
import json
import pathlib
import sys

import jax
import numpy as np

from ssdd_jax import config, data
from ssdd_jax.data import encoded, loading
from ssdd_jax.runtime import devices
from ssdd_jax.training import streaming

host, folder = sys.argv[1], pathlib.Path(sys.argv[2])
devices.join(host)
decoded = set()
decode = encoded.decode
encoded.decode = lambda one, *arguments: decoded.add(one) or decode(one, *arguments)

settings = config.default().data
settings.update(name=f"folder:{folder / 'photos'}", cache_dir=str(folder / "cache"), image_size=8, test_fraction=0.25)
loading.decode_together(settings)
count = len(decoded)
dataset = data.load(settings)

mesh = devices.make(1, 0, batches={"distill.batch_size": 8})
rows, read = devices.rows(mesh, 8), []
def take(step):
    chosen = np.random.default_rng(step).permutation(len(dataset.train_images))[:8][rows.own]
    read.append(chosen)
    return streaming.gather(dataset.train_images, chosen)

items = streaming.feed(take, steps=3, rows=rows)(0, 3)
total = jax.jit(lambda batch: batch.astype(np.int32).sum((1, 2, 3, 4)), out_shardings=devices.sharding(mesh))(items)
report = {
    "decoded": count, "own": [rows.own.start, rows.own.stop], "read": sorted({len(one) for one in read}),
    "totals": np.asarray(total.addressable_data(0)).tolist(), "shape": list(items.shape),
    "files": sorted(path.name for path in (folder / "cache").glob("*/*.npy")),
}
print(json.dumps(report))
devices.leave(0)
"""


@pytest.mark.medium
def test_each_process_decodes_and_reads_its_own_rows(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(16):
        (tmp_path / "photos" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "photos" / f"class{i % 2}" / f"{i}.png")
    environment = os.environ | {"XLA_FLAGS": FLAGS, "PYTHONPATH": str(tiny_runs.ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", READS_ITS_OWN, host, str(tmp_path)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for host in hosts(2)
    ]  # fmt: skip
    said, statuses = ends(processes)
    assert statuses == [0, 0], said
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in said)
    # 12 training and 4 test images, half of each by either process.
    assert [first["decoded"], second["decoded"]] == [8, 8]
    assert [first["own"], second["own"]] == [[0, 4], [4, 8]] and first["read"] == second["read"] == [4]
    assert first["files"] == ["test_images.npy", "train_images.npy"]
    settings = config.default().data
    settings.update(name=f"folder:{tmp_path / 'photos'}", image_size=8, test_fraction=0.25)
    images = data.load(settings).train_images
    orders = [np.random.default_rng(step).permutation(len(images))[:8] for step in range(3)]
    assert first["shape"] == [3, 8, 8, 8, 3]
    assert first["totals"] == second["totals"] == [int(images[order].sum()) for order in orders]


@pytest.mark.slow
def test_a_run_goes_on_after_one_process_was_killed(folder):
    """Any of them, at any step: the other ends by itself, and one process continues from the checkpoint.

    `experiments.torture` does it with more processes, and at any moment.
    """
    count, generator, run = 2, random.Random(), folder / "killed"
    # A checkpoint is written beside the steps, and complete when the next one begins, after twenty.
    victim, step = generator.randrange(count), generator.randrange(21, 26)
    # Enough steps for the signal to come before the last of them, however busy the machine is.
    steps = 150
    last = ["--stage=distill", f"--config.distill.steps={steps}"]
    # KRR-ST, which compiles less: every process compiles for itself.
    processes = start_several(count, folder, run.name, *last, edition="krr_st")
    tiny_runs.wait_until(lambda: _steps(run)[-1:] >= [step] and _saved(run), processes[0])
    processes[victim].send_signal(signal.SIGKILL)
    said, statuses = ends(processes)
    assert statuses[victim] == -signal.SIGKILL and 0 not in statuses, (victim, step, said)
    saved = max(_saved(run))
    assert saved >= 10 and saved % 10 == 0 and _steps(run)[-1] < steps, (victim, step)
    alone = tiny_runs.start(command(folder, run.name, *last, edition="krr_st"), folder, XLA_FLAGS=FLAGS)
    said, statuses = ends([alone])
    assert statuses == [0] and f"| {saved}/{steps} " in said[0][1], (victim, step, said)
    assert _steps(run) == list(range(1, steps + 1))


def _saved(run):
    """Steps of the complete checkpoints of a run."""
    return [int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdigit()]


def _steps(run):
    """Steps of the distillation in the metrics of a run."""
    path = run / "metrics.jsonl"
    return [line["step"] for line in loop.read_metrics(path) if line["stage"] == "distill"] if path.exists() else []
