"""Measure how the time and memory of a whole step scale with each size, with the others held fixed.

    python -m experiments.cost_curves --output=cost_curves.json

The sizes are M (`images`), L (`pool`), `models_per_step`, the real batch, the side of an image and the number n of
images in the data set; each is varied alone around a small base. The exponent is the slope of a line through the
logarithms, with its standard error. Expected exponents of time: 0 for n and L, 2 for the side, at most 1 for the
others. A figure is written next to the report. Measure on an idle machine.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import benchmark
from experiments.jax_side import loops as jax_loops
from experiments.measure import machine, output, tables, timing

BASE = {"images": 16, "pool": 4, "models_per_step": 1, "batch": 64, "size": 32, "data": 4096}
VALUES = {
    "images": (8, 16, 32, 64),
    "pool": (2, 4, 8, 16),
    "models_per_step": (1, 2, 4),
    "batch": (32, 64, 128, 256),
    "size": (16, 32, 64),
    "data": (1024, 4096, 16384),
}
NAMES = {
    "images": "decoded images M",
    "pool": "models in the pool L",
    "models_per_step": "models per step",
    "batch": "real images per step",
    "size": "side of an image",
    "data": "images in the data set n",
}


def point(name: str, value: int, options: argparse.Namespace) -> timing.Timed:
    """Prepare a whole step with one size changed."""
    sizes = BASE | {name: value}
    arguments = [f"--{key.replace('_', '-')}={number}" for key, number in sizes.items()]
    widths = ",".join(map(str, options.widths))
    point_options = benchmark.parse(
        [*arguments, f"--widths={widths}", f"--dim={options.dim}", f"--steps={options.steps}"]
    )
    point_options = benchmark.sized(point_options, point_options.pairs[0])
    return jax_loops.loop("whole", jax_loops.make_problem(point_options), point_options).timed()


def curve(name: str, values: Sequence[int], options: argparse.Namespace) -> dict[str, Any]:
    """Measure seconds per step and bytes at each value, in turns, and fit their exponents."""
    measured = timing.take_turns([point(name, value, options) for value in values], options.repeats)
    seconds = [statistics.median(entry.seconds) for entry in measured]
    memory = [entry.memory for entry in measured]
    return {
        "values": list(values),
        "seconds": seconds,
        "repeats": [entry.seconds for entry in measured],
        "memory_bytes": memory,
        "time_exponent": exponent(values, seconds),
        "memory_exponent": None if None in memory else exponent(values, memory),
    }


def exponent(sizes: Sequence[float], costs: Sequence[Any]) -> dict[str, float]:
    """Fit a line through the logarithms of at least three points; returns its slope and standard error."""
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(costs, float))
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    residual = y - y.mean() - slope * centred
    return {"slope": slope, "error": float(np.sqrt(residual @ residual / (len(x) - 2) / (centred @ centred)))}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure a curve for each selected size."""
    report: dict[str, Any] = {"machine": machine.describe(), "base": BASE, "options": output.plain(options)}
    report["curves"] = {}
    for name in options.sizes:
        report["curves"][name] = curve(name, VALUES[name], options)
        slope = report["curves"][name]["time_exponent"]
        print(f"cost_curves: {name}: time ~ {name}^{slope['slope']:.2f}", file=sys.stderr, flush=True)
    return report


def table(report: dict[str, Any]) -> str:
    """Format a table with a row per size."""
    head = ["size", "values", "ms per step", "exponent of time", "memory MB", "exponent of memory"]
    rows = [
        [
            NAMES[name],
            ", ".join(map(str, one["values"])),
            ", ".join(tables.figures(1e3 * value) for value in one["seconds"]),
            _slope(one["time_exponent"]),
            ", ".join(tables.megabytes(value) for value in one["memory_bytes"]),
            _slope(one["memory_exponent"]),
        ]
        for name, one in report["curves"].items()
    ]
    base = ", ".join(f"{NAMES[name]} {value}" for name, value in report["base"].items())
    return "\n\n".join([tables.machine(report["machine"]), tables.markdown(head, rows), f"Base: {base}, 4 views."])


def _slope(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['slope']:.2f} ± {found['error']:.2f}"


def draw(report: dict[str, Any], path: pathlib.Path) -> None:
    """Draw a column of panels per size: time above, memory below, both axes logarithmic."""
    from matplotlib.figure import Figure

    from ssdd_jax.report import figures

    curves = report["curves"]
    figure = Figure(figsize=(2.6 * len(curves) + 0.6, 4.8), layout="constrained")
    panels = figure.subplots(2, len(curves), squeeze=False, sharex="col")
    for column, (name, one) in enumerate(curves.items()):
        shown = {"time_exponent": [1e3 * value for value in one["seconds"]]}
        if one["memory_exponent"]:
            shown["memory_exponent"] = [value / 1e6 for value in one["memory_bytes"]]
        for axes, (kind, costs) in zip(panels[:, column], shown.items(), strict=False):
            axes.loglog(one["values"], costs, "o-", color="tab:blue" if kind.startswith("time") else "tab:orange")
            axes.set_title(f"exponent {_slope(one[kind])}", fontsize=9)
            axes.set_xticks(one["values"], [str(value) for value in one["values"]])
            axes.minorticks_off()
            # A tight axis would make a flat curve look steep.
            axes.set_ylim(min(costs) / 3, max(costs) * 3)
        panels[1, column].set_xlabel(NAMES[name], fontsize=9)
    panels[0, 0].set_ylabel("ms per step")
    panels[1, 0].set_ylabel("memory, MB")
    figures.save(figure, path)


def parse(line: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options."""

    def chosen(text: str) -> tuple[str, ...]:
        for name in text.split(","):
            if name not in VALUES:
                raise argparse.ArgumentTypeError(f"there is no size {name}: choose among {', '.join(VALUES)}")
        return tuple(text.split(","))

    parser = argparse.ArgumentParser(prog="python -m experiments.cost_curves", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=chosen, default=tuple(VALUES), help=f"out of {', '.join(VALUES)}")
    parser.add_argument("--widths", type=benchmark.several, default=(32, 64, 128), help="channels of the blocks")
    parser.add_argument("--dim", type=benchmark.count, default=128, help="length of a target")
    parser.add_argument("--steps", type=benchmark.count, default=5, help="steps in one call")
    parser.add_argument("--repeats", type=benchmark.count, default=5, help="calls that are timed")
    parser.add_argument("--output", type=output.path, help="JSON report; table and figure are written beside it")
    return parser.parse_args(line)


def main(line: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write report and figure if `--output` is set, and return the report."""
    options = parse(line)
    report = measure(options)
    print(table(report))
    if options.output:
        output.write(options.output, report, table(report))
        draw(report, options.output.with_suffix(".png"))
    return report


if __name__ == "__main__":
    main()
