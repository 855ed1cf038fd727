"""Run a small distillation for very many steps, with restarts, and measure whether anything grows.

    python -m experiments.endurance [--steps=100000] [--restarts=50] [--lines=10000000] [--workdir=runs/endurance]

The first half of the steps is one process, whose memory and open files are sampled; the second half is stopped and
killed in turn, so often. Then metrics.jsonl is filled up to a number of lines, and the report of the run is written
again. As promised is: memory that grows by less than 1 MB in 10,000 steps, no more open files at the end than at the
beginning, two checkpoints at most, every step once in metrics.jsonl, and a report within 2 GB. The exit status is 1 if
it is otherwise. Everything is also in endurance.json in the work dir.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.measure import command_line, small_runs, trials
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files
from ssdd_jax.training import loop

# What the command writes to its folder, and replaces.
WRITTEN = {"run", "images.npz", "compiled", "endurance.json"}
USAGE = "--steps=N, --restarts=N, --lines=N and --workdir=DIR are known"
# Steps of a compiled call, which writes a line, and between checkpoints.
PER_CALL, SAVE_EVERY = 20, 500
# What is promised: bytes per 10,000 steps, and bytes of the report.
GROWTH, REPORT = 1 << 20, 2 << 30
# Samples of which at least one is between two files that are opened for a moment.
LOOKS = 10


class Options(NamedTuple):
    """Options of the command: steps in all, restarts, lines of metrics for the report, and folder."""

    steps: int = 100_000
    restarts: int = 50
    lines: int = 10_000_000
    workdir: str = "runs/endurance"


class Sample(NamedTuple):
    """A look at the process: the step in metrics.jsonl, bytes of memory that are its own, and open files."""

    step: int
    memory: int
    files: int


def parse(arguments: Sequence[str]) -> Options:
    """Parse the command line; raises a UserError for every mistake."""
    kinds = {
        "steps": command_line.whole,
        "restarts": command_line.whole,
        "lines": command_line.whole,
        "workdir": command_line.text,
    }
    chosen = Options(**command_line.read(arguments, kinds, USAGE)[0])
    if chosen.steps < 20 * PER_CALL:
        raise UserError(f"--steps must be at least {20 * PER_CALL}")
    return chosen


def look(pid: int, metrics: pathlib.Path) -> Sample | None:
    """Return the step and the size of a process; None if it has ended or no step is written yet."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        opened = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    memory = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")]
    step = _last_step(metrics)
    return Sample(step, memory[0], opened) if memory and step else None


def _last_step(metrics: pathlib.Path) -> int:
    """Return the last step of the distillation that is written, 0 if there is none."""
    if not metrics.exists():
        return 0
    with open(metrics, "rb") as file:
        file.seek(max(0, os.path.getsize(metrics) - 4096))
        for text in reversed(file.read().splitlines()):
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if line["stage"] == "distill":
                return int(line["step"])
    return 0


def growth(samples: Sequence[Sample]) -> float:
    """Return the slope of the memory in bytes per 10,000 steps, after the first fifth of the samples.

    It is the median of the slopes in eight parts: what the allocator adds once, and never again, is no growth.
    """
    later = np.array(samples[len(samples) // 5 :], float)
    parts = [part for part in np.array_split(later, 8) if len(part) > 2]
    return float(np.median([np.polyfit(part[:, 0], part[:, 1], 1)[0] for part in parts]) * 10_000) if parts else 0.0


def open_files(samples: Sequence[Sample]) -> tuple[int, int]:
    """Return the fewest open files in the second and in the last fifth: a checkpoint that is written opens some.

    Both are of `LOOKS` samples at least: in fewer, files that are open for a moment look as if they stayed.
    """
    fifth = len(samples) // 5
    window = max(LOOKS, fifth)
    return min(one.files for one in samples[fifth:][:window]), min(one.files for one in samples[-window:])


def until(step: int, line: Sequence[str], base: pathlib.Path, metrics: pathlib.Path, number: int) -> list[Sample]:
    """Run the command until a step is written, then send it a signal; returns a sample for every half second.

    Raises:
        UserError: If it ends before.
    """
    process = trials.start(line, base)
    samples: list[Sample] = []
    while process.poll() is None:
        sample = look(process.pid, metrics)
        if sample and (not samples or sample.step > samples[-1].step):
            samples.append(sample)
        if sample and sample.step >= step:
            process.send_signal(number)
            break
        time.sleep(0.5)
    answer = trials.end(process, trials.PATIENCE)
    if answer.status not in (0, -signal.SIGKILL):
        raise UserError(f"the run failed before step {step:,}: {answer.errors.strip()[-300:]}")
    return samples


def report_of_many_lines(run: pathlib.Path, lines: int) -> dict[str, float]:
    """Fill metrics.jsonl up to so many lines, and write the report again; returns its seconds, bytes and memory."""
    metrics = run / "metrics.jsonl"
    count = sum(1 for _ in files.json_lines(metrics))
    last = loop.read_metrics(metrics, most=10)[-1]
    step = last["step"]
    with open(metrics, "a") as file:
        for number in range(lines - count):
            file.write(json.dumps(last | {"step": step + number + 1}) + "\n")
    size = metrics.stat().st_size
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "ssdd_jax.report", str(run), f"--out={run / 'again.html'}"])
    peak = 0
    while process.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        found = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")]
        peak = max([peak, *found])
        time.sleep(0.1)
    if process.wait() or not (run / "again.html").exists():
        raise UserError(f"the report of {lines:,} lines was not written")
    seconds = round(time.monotonic() - began, 1)
    return {
        "lines": lines,
        "bytes": size,
        "seconds": seconds,
        "memory": peak,
        "page": (run / "again.html").stat().st_size,
    }


