"""Faults that befall a whole run: signals, damaged files, full disks, little memory, clocks, other places, others."""

from __future__ import annotations

import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

import ssdd_jax
from experiments.measure import trials
from ssdd_jax.errors import UserError
from ssdd_jax.training import loop

# Limits are set, and the clock is changed, in the process that becomes the run.
LIMITED = """
import os, resource, sys
limit, size, *command = sys.argv[1:]
resource.setrlimit(getattr(resource, limit), (int(size), int(size)))
os.execv(command[0], command)
"""
CLOCK = """
import time
seconds, began = time.time, time.monotonic()
def jumping():
    return seconds() + ({jump} if time.monotonic() > began + {moment} else 0)
time.time, time.time_ns = jumping, lambda: int(jumping() * 1e9)
"""
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


def kill(trial: trials.Trial) -> None:
    """SIGKILL at random moments, up to three times."""
    for _ in range(1 + int(trial.generator.integers(3))):
        trial.stopped_by_kill()
    trial.finish()


def _signalled(trial: trials.Trial, numbers: Sequence[int], statuses: Sequence[int]) -> None:
    moment = trial.moment()
    process = trial.start()
    time.sleep(moment)
    for number in numbers:
        process.send_signal(number)
        time.sleep(float(trial.generator.uniform(0, 2)) if len(numbers) > 1 else 0)
    names = " and ".join(signal.Signals(number).name for number in numbers)
    trial.done.append(f"{names} after {moment:.1f} s")
    answer = trials.end(process, trials.HANGS)
    # A process that has not begun yet ends as any other.
    begun = bool(answer.output or answer.errors)
    trial.expect(answer, statuses if begun else [*statuses, -numbers[0]], names)
    trial.finish()


def terminate(trial: trials.Trial) -> None:
    """SIGTERM at a random moment."""
    _signalled(trial, [signal.SIGTERM], [0])


def interrupt(trial: trials.Trial) -> None:
    """SIGINT at a random moment."""
    _signalled(trial, [signal.SIGINT], [0])


def interrupt_twice(trial: trials.Trial) -> None:
    """SIGINT at a random moment, and again within two seconds."""
    _signalled(trial, [signal.SIGINT, signal.SIGINT], [0, 130, -signal.SIGINT])


def full_disk(trial: trials.Trial) -> None:
    """No file may grow beyond a random size."""
    size = int(np.exp(trial.generator.uniform(np.log(100), np.log(1e6))))
    answer = trials.end(trial.start(before=[sys.executable, "-c", LIMITED, "RLIMIT_FSIZE", str(size)]), trials.PATIENCE)
    trial.done.append(f"files of {size:,} bytes at most")
    trial.expect(answer, [0, 2], "the full disk")
    trial.finish()


def little_memory(trial: trials.Trial) -> None:
    """A random limit of the address space. Libraries of C++ may abort, as if they were killed."""
    size = int(trial.memory * trial.generator.uniform(0.3, 1))
    answer = trials.end(trial.start(before=[sys.executable, "-c", LIMITED, "RLIMIT_AS", str(size)]), trials.PATIENCE)
    trial.done.append(f"{size >> 20} MB of address space")
    trial.expect(answer, [0, 2, -signal.SIGABRT, -signal.SIGSEGV], "little memory")
    trial.finish()


def clock(trial: trials.Trial) -> None:
    """A clock that jumps by an hour or a year at a random moment, before a kill and again after it."""
    folder = trial.run.with_suffix(".clock")
    folder.mkdir()
    jump = float(trial.generator.choice([3600, -3600, 3e7, -3e7]))
    (folder / "sitecustomize.py").write_text(CLOCK.format(jump=jump, moment=trial.moment()))
    moment = trial.moment()
    process = trial.start(path=str(folder))
    time.sleep(moment)
    process.kill()
    trials.end(process, trials.PATIENCE)
    trial.done.append(f"a clock that jumps by {jump:.0f} s, killed after {moment:.1f} s")
    trial.expect(trials.end(trial.start(path=str(folder)), trials.PATIENCE), [0], "a jumping clock")
    trial.compare()
    shutil.rmtree(folder)


def moved(trial: trials.Trial) -> None:
    """A halted run that is continued in another place."""
    trial.stopped_by_kill()
    if trial.run.exists():
        trial.run = trial.run.rename(trial.run.with_name(trial.run.name + " moved"))
    trial.finish()


