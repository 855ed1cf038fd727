"""Benchmark one accelerator in one command, within a time limit.

    python -m experiments.accelerator --minutes=9
    python -m experiments.accelerator --quick --output=/tmp/accelerator.json

The paper's sizes for CIFAR-100: N = 100 (M = 400 decoded images in four views), L = 10 models, 1,024 real images per
step, ConvNet 128-256-512, bfloat16. Parts, in the order of their worth:

1. `forms`: whole steps with one model and with all, in each form: models one after the other or in parallel, XLA's
   convolution or products of patches. Extrapolated to 30,000 steps.
2. `kernel`: kernel regression at these sizes: seconds of its parts, and the error of prediction and gradient against
   float64 on a badly conditioned kernel.
3. `steps`: outer, inner and whole step, with one and with all models, beside PyTorch on the same device.
4. `around`: the stages around a distillation, beside PyTorch.
5. `convolutions`: the table of convolutions.

A part that does not fit into the time is skipped, with a note. The report is written after each part, by default to
`experiments/results/accelerator.json` and `.md`.
"""

from __future__ import annotations

import argparse
import functools
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments import benchmark, convolutions
from experiments.jax_side import kernel, loops
from experiments.measure import counts, machine, output, tables
from ssdd_jax.runtime import memory

PAPER: dict[str, Any] = {
    "images": 400, "views": 4, "batch": 1024, "pool": 10, "steps": 10, "repeats": 3, "teacher-steps": 3,
}  # fmt: skip
QUICK: dict[str, Any] = {
    "images": 2, "views": 2, "batch": 4, "pool": 2, "steps": 1, "repeats": 1, "teacher-steps": 1, "size": 8,
    "widths": "4", "dim": 8, "product": 64, "teacher-width": 1, "teacher-blocks": 1, "projector": 8, "fit-steps": 3,
}  # fmt: skip
CONVOLUTIONS = {
    "paper": ["--batch=1024", "--models=10"],
    "quick": ["--batch=2", "--models=2", "--widths=4", "--size=8"],
}
# Forms of a whole step: models per step and in parallel ("all" is the pool's size), convolution. The likely first.
FORMS = ((1, 1, "lax"), ("all", 1, "lax"), ("all", "all", "patches"), ("all", "all", "lax"), (1, 1, "patches"))
DEFAULT = pathlib.Path(__file__).parent / "results" / "accelerator.json"
STEPS = 30_000
# A part begins only if at least these seconds are left, and as many as the longest part so far took.
LEAST_SECONDS = 30.0
# A form is timed for about this many seconds.
FORM_SECONDS = 2.0


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
            if not memory.is_full(error):
                raise
            self.notes.append(f"{name}: left out, the device's memory is full.")
            return None
        finally:
            self.longest = max(self.longest, time.monotonic() - began)


def options_for(asked: argparse.Namespace, stages: Sequence[str], **changed: Any) -> argparse.Namespace:
    """Build the benchmark's options at these sizes, with changes such as `models_per_step=10`."""
    values = (QUICK if asked.quick else PAPER) | {"precision": asked.precision}
    values |= {name.replace("_", "-"): value for name, value in changed.items()}
    line = [f"--{name}={value}" for name, value in values.items()]
    disabled = [
        flag for flag, active in (("--no-torch", not asked.torch), ("--no-compile", not asked.compile)) if active
    ]
    return benchmark.parse([*line, *disabled, "--no-scan", f"--stages={','.join(stages)}"])


def forms(asked: argparse.Namespace, budget: Budget) -> Iterator[dict[str, Any]]:
    """Time whole steps in every form that fits into the time, in calls of about `FORM_SECONDS`; yield each row."""
    size = (QUICK if asked.quick else PAPER)["pool"]
    for models, together, form in FORMS:
        row = {"models_per_step": size if models == "all" else models, "form": form}
        row["vectorize"] = size if together == "all" else together
        options = options_for(asked, ("whole",), **row)
        options = benchmark.sized(options, options.pairs[0])
        name = "form {models_per_step} {vectorize} {form}".format(**row)
        # One after the other: compilers that tune their choices on the device disturb each other.
        timed = budget.spend(name, lambda: _timed(options))  # noqa: B023, used at once
        if timed is not None:
            yield row | {"precision": asked.precision} | timed


def _timed(options: argparse.Namespace) -> dict[str, Any]:
    """Compile the loop of a whole step and time it; the seconds are NaN if the device's memory is full."""
    flops = counts.stages(benchmark.sizes(options))["whole"]
    try:
        program = loops.loop("whole", loops.make_problem(options), options)
        program.run(1)
        seconds = program.run(2) / 2
        steps = max(2, min(1000, int(FORM_SECONDS / seconds)))
        seconds = program.run(steps) / steps
    except RuntimeError as error:
        if not memory.is_full(error):
            raise
        return {"seconds_per_step": math.nan, "flops": flops}
    return {
        "seconds_per_step": seconds,
        "steps": steps,
        "flops": flops,
        "hours_for_30000": seconds * STEPS / 3600,
        "compile_seconds": program.compiled.seconds,
        "memory_bytes": program.compiled.memory(),
    }


