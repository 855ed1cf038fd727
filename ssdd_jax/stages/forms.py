"""The fastest form of a method's outer step on this machine: measured once per run, and kept in its folder."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ssdd_jax import methods
from ssdd_jax.methods.base import Method, Run
from ssdd_jax.runtime import devices, files, memory
from ssdd_jax.training import loop

Changes = Mapping[str, Any]

FILE = "form.json"
# Shorter distillations are over before the forms would be compiled.
LEAST_STEPS = 2000
# A form is timed for about this many seconds, after one call as a warm-up.
SECONDS = 0.5


class Timing(NamedTuple):
    """Measurement of one form.

    Attributes:
        words: Its description.
        seconds: Seconds per outer step; NaN if it does not fit into the device's memory.
    """

    words: str
    seconds: float


def measured(run: Run) -> bool:
    """Return whether this run measures the forms of its method's outer step."""
    return len(run.method.forms) > 1 and run.method.steps >= LEAST_STEPS


def stored(folder: pathlib.Path) -> Changes | None:
    """Read the form that an earlier start of the run has chosen; None if there is none."""
    path = folder / FILE
    return dict(files.read_sealed(path)["config"]) if path.exists() else None


def method_of(run: Run, changes: Changes) -> Method:
    """Build the run's method in another form."""
    return methods.changed(run, changes).method


def choose(run: Run, trainings: Sequence[loop.Training], state: Any, data: Any) -> tuple[Changes, list[Timing]]:
    """Compile and time a few outer steps in every form, and choose the fastest that fits into the memory.

    Args:
        run: The run.
        trainings: The training in each of `run.method.forms`.
        state: The state before the next step; it is not changed.
        data: The data for the steps, on the device.

    Returns:
        The changes to the config that select the form, and all timings.
    """
    forms = run.method.forms
    run.say(f"distill: measuring {len(forms)} forms of a step")
    # One after the other: compilers that tune their choices on the device disturb each other.
    seconds = [_seconds(training, state, data) for training in trainings]
    # All processes of a run have to compute the same program: the first one decides.
    fastest = int(devices.from_first(np.nanargmin([*seconds, np.inf]) % len(forms)))
    timings = [Timing(form.words, duration) for form, duration in zip(forms, seconds, strict=True)]
    run.say(f"distill: {_words(timings, fastest)}")
    return forms[fastest].changes, timings


def keep(folder: pathlib.Path, changes: Changes, timings: list[Timing]) -> None:
    """Write the choice to the run's folder, so that a resumed run computes the same."""
    rows = [{"form": row.words, "seconds_per_step": None if np.isnan(row.seconds) else row.seconds} for row in timings]
    files.write_sealed(folder / FILE, {"config": dict(changes), "measured": rows})


def _words(timings: list[Timing], fastest: int) -> str:
    """Describe the outcome in one line."""
    others = [
        f"{row.words} {1e3 * row.seconds:.3g} ms" if row.seconds == row.seconds else f"{row.words}: too large"
        for i, row in enumerate(timings)
        if i != fastest
    ]
    best = timings[fastest]
    return f"{best.words} is the fastest form, {1e3 * best.seconds:.3g} ms a step ({'; '.join(others)})"


def _seconds(training: loop.Training, state: Any, data: Any) -> float:
    """Compile the training's steps and time as many as take about `SECONDS`; NaN if the memory cannot hold them."""
    items = loop.items_of(training, 0)
    call = loop.compiled(training, state, data, items, donate=False)

    def timed(program: Any, count: int) -> float:
        began = time.perf_counter()
        jax.block_until_ready(program(state, data, items, np.int32(count)))
        return time.perf_counter() - began

    try:
        program = call.lower(state, data, items, np.int32(1)).compile()
        timed(program, 1)
        count = max(1, min(training.per_call, int(SECONDS / timed(program, 1))))
        return timed(program, count) / count
    except jax.errors.JaxRuntimeError as error:
        if not memory.is_full(error):
            raise
        return float("nan")
