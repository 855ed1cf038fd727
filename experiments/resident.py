"""Measure the resident memory of a run by stage, and its growth with the steps of the distillation.

    python -m experiments.resident --workdir=runs/resident --output=resident.json -- --config=configs/digits.py

Arguments after `--` are passed to `python -m ssdd_jax.main`, whose process is sampled every half second. The growth is
the slope of a line through memory against steps, over the second half of the distillation's steps. Linux only.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ssdd_jax.training import loop

SECONDS = 0.5


class Sample(NamedTuple):
    """Sample of the process: the stage that wrote metrics last, its completed steps, and the resident megabytes."""

    stage: str
    step: int
    megabytes: float


def watch(arguments: Sequence[str], workdir: pathlib.Path) -> tuple[list[Sample], float]:
    """Run the command; returns the samples, and the process's peak memory as reported by the system."""
    samples: list[Sample] = []
    highest = 0.0
    process = subprocess.Popen([sys.executable, "-m", "ssdd_jax.main", f"--workdir={workdir}", *arguments])
    while process.poll() is None:
        memory = _resident(process.pid)
        if memory is not None:
            lines = loop.read_metrics(workdir / "metrics.jsonl")
            last: dict[str, Any] = lines[-1] if lines else {"stage": "start", "step": 0}
            samples.append(Sample(last["stage"], last["step"], memory["VmRSS"]))
            highest = memory["VmHWM"]
        time.sleep(SECONDS)
    if process.returncode:
        raise SystemExit(process.returncode)
    return samples, highest


def _resident(pid: int) -> dict[str, float] | None:
    """Read current and peak megabytes by name; None if the process has just ended."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    sizes = {line.split(":")[0]: float(line.split()[1]) / 1000 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return sizes if len(sizes) == 2 else None


def report(samples: Sequence[Sample], highest: float) -> dict[str, Any]:
    """Report the peak, the peak after each stage's first metrics, and the growth over the distillation."""
    stages = {name: max(s.megabytes for s in samples if s.stage == name) for name in {s.stage for s in samples}}
    steps = np.array([(s.step, s.megabytes) for s in samples if s.stage == "distill"])
    later = steps[steps[:, 0] >= steps[:, 0].max() / 2] if len(steps) else steps
    # Samples after the last step belong to the next stages, which have not logged metrics yet.
    later = later[later[:, 0] < steps[:, 0].max()] if len(later) else later
    growth = None
    if len(set(later[:, 0])) > 2:
        growth = {
            "from_step": int(later[0, 0]),
            "to_step": int(later[-1, 0]),
            "megabytes_at_first": float(later[0, 1]),
            "megabytes_at_last": float(later[-1, 1]),
            "megabytes_per_1000_steps": float(1000 * np.polyfit(later[:, 0], later[:, 1], 1)[0]),
        }
    return {"highest_megabytes": highest, "highest_by_stage": stages, "distillation": growth}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run and sample the command, print the report, write it if `--output` is set, and return it."""
    parser = argparse.ArgumentParser(prog="python -m experiments.resident", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, help="write the report here, as JSON")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a new folder for the run")
    parser.add_argument("given", nargs="*", help="after --: arguments for python -m ssdd_jax.main")
    options = parser.parse_args(arguments)
    result = report(*watch(options.given, options.workdir)) | {"arguments": options.given}
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
