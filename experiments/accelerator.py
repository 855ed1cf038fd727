"""Benchmark one accelerator in one command, within a time limit.

    python -m experiments.accelerator --minutes=9
    python -m experiments.accelerator --quick --output=/tmp/accelerator.json

The paper's sizes for CIFAR-100: N = 100 (M = 400 decoded images in four views), L = 10 models, 1,024 real images per
step, ConvNet 128-256-512; with one and with all models per step, in bfloat16 and float32; compared with PyTorch if it
can use the same device. Further parts: a run of many steps in one call with its extrapolation to 30,000, the stages
around a distillation, and the table of convolutions. Parts that do not fit into the time are skipped, with a note. The
report is written after each part, by default to `experiments/results/accelerator.json` and `.md`.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from experiments import benchmark, convolutions
from experiments.jax_side import loops as jax_loops
from experiments.measure import machine, output, tables

PAPER: dict[str, Any] = {
    "images": 400, "views": 4, "batch": 1024, "pool": 10, "steps": 5, "repeats": 3, "teacher-steps": 3, "run": 600,
}  # fmt: skip
QUICK: dict[str, Any] = {
    "images": 2, "views": 2, "batch": 4, "pool": 2, "steps": 1, "repeats": 1, "teacher-steps": 1, "run": 5, "size": 8,
    "widths": "4", "dim": 8, "product": 64, "teacher-width": 1, "teacher-blocks": 1, "projector": 8, "fit-steps": 3,
}  # fmt: skip
CONVOLUTIONS = {
    "paper": ["--batch=1024", "--models=10"],
    "quick": ["--batch=2", "--models=2", "--widths=4", "--size=8"],
}
# In order of importance, in case the time runs out: accelerators are built for bfloat16.
PRECISIONS = ("bfloat16", "float32")
DEFAULT = pathlib.Path(__file__).parent / "results" / "accelerator.json"
STEPS = 30_000
# A part begins only if at least these seconds are left, and as many as the longest part so far took.
LEAST_SECONDS = 30.0


class Budget:
    """Time limit of the measurement; `notes` lists the skipped parts.

    Args:
        minutes: Limit, counted from now on.
    """

    def __init__(self, minutes: float):
        self.end, self.longest, self.notes = time.monotonic() + 60 * minutes, LEAST_SECONDS, list[str]()

    def left(self) -> float:
        """Return the remaining seconds."""
        return self.end - time.monotonic()

    def spend(self, name: str, part: Callable[[], Any]) -> Any:
        """Run a part and return its result; None, with a note, if there is not enough time or memory."""
        if self.left() < self.longest:
            self.notes.append(f"{name}: left out, {max(0, self.left()):.0f} s were left.")
            return None
        began = time.monotonic()
        print(f"accelerator: {name}, {self.left():.0f} s left", file=sys.stderr, flush=True)
        try:
            return part()
        except RuntimeError as error:
            if not memory_full(error):
                raise
            self.notes.append(f"{name}: left out, the device's memory is full.")
            return None
        finally:
            self.longest = max(self.longest, time.monotonic() - began)


def memory_full(error: RuntimeError) -> bool:
    """Return whether JAX or PyTorch ran out of device memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error)


