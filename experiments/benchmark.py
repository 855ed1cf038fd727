"""How fast a distillation step is, beside the machine's matrix product and the same arithmetic in eager PyTorch.

    python -m experiments.benchmark --quick
    python -m experiments.benchmark --images=100 --batch=256 --output=benchmark.json

`outer` is one outer step (views decoded, features of synthetic and real images, kernel regression, gradient, AdamW),
`inner` one full-batch step of SGD of one model on the pairs, `whole` both, as `methods.boost` does them. On the JAX
side each is timed inside a compiled loop, as `loop.run` calls it. JAX and PyTorch take turns, so that a machine that
drifts slows both; ratios are of medians. Measure on an idle machine.
"""

from __future__ import annotations

import os

# As in a run: LAPACK's own threads stand in the way of XLA's. PyTorch's products are not done by OpenBLAS.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import util
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import jax_loops
from ssdd_jax import augment, inner, outer
from ssdd_jax.models import convnet

PARTS = ("outer", "inner", "whole")
QUICK = {"images": 16, "batch": 64, "size": 16, "widths": (32, 64), "dim": 64, "product": 1024}
NO_TORCH = "PyTorch is not installed: pip install 'ssdd_jax[torch]' adds the comparison"
# Idle worker threads of the other side keep spinning for a few milliseconds after their last task.
REST_SECONDS = 0.05


class Side(NamedTuple):
    """One implementation: per part what runs `steps` steps and returns when they are done; and its matrix product."""

    parts: dict[str, Callable[[], None]]
    product: Callable[[], None]


def take_turns(calls: Sequence[Callable[[], None]], repeats: int) -> list[list[float]]:
    """Seconds of every call, `repeats` times in turn, after one call each that is not counted."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, seconds in zip(calls, times, strict=True):
            time.sleep(REST_SECONDS)
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
    return times


def compared(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """First over second: the ratio of the medians, and the smallest and largest of the turns."""
    turns = [a / b for a, b in zip(first, second, strict=True)]
    return {
        "ratio": statistics.median(first) / statistics.median(second),
        "min": min(turns),
        "max": max(turns),
    }


def measure(sides: dict[str, Side], options: argparse.Namespace) -> dict[str, Any]:
    """Time the sides in turn: per side the matrix product's rate and the parts, and ratios of JAX to the others."""
    products = take_turns([side.product for side in sides.values()], max(options.repeats, 5))
    rates = [2e-9 * options.product**3 / min(times) for times in products]
    report: dict[str, Any] = {name: {"product_gflops": rate} for name, rate in zip(sides, rates, strict=True)}
    counts = jax_loops.flops(options)
    for part in PARTS:
        times = take_turns([side.parts[part] for side in sides.values()], options.repeats)
        for name, rate, total in zip(sides, rates, times, strict=True):
            seconds = [value / options.steps for value in total]
            median = statistics.median(seconds)
            report[name][part] = {
                "seconds": median,
                "best_seconds": min(seconds),
                "repeats": seconds,
                "gflops": 1e-9 * counts[part] / median,
                "share": 1e-9 * counts[part] / median / rate,
            }
        for name, other in list(zip(sides, times, strict=True))[1:]:
            report[name].setdefault("jax_over_this", {})[part] = compared(times[0], other)
    return report


def scan_overhead(problem: jax_loops.Problem, options: argparse.Namespace) -> dict[str, float]:
    """Time of `inner.train` over that of as many single calls of a jitted `inner.step`, taking turns."""
    train, steps = take_turns(jax_loops.train_and_steps(problem, options), options.repeats)
    medians = {"train_seconds": statistics.median(train), "steps_seconds": statistics.median(steps)}
    return compared(train, steps) | medians


