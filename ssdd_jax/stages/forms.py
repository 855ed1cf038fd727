"""The fastest form of a method's outer step: measured once per run and device, and kept in the run's folder."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ssdd_jax import methods
from ssdd_jax.errors import UserError
from ssdd_jax.methods.base import Method, Run
from ssdd_jax.runtime import devices, files, memory
from ssdd_jax.training import loop, streaming

Changes = Mapping[str, Any]

FILE = "form.json"
# Shorter distillations are over before the forms would be compiled.
LEAST_STEPS = 2000
# Settings that decide how much memory a step takes.
TO_LOWER = "config.pool.models_per_step, config.distill.batch_size or config.distill.pairs_per_step"
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


def stored(run: Run) -> Changes | None:
    """Read the form that an earlier start of the run has chosen.

    Returns:
        The changes to the config; None if nothing was chosen, or for another device, or if the config asks for another.
    """
    path = run.work.folder / FILE
    if not run.method.forms or not path.exists():
        return None
    content = files.read_sealed(path)
    changes = dict(content["config"])
    known = any(form.changes == changes for form in run.method.forms)
    return changes if known and content.get("device") == device() else None


def device() -> str:
    """Return what a choice holds for: the kind of the device, and its memory."""
    return f"{jax.devices()[0].device_kind}, {streaming.memory_bytes() / 1e9:.0f} GB"


def method_of(run: Run, changes: Changes) -> Method:
    """Build the run's method in another form."""
    return methods.changed(run, changes).method


def stand_in(run: Run) -> Method:
    """Build a method whose start has the shapes of the run's, and takes little time and memory: hardly trained models.

    A step takes as long from it as from any other state.
    """
    return methods.changed(run, {"pool.steps": 1, "pool.vectorize": 1, "pool.form": "lax"}).method


def choose(run: Run, trainings: Sequence[loop.Training], state: Any, data: Any) -> tuple[Changes, list[Timing]]:
    """Compile and time a few outer steps in every form, and choose the fastest that fits into the memory.

    Args:
        run: The run.
        trainings: The training in each of `run.method.forms`; all read the same feed.
        state: A state to step from; it is not changed.
        data: The data for the steps, on the device.

    Returns:
        The changes to the config that select the form, and all timings.

    Raises:
        UserError: If the memory holds none of them.
    """
    forms = run.method.forms
    run.say(f"distill: measuring {len(forms)} forms of a step")
    items = loop.items_of(trainings[0], 0)
    # One after the other: compilers that tune their choices on the device disturb each other.
    seconds = [_seconds(training, state, data, items) for training in trainings]
    if np.isnan(seconds).all():
        raise UserError(f"distill: the device's memory holds no form of a step: lower {TO_LOWER}")
    # All processes of a run have to compute the same program: the first one decides.
    fastest = int(devices.from_first(np.nanargmin([*seconds, np.inf]) % len(forms)))
    timings = [Timing(form.words, duration) for form, duration in zip(forms, seconds, strict=True)]
    run.say(f"distill: {_words(timings, fastest)}")
    return forms[fastest].changes, timings


def keep(folder: pathlib.Path, changes: Changes, timings: list[Timing]) -> None:
    """Write the choice to the run's folder, so that a resumed run computes the same."""
    rows = [{"form": row.words, "seconds_per_step": None if np.isnan(row.seconds) else row.seconds} for row in timings]
    files.write_sealed(folder / FILE, {"config": dict(changes), "device": device(), "measured": rows})


def _words(timings: list[Timing], fastest: int) -> str:
    """Describe the outcome in one line."""
    others = [
        f"{row.words} {1e3 * row.seconds:.3g} ms" if row.seconds == row.seconds else f"{row.words}: too large"
        for i, row in enumerate(timings)
        if i != fastest
    ]
    best = timings[fastest]
    return f"{best.words} is the fastest form, {1e3 * best.seconds:.3g} ms a step ({'; '.join(others)})"


def begin(run: Run, starts: Sequence[Callable[[], Any]]) -> Any:
    """Compute a start in the first form that the memory holds: trained in parallel, the pool takes the most.

    Args:
        run: The run.
        starts: Functions that compute it, the preferred form first.
    """
    for i, start in enumerate(starts):
        try:
            return jax.block_until_ready(start())
        except jax.errors.JaxRuntimeError as error:
            # Of several processes the others may have room: they would go on without this one.
            if not memory.is_full(error) or i == len(starts) - 1 or jax.process_count() > 1:
                raise
        run.say("distill: the device's memory is too small for the start in this form: taking the next one")
    raise AssertionError("there is at least one form")


def _seconds(training: loop.Training, state: Any, data: Any, items: Any) -> float:
    """Compile the training's steps and time as many as take about `SECONDS`; NaN if the memory cannot hold them."""
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