def copied(trial: trials.Trial) -> None:
    """A halted run whose copy is continued too."""
    trial.stopped_by_kill()
    copy = trial.run.with_name(trial.run.name + " copy")
    if trial.run.exists():
        shutil.copytree(trial.run, copy)
    trial.finish(copy)
    trial.finish()


def opened_twice(trial: trials.Trial) -> None:
    """A second process in the same folder, at a random moment: one of the two is refused, or both end well."""
    moment = trial.moment()
    first = trial.start()
    time.sleep(moment)
    second = trial.start()
    trial.done.append(f"a second one after {moment:.1f} s")
    answers = [trials.end(second, trials.PATIENCE), trials.end(first, trials.PATIENCE)]
    for answer in answers:
        trial.expect(answer, [0, 2], "one of two")
    if [answer.status for answer in answers] == [2, 2]:
        trial.findings.append("both of two were refused")
    trial.finish()


def read_only(trial: trials.Trial) -> None:
    """A folder that cannot be written to."""
    trial.stopped_by_kill()
    trial.run.mkdir(exist_ok=True)
    before = ["unshare", "-rm", "sh", "-c", READ_ONLY, "sh", str(trial.run)]
    if shutil.which("unshare") is None or subprocess.run([*before, "true"], capture_output=True).returncode:
        raise trials.NotPossible("this user cannot mount a folder as read-only")
    trial.expect(trials.end(trial.start(before=before), trials.PATIENCE), [2], "a read-only folder")
    trial.finish()


def damaged_file(trial: trials.Trial) -> None:
    """A damaged file of a halted or finished run: refused, and the run goes on when it is put back; or made again."""
    if trial.generator.integers(3):
        trial.stopped_by_kill()
    else:
        trials.end(trial.start(), trials.PATIENCE)
        trial.done.append("finished")
    below = sorted(file for file in trial.run.rglob("*") if file.is_file() and file.stat().st_size)
    if not below:
        return trial.finish()
    file = below[trial.generator.integers(len(below))]
    content = file.read_bytes()
    name = list(DAMAGE)[trial.generator.integers(len(DAMAGE))]
    trial.done.append(f"{file.relative_to(trial.run)}: {name}")
    DAMAGE[name](trial.generator, file)
    answer = trials.end(trial.start(), trials.PATIENCE)
    trial.expect(answer, [0, 2], f"{file.relative_to(trial.run)}: {name}")
    if answer.status == 0:
        return trial.compare()
    if file.is_dir():
        file.rmdir()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    trial.finish()


def _cut(generator: np.random.Generator, file: pathlib.Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: generator.integers(len(content))])