def torch_sides(problem: jax_loops.Problem, options: argparse.Namespace) -> tuple[dict[str, Side], dict[str, Any]]:
    """PyTorch's side, with `--compile` that one too, and what to report of them; a note alone where it cannot run."""
    if util.find_spec("torch") is None:
        return {}, {"note": NO_TORCH}
    # Threads of OpenMP that wait for work asleep leave the cores to the other side. Read when PyTorch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from experiments import torch_reference

    if jax.default_backend() != "cpu" and not torch.cuda.is_available():
        return {}, {"note": f"this PyTorch cannot use the {jax.default_backend()} that JAX runs on: no comparison"}
    torch.set_num_threads(cores())
    learning = inner.Settings()
    settings = torch_reference.Settings(
        outer_rate=outer.Settings().learning_rate,
        inner_rate=learning.learning_rate,
        momentum=learning.momentum,
        weight_decay=learning.weight_decay,
        ridge_scale=outer.Settings().ridge_scale,
    )
    params, stacked, images, targets = jax.tree.map(
        np.asarray, (problem.params, problem.models.models.variables, problem.images, problem.targets)
    )
    models = [jax.tree.map(lambda leaf: leaf[i], stacked) for i in range(options.pool)]  # noqa: B023, used at once
    device = torch.device("cpu" if jax.default_backend() == "cpu" else "cuda")
    work = torch_reference.Work(
        images=torch.tensor(images, device=device).permute(0, 3, 1, 2),
        targets=torch.tensor(targets, device=device),
        batch=options.batch,
        models_per_step=options.models_per_step,
        steps=options.steps,
    )
    settings, layouts = torch_reference.with_faster_layout(params, models, settings, work)
    product = torch_reference.product(options.product, device)
    reference = torch_reference.Reference(params, models, settings, device)
    sides = {"torch": Side(torch_reference.parts(reference, work), product)}
    report: dict[str, Any] = {"version": torch.__version__, "layout_seconds": layouts}
    if options.compile:
        reference = torch_reference.Reference(params, models, settings, device, compiled=True)
        try:
            reference.whole_step([0], work.images[: work.batch], work.targets[: work.batch])
            sides["torch_compiled"] = Side(torch_reference.parts(reference, work), product)
        except RuntimeError as error:  # no C++ compiler, most often
            report["note"] = f"torch.compile does not work here: {str(error).splitlines()[0]}"
    return sides, report


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    info = pathlib.Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": cores(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "busy": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__.splitlines()[0])

    def count(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return int(text)

    def counts(text: str) -> tuple[int, ...]:
        return tuple(count(part) for part in text.split(","))

    parser.add_argument("--images", type=count, default=100, help="decoded images M")
    parser.add_argument("--views", type=count, default=4, help=f"views of each, out of {', '.join(augment.VIEWS)}")
    parser.add_argument("--batch", type=count, default=256, help="real images of an outer step")
    parser.add_argument("--size", type=count, default=32, help="side of an image in pixels")
    parser.add_argument("--widths", type=counts, default=(128, 256, 512), help="channels of the blocks: 128,256,512")
    parser.add_argument("--dim", type=count, default=512, help="length of a target")
    parser.add_argument("--models-per-step", type=count, default=1)
    parser.add_argument("--pool", type=count, default=2, help="inner models")
    parser.add_argument("--vectorize", type=count, default=1, help="models computed side by side (JAX)")
    parser.add_argument("--steps", type=count, default=3, help="steps in one compiled call")
    parser.add_argument("--repeats", type=count, default=3, help="calls that are timed")
    parser.add_argument("--product", type=count, default=2048, help="side of the matrices whose product is timed")
    parser.add_argument("--quick", action="store_true", help="small sizes: within a minute on two cores")
    parser.add_argument("--no-torch", action="store_true", help="leave the comparison out")
    parser.add_argument("--compile", action="store_true", help="time torch.compile as well")
    parser.add_argument("--output", type=pathlib.Path, help="write the report here, as JSON")
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**QUICK)
    options = parser.parse_args(arguments)
    try:
        convnet.check_divisible((options.size, options.size), len(options.widths))
    except ValueError as error:
        parser.error(str(error))
    if options.views > len(augment.VIEWS):
        parser.error(f"--views={options.views}: there are {len(augment.VIEWS)}")
    if options.models_per_step > options.pool:
        parser.error(f"--models-per-step={options.models_per_step} is more than --pool={options.pool}")
    if options.output and not options.output.parent.is_dir():
        parser.error(f"--output={options.output}: there is no folder {options.output.parent}")
    return options


def table(report: dict[str, Any]) -> str:
    """The report in lines."""
    host = report["machine"]
    lines = [f"{host['processor']}, {host['cores']} cores, JAX {host['jax']} on {host['backend']} ({host['device']})"]
    lines += [
        f"{'':16}{'part':8}{'s/step':>10}{'best':>10}{'GFLOP/s':>10}{'share':>8}{'compile s':>11}  JAX/this (min-max)"
    ]
    for name in [name for name in ("jax", "torch", "torch_compiled") if "outer" in (report[name] or {})]:
        side = report[name]
        lines += [f"{name:16}{'product':8}{'':20}{side['product_gflops']:10.1f}"]
        for part in PARTS:
            row = side[part]
            line = f"{'':16}{part:8}{row['seconds']:10.4f}{row['best_seconds']:10.4f}"
            line += f"{row['gflops']:10.1f}{row['share']:8.2f}"
            line += f"{row['compile_seconds']:11.1f}" if "compile_seconds" in row else " " * 11
            if name != "jax":
                line += "  {ratio:.2f} ({min:.2f}-{max:.2f})".format(**side["jax_over_this"][part])
            lines.append(line)
    lines += ["scan over single steps: {ratio:.3f} ({min:.3f}-{max:.3f})".format(**report["scan_overhead"])]
    note = (report["torch"] or {}).get("note")
    return "\n".join(lines + ([note] if note else []))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, write the report where asked to, and return it."""
    options = parse(arguments)
    # PyTorch needs a part of a GPU's memory, which JAX would take whole. Read when JAX meets its device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    problem = jax_loops.make_problem(options)
    loops = jax_loops.loops(problem, options)
    others, about_torch = ({}, {}) if options.no_torch else torch_sides(problem, options)
    sides = {"jax": Side(dict(loops), jax_loops.product(options.product)), **others}
    report: dict[str, Any] = {
        "machine": machine(),
        "options": {name: value for name, value in vars(options).items() if name != "output"},
        "flops": jax_loops.flops(options),
        "scan_overhead": scan_overhead(problem, options),
        "torch": None,
        "torch_compiled": None,
    }
    report |= measure(sides, options)
    if about_torch:
        report["torch"] = (report["torch"] or {}) | about_torch
    for part, loop in loops.items():
        report["jax"][part]["compile_seconds"] = loop.compile_seconds
    print(table(report))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    main()