def that_fit(part: Callable[[int], Any], models: int) -> Any:
    """Run the part with as many models in parallel as fit in the device's memory: all, or half of them, and so on."""
    try:
        return part(models)
    except RuntimeError as error:
        if models == 1 or not memory_full(error):
            raise
    return that_fit(part, models // 2)


def options_for(
    asked: argparse.Namespace, stages: Sequence[str], precision: str, models: int = 1, together: int = 1
) -> argparse.Namespace:
    """Build the benchmark's options at these sizes, with `models` per step, `together` of them in parallel."""
    values = (QUICK if asked.quick else PAPER) | {"models-per-step": models, "vectorize": together}
    values |= {"precision": precision}
    line = [f"--{name}={value}" for name, value in values.items() if name != "run"]
    disabled = [
        flag for flag, active in (("--no-torch", not asked.torch), ("--no-compile", not asked.compile)) if active
    ]
    return benchmark.parse([*line, *disabled, "--no-scan", f"--stages={','.join(stages)}"])


def steps(asked: argparse.Namespace, precision: str, models: int, together: int) -> dict[str, Any]:
    """Benchmark the outer, inner and whole step."""
    return benchmark.measure(options_for(asked, ("inner", "outer", "whole"), precision, models, together))


def around(asked: argparse.Namespace) -> dict[str, Any]:
    """Benchmark the stages around a distillation."""
    return benchmark.measure(options_for(asked, (*benchmark.TEACHER, "approximation", "evaluation"), "float32"))


def run(asked: argparse.Namespace, precision: str, models: int, together: int) -> dict[str, Any]:
    """Time many whole steps in one call, and extrapolate to 30,000."""
    options = options_for(asked, ("whole",), precision, models, together)
    options.steps = -(-(QUICK if asked.quick else PAPER)["run"] // models)
    options = benchmark.sized(options, options.pairs[0])
    timed = jax_loops.loop("whole", jax_loops.make_problem(options), options).timed()
    began = time.perf_counter()
    timed.call()
    seconds = time.perf_counter() - began
    return {
        "precision": precision,
        "models_per_step": models,
        "vectorize": together,
        "steps": timed.steps,
        "seconds": seconds,
        "hours_for_30000": seconds / timed.steps * STEPS / 3600,
        "compile_seconds": timed.compile_seconds,
        "memory_bytes": timed.memory(),
    }


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Run all parts that fit into the time; the report is written after each."""
    budget = Budget(asked.minutes)
    report: dict[str, Any] = {"machine": machine.describe(), "minutes": asked.minutes, "steps": [], "runs": []}
    report |= {"around": None, "convolutions": None, "notes": budget.notes}
    all_models = (QUICK if asked.quick else PAPER)["pool"]
    # Few models per step first: those are the cases that readers ask about first.
    cases = sorted({(1, 1), (all_models, 1), (all_models, all_models)})
    for models, together, precision in [(*case, precision) for case in cases for precision in PRECISIONS]:
        name = f"{precision}, {models} per step, {together} side by side"
        for kind, part in (("steps", steps), ("runs", run)):
            if kind == "steps" and together > 1:
                continue  # the run alone shows whether that is faster
            measurement = functools.partial(that_fit, functools.partial(part, asked, precision, models), together)
            result = budget.spend(f"{kind} in {name}", measurement)
            report[kind] += [result] if result else []
            output.write(asked.output, report, table(report))
    report["around"] = budget.spend("the stages around", lambda: around(asked))
    output.write(asked.output, report, table(report))
    sizes = CONVOLUTIONS["quick" if asked.quick else "paper"]
    # The table has its own time limit: it starts no row after it.
    line = [*sizes, "--repeats=3", f"--minutes={max(0.0, budget.left() / 60 - 0.5)}"]
    report["convolutions"] = budget.spend("convolutions", lambda: convolutions.measure(convolutions.parse(line)))
    report["device_peak_bytes"] = machine.device_peak_bytes()
    output.write(asked.output, report, table(report))
    return report


def table(report: dict[str, Any]) -> str:
    """Format the tables of all parts, each under a heading."""
    parts = ["# One accelerator", tables.machine(report["machine"])]
    if report["runs"]:
        head = [
            "precision",
            "models per step",
            "side by side",
            "steps",
            "s",
            "hours for 30,000",
            "compile s",
            "memory MB",
        ]
        rows = [
            [
                *(str(one[name]) for name in ("precision", "models_per_step", "vectorize", "steps")),
                *(tables.figures(one[name]) for name in ("seconds", "hours_for_30000", "compile_seconds")),
                tables.megabytes(one["memory_bytes"]),
            ]
            for one in report["runs"]
        ]
        parts += ["## Whole steps in one call", tables.markdown(head, rows)]
    for one in report["steps"]:
        models, together = one["options"]["models_per_step"], one["options"]["vectorize"]
        parts += [f"## Models per step: {models}, side by side: {together}", tables.benchmark(one)]
    if report["around"]:
        parts += ["## The stages around a distillation", tables.benchmark(report["around"])]
    if report["convolutions"]:
        parts += ["## Convolutions", convolutions.table(report["convolutions"])]
    return "\n\n".join(parts + report["notes"])


def parse(line: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(prog="python -m experiments.accelerator", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit; parts that would exceed it are skipped")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that everything runs")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True, help="compare with PyTorch")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile as well")
    parser.add_argument(
        "--output", type=output.path, default=DEFAULT, help="JSON report; the table is written beside it"
    )
    return parser.parse_args(line)


def main(line: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, and return the report."""
    report = measure(parse(line))
    print(table(report))
    return report


if __name__ == "__main__":
    main()