def _zero(generator: np.random.Generator, file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    place = int(generator.integers(len(content)))
    content[place : place + 512] = bytes(len(content[place : place + 512]))
    file.write_bytes(content)


def _flip(generator: np.random.Generator, file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
    file.write_bytes(content)


def _remove(generator: np.random.Generator, file: pathlib.Path) -> None:
    file.unlink()


def _unreadable(generator: np.random.Generator, file: pathlib.Path) -> None:
    """Put a folder in the file's place, which nobody can read as a file, not even root."""
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, Callable[[np.random.Generator, pathlib.Path], None]] = {
    "cut off": _cut,
    "zeroed": _zero,
    "one bit flipped": _flip,
    "missing": _remove,
    "unreadable": _unreadable,
}


def one_of_several_processes(trial: trials.Trial) -> None:
    """Two or four processes of one run, of which one is killed: the others end, and one alone goes on.

    Another number of devices does not promise the same bits.
    """
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=1"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    count = int(trial.generator.choice([2, 4]))
    hosts = [f"--config.devices.hosts=localhost:{port},{count},{number}" for number in range(count)]
    processes = [trial.start(host, XLA_FLAGS=flags) for host in hosts]
    # Processes that have not met yet wait for each other for minutes, as those of hosts that start one by one have to.
    moment = max(8.0, trial.moment())
    time.sleep(moment)
    victim = int(trial.generator.integers(count))
    processes[victim].kill()
    trial.done.append(f"process {victim} of {count} killed after {moment:.1f} s")
    for number in [number for number in range(count) if number != victim]:
        trial.expect(
            trials.end(processes[number], trials.HANGS), [0, 2, -signal.SIGABRT], f"process {number} of {count}"
        )
    trials.end(processes[victim], trials.PATIENCE)
    trial.expect(trials.end(trial.start(), trials.PATIENCE), [0], "one process alone")
    try:
        ssdd_jax.load(trial.run / "distilled").pairs()
    except UserError as error:
        trial.findings.append(f"one process alone finished, but {error}")


def ten_share(trial: trials.Trial) -> None:
    """Ten runs with one shared folder, of which one is killed: the others make each product once, and end as alone."""
    shared = trial.run.with_name(trial.run.name + " shared")
    runs = [trial.run.with_name(f"{trial.run.name} {number} of 10") for number in range(10)]
    processes = [trial.start(f"--shared={shared}", f"--workdir={run}") for run in runs]
    moment, victim = trial.moment(), int(trial.generator.integers(10))
    time.sleep(moment)
    processes[victim].kill()
    trial.done.append(f"{victim + 1} of ten killed after {moment:.1f} s")
    trials.end(processes[victim], trials.PATIENCE)
    for number in [number for number in range(10) if number != victim]:
        trial.expect(trials.end(processes[number], trials.PATIENCE), [0], f"run {number + 1} of ten")
        trial.compare(runs[number])
    trained = [
        line["step"] for run in runs for line in loop.read_metrics(run / "metrics.jsonl") if line["stage"] == "teacher"
    ]
    if len(set(trained)) != len(trained) and not (runs[victim] / "metrics.jsonl").exists():
        trial.findings.append(f"the teacher was trained more than once: steps {trained}")
    trial.expect(
        trials.end(trial.start(f"--shared={shared}", f"--workdir={runs[victim]}"), trials.PATIENCE),
        [0],
        "the killed one",
    )
    trial.compare(runs[victim])


def five_evaluate(trial: trials.Trial) -> None:
    """Five evaluations of one set with one folder, of which one is killed: refused, or the same values."""
    run = trial.base / "undisturbed" / f"{trial.method}-second"
    line = [sys.executable, "-m", "ssdd_jax.evaluate", f"--set={run / 'distilled'}", "--protocol=linear,feature_r2"]
    line += ["--models=convnet_4_8_bn", "--seeds=2", "--steps=5", "--full_steps=3"]
    line += ["--weight_decays=1e-3", f"--workdir={trial.run}"]
    processes = [trials.start(line, trial.base) for _ in range(5)]
    moment, victim = trial.moment(), int(trial.generator.integers(5))
    time.sleep(moment)
    processes[victim].kill()
    trial.done.append(f"{victim + 1} of five killed after {moment:.1f} s")
    answers = [trials.end(process, trials.PATIENCE) for process in processes]
    answers[victim] = trials.end(trials.start(line, trial.base), trials.PATIENCE)
    tables = set()
    for number, answer in enumerate(answers):
        # One at a time uses a folder: the others are refused.
        trial.expect(answer, [0] if number == victim else [0, 2], f"evaluation {number + 1} of five")
        if answer.status != 0:
            continue
        tables.add("\n".join(row for row in answer.output.splitlines() if row.startswith("|")))
    if len(tables) > 1:
        trial.findings.append("five evaluations of one set differ")


FAULTS: dict[str, Callable[[trials.Trial], None]] = {
    "SIGKILL": kill,
    "SIGTERM": terminate,
    "SIGINT": interrupt,
    "SIGINT twice": interrupt_twice,
    "a full disk": full_disk,
    "little memory": little_memory,
    "a damaged file": damaged_file,
    "a clock that jumps": clock,
    "a moved run": moved,
    "a copied run": copied,
    "two at once": opened_twice,
    "a read-only folder": read_only,
    "one of several processes killed": one_of_several_processes,
    "ten with one shared folder": ten_share,
    "five evaluations at once": five_evaluate,
}
# How often each is drawn; once in all, unless it is named here.
WEIGHTS: dict[str, float] = {"SIGKILL": 4, "a damaged file": 6, "a full disk": 3, "SIGTERM": 2, "SIGINT": 2}
WEIGHTS |= {"ten with one shared folder": 0.3, "five evaluations at once": 0.3, "one of several processes killed": 0.5}