def steps(asked: argparse.Namespace, models: int, best: dict[str, Any] | None) -> dict[str, Any]:
    """Benchmark the outer, inner and whole step beside PyTorch, in the fastest form."""
    stages = ("inner", "outer", "whole") if models == 1 else ("whole",)
    names = ("vectorize", "form")
    changed = {name: best[name] for name in names} if best else {}
    return benchmark.measure(options_for(asked, stages, models_per_step=models, **changed))


def around(asked: argparse.Namespace) -> dict[str, Any]:
    """Benchmark the stages around a distillation."""
    return benchmark.measure(options_for(asked, (*benchmark.TEACHER, "approximation", "evaluation")))


def fastest(rows: Sequence[dict[str, Any]] | None, models: int) -> dict[str, Any] | None:
    """Return the fastest form of a step with this number of models; None if none was measured."""
    fitting = [
        row for row in rows or () if row["models_per_step"] == models and not math.isnan(row["seconds_per_step"])
    ]
    return min(fitting, key=lambda row: row["seconds_per_step"]) if fitting else None


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Run all parts that fit into the time; the report is written after each."""
    budget = Budget(asked.minutes)
    report: dict[str, Any] = {"machine": machine.describe(), "minutes": asked.minutes, "steps": []}
    report |= {"kernel": None, "forms": None, "around": None, "convolutions": None, "notes": budget.notes}

    def write() -> None:
        output.write(asked.output, report, table(report))

    def add(part: str, work: Callable[[], Any], name: str = "") -> None:
        if part not in asked.parts:
            return
        result = budget.spend(name or part, work)
        if part == "steps":
            report["steps"] += [result] if result else []
        else:
            report[part] = result
        write()

    all_models = (QUICK if asked.quick else PAPER)["pool"]
    if "forms" in asked.parts:
        # Each row is a part of its own: all together they would be the longest one, for which less time is left.
        report["forms"] = []
        for row in forms(asked, budget):
            report["forms"].append(row)
            write()
    add("kernel", lambda: kernel.measure(kernel.QUICK if asked.quick else kernel.PAPER))
    for models in (1, all_models):
        best = fastest(report["forms"], models)
        add("steps", functools.partial(steps, asked, models, best), f"steps, models: {models}")
    add("around", lambda: around(asked))
    sizes = CONVOLUTIONS["quick" if asked.quick else "paper"]
    # The table has its own time limit: it starts no row after it.
    line = [*sizes, "--repeats=3", f"--minutes={max(0.0, budget.left() / 60 - 0.5)}"]
    add("convolutions", lambda: convolutions.measure(convolutions.parse(line)))
    report["device_peak_bytes"] = machine.device_peak_bytes()
    write()
    return report


def table(report: dict[str, Any]) -> str:
    """Format the tables of all parts, each under a heading."""
    parts = ["# One accelerator", tables.machine(report["machine"])]
    if report["forms"]:
        parts += ["## Forms of a whole step", _table_of_forms(report["forms"])]
    if report["kernel"]:
        parts += ["## Kernel regression", kernel.table(report["kernel"])]
    for one in report["steps"]:
        parts += [f"## Steps, models per step: {one['options']['models_per_step']}", tables.benchmark(one)]
    if report["around"]:
        parts += ["## The stages around a distillation", tables.benchmark(report["around"])]
    if report["convolutions"]:
        parts += ["## Convolutions", convolutions.table(report["convolutions"])]
    return "\n\n".join(parts + report["notes"])


def _table_of_forms(rows: Sequence[dict[str, Any]]) -> str:
    head = ["convolution", "precision", "models per step", "in parallel"]
    head += ["ms per step", "TFLOP/s", "hours for 30,000", "compile s", "memory MB"]
    lines = []
    for row in rows:
        texts = [str(row[name]) for name in ("form", "precision", "models_per_step", "vectorize")]
        if math.isnan(row["seconds_per_step"]):
            lines.append([*texts, "memory full", "", "", "", ""])
            continue
        seconds = row["seconds_per_step"]
        numbers = (1e3 * seconds, 1e-12 * row["flops"] / seconds, row["hours_for_30000"], row["compile_seconds"])
        lines.append([*texts, *(tables.figures(number) for number in numbers), tables.megabytes(row["memory_bytes"])])
    return tables.markdown(head, lines, 2)


def parse(line: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(prog="python -m experiments.accelerator", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit; parts that would exceed it are skipped")
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), default=list(PARTS), help=f"out of {', '.join(PARTS)}"
    )
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16", help="of the convolutions")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that everything runs")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True, help="compare with PyTorch")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile as well")
    parser.add_argument(
        "--output", type=output.path, default=DEFAULT, help="JSON report; the table is written beside it"
    )
    asked = parser.parse_args(line)
    unknown = [name for name in asked.parts if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]}: choose among {', '.join(PARTS)}")
    return asked


def main(line: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, and return the report."""
    report = measure(parse(line))
    print(table(report))
    return report


PARTS = ("forms", "kernel", "steps", "around", "convolutions")

if __name__ == "__main__":
    main()
