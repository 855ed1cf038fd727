"""Benchmark the implementations of the convolution: alone, in a scan, and under a vmap over kernels.

    python -m experiments.convolutions --output=convolutions.json

Measures the three layers of the ConvNet, forward and forward with both derivatives, in float32 and bfloat16, for every
form in `ssdd_jax.models.convolution.FORMS`. Under a vmap over kernels XLA turns `lax` into a grouped convolution. Times
are per convolution; a scan or vmap contains `--models` of them. Measure on an idle machine.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from experiments.measure import machine, output, tables
from ssdd_jax.models import convolution

Array = jax.Array

FORMS = tuple(convolution.FORMS)
CONTEXTS = ("alone", "scan", "vmap")
DIRECTIONS = ("forward", "both")
# Calls are repeated for at least this long, so that the clock's resolution and the dispatch do not matter.
LEAST_SECONDS = 0.02
# Calls that take longer than this are timed once.
LONG_SECONDS = 1.0


def layers(options: argparse.Namespace) -> list[tuple[int, int, int]]:
    """Return the side, the input channels and the output channels of each layer."""
    inputs = (3, *options.widths)
    return [(options.size // 2**i, inputs[i], width) for i, width in enumerate(options.widths)]


def direction(name: str, form: str) -> Callable[..., Any]:
    """Return a function of images `(B,H,W,I)`, a kernel `(3,3,I,O)` and a gradient `(B,H,W,O)` to be timed."""

    def forward(x: Array, kernel: Array, _: Array) -> Any:
        return convolution.conv(x, kernel, form=form)

    def both(x: Array, kernel: Array, gradient: Array) -> Any:
        out, backward = jax.vjp(lambda x, kernel: convolution.conv(x, kernel, form=form), x, kernel)
        return out, backward(gradient)

    return forward if name == "forward" else both


def within(context: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function for stacked arguments in a context; `alone` applies it to the first of them."""
    if context == "alone":
        return lambda *stacked: function(*(array[0] for array in stacked))
    if context == "vmap":
        return jax.vmap(function)
    return lambda *stacked: lax.scan(lambda _, one: (None, function(*one)), None, stacked)[1]


def arguments(layer: tuple[int, int, int], dtype: str, options: argparse.Namespace) -> tuple[Array, Array, Array]:
    """Draw images, kernels and gradients for `--models` convolutions."""
    side, before, after = layer
    shapes = ((options.batch, side, side, before), (3, 3, before, after), (options.batch, side, side, after))
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [
        jax.random.normal(key, (options.models, *shape)).astype(dtype) for key, shape in zip(keys, shapes, strict=True)
    ]
    return arrays[0], arrays[1], arrays[2]


def seconds(function: Callable[..., Any], given: Sequence[Array], repeats: int) -> float:
    """Measure the median time of a call of the compiled function."""
    compiled = jax.jit(function).lower(*given).compile()

    def timed(calls: int) -> float:
        began = time.perf_counter()
        jax.block_until_ready([compiled(*given) for _ in range(calls)][-1])
        return (time.perf_counter() - began) / calls

    timed(1)
    once = timed(1)
    if once > LONG_SECONDS:
        return once
    calls = max(1, min(100, int(LEAST_SECONDS / once)))
    return statistics.median(timed(calls) for _ in range(repeats))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure a row per layer, precision and form, within `--minutes`."""
    end = time.monotonic() + 60 * options.minutes
    report: dict[str, Any] = {"machine": machine.describe(), "options": output.plain(options), "rows": [], "notes": []}
    for layer in layers(options):
        for dtype in machine.DTYPES:
            inputs = arguments(layer, dtype, options)
            for name in FORMS:
                if time.monotonic() > end:
                    skipped = f"{layer[0]}x{layer[0]}, {layer[1]} to {layer[2]}, {dtype}, {name}"
                    report["notes"].append(f"Left out after {options.minutes:g} minutes: {skipped}.")
                    continue
                row: dict[str, Any] = {
                    "side": layer[0], "inputs": layer[1], "outputs": layer[2], "dtype": dtype, "form": name,
                    "chosen": convolution.form_on(jax.default_backend(), inputs[0][0], inputs[1][0]) == name,
                    "seconds": {},
                }  # fmt: skip
                for kind in DIRECTIONS:
                    for context in CONTEXTS:
                        duration = seconds(within(context, direction(kind, name)), inputs, options.repeats)
                        row["seconds"][f"{context} {kind}"] = duration / (1 if context == "alone" else options.models)
                report["rows"].append(row)
    return report


def table(report: dict[str, Any]) -> str:
    """Format a table with the milliseconds per convolution."""
    columns = [f"{context} {kind}" for kind in DIRECTIONS for context in CONTEXTS]
    head = ["layer", "precision", "form", *(f"{name}, ms" for name in columns)]
    rows = [
        [
            f"{row['side']}x{row['side']}, {row['inputs']} to {row['outputs']}",
            row["dtype"],
            f"**{row['form']}**" if row["chosen"] else row["form"],
            *(tables.figures(1e3 * row["seconds"][name]) for name in columns),
        ]
        for row in report["rows"]
    ]
    images, models = report["options"]["batch"], report["options"]["models"]
    legend = f"{images} images, {models} convolutions in a scan or a vmap; bold: the form that `conv` chooses here."
    return "\n\n".join(
        [tables.machine(report["machine"]), tables.markdown(head, rows, 3), "\n".join([legend, *report["notes"]])]
    )


def parse(line: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(prog="python -m experiments.convolutions", description=__doc__.splitlines()[0])
    small = jax.default_backend() == "cpu"
    parser.add_argument("--batch", type=int, default=16 if small else 1024, help="images")
    parser.add_argument("--models", type=int, default=2 if small else 10, help="convolutions in a scan or under a vmap")
    parser.add_argument("--size", type=int, default=32, help="side of an image in pixels")
    parser.add_argument("--widths", type=lambda text: tuple(map(int, text.split(","))), default=(128, 256, 512))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=3.5, help="start no further row after this time")
    parser.add_argument("--output", type=output.path, help="write the report here as JSON, and its table beside it")
    return parser.parse_args(line)


def main(line: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write the report if `--output` is set, and return it."""
    options = parse(line)
    report = measure(options)
    print(table(report))
    if options.output:
        output.write(options.output, report, table(report))
    return report


if __name__ == "__main__":
    main()