def _checkpoints(run: pathlib.Path) -> int:
    """Count the complete checkpoints of a run."""
    return len([path for path in (run / "checkpoints").iterdir() if path.name.isdigit()])


def endure(options: Options) -> list[str]:
    """Do all of it; returns what is not as promised, and writes endurance.json."""
    base = pathlib.Path(options.workdir).expanduser().absolute()
    if base.exists() and (not base.is_dir() or {path.name for path in base.iterdir()} - WRITTEN):
        raise UserError(f"{base} holds something else: choose an empty or a new --workdir, whose content is replaced")
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    run, metrics = base / "run", base / "run" / "metrics.jsonl"
    small_runs.write_images(base / "images.npz")
    changes = {"distill.steps": options.steps, "distill.steps_per_call": PER_CALL, "distill.save_every": SAVE_EVERY}
    line = [sys.executable, "-m", "ssdd_jax.main", *small_runs.command(base / "images.npz", run, "boost")]
    line += [f"--config.{key}={value}" for key, value in changes.items()]

    half = options.steps // 2
    began = time.monotonic()
    samples = until(half, line, base, metrics, signal.SIGTERM)
    seconds = time.monotonic() - began
    slope, opened, memory = growth(samples), open_files(samples), [sample.memory for sample in samples]
    print(
        f"endurance: {half:,} steps in {seconds:.0f} s, {slope / 2**20:.3f} MB more in 10,000 steps, "
        f"{(max(memory) - memory[0]) / 2**20:.1f} MB in all, {opened[0]} open files, {opened[1]} at the end",
        flush=True,
    )
    checkpoints, tops = [], []
    for number in range(options.restarts):
        step = half + (options.steps - half) * (number + 1) // (options.restarts + 1)
        found = until(step, line, base, metrics, (signal.SIGKILL, signal.SIGTERM)[number % 2])
        tops.append(max(sample.memory for sample in found) if found else 0)
        checkpoints.append(_checkpoints(run))
    answer = trials.end(trials.start(line, base), 10 * trials.PATIENCE)
    if answer.status:
        raise UserError(f"the run did not end after {options.restarts} restarts: {answer.errors.strip()[-300:]}")
    left = _checkpoints(run)
    steps = [line["step"] for line in loop.read_metrics(metrics) if line["stage"] == "distill"]
    size = metrics.stat().st_size
    print(f"endurance: {options.restarts} restarts, at most {max([*checkpoints, 0])} checkpoints, {left} at the end, "
          f"{size:,} bytes of metrics for {options.steps:,} steps", flush=True)  # fmt: skip
    page = report_of_many_lines(run, options.lines)
    print(f"endurance: report of {page['lines']:,} lines ({page['bytes'] / 1e9:.2f} GB) in {page['seconds']:.0f} s "
          f"with {page['memory'] / 1e6:.0f} MB, {page['page']:,} bytes", flush=True)  # fmt: skip
    wrong = [
        *([f"memory grows by {slope / 2**20:.2f} MB in 10,000 steps"] if slope > GROWTH else []),
        *(["open files grow"] if opened[1] > opened[0] else []),
        # The oldest is removed once the next one is complete: a kill in between leaves it, and the next start does not.
        *(["checkpoints pile up"] if left > 2 or max([*checkpoints, 0]) > 3 else []),
        *([] if steps == list(range(PER_CALL, options.steps + 1, PER_CALL)) else ["steps are missing or twice there"]),
        *(["the report takes too much memory"] if page["memory"] > REPORT else []),
    ]
    content = {
        "options": options._asdict(),
        "samples": [sample._asdict() for sample in samples],
        "growth_per_10000_steps": slope,
        "seconds_of_first_half": seconds,
        "memory_after_restarts": tops,
        "checkpoints": checkpoints,
        "metrics_bytes": size,
        "report": page,
        "findings": wrong,
    }
    files.write_json(base / "endurance.json", content)
    return wrong


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    return command_line.run(arguments, __doc__, _endure, memory="--steps", name="endurance")


def _endure(arguments: Sequence[str]) -> list[str]:
    wrong = endure(parse(arguments))
    for line in wrong:
        print(f"endurance: {line}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
