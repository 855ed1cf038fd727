"""A piece of a run's work, measured on this machine: what one step takes, and what its program takes to compile."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from ssdd_jax.methods.base import Trial
from ssdd_jax.training import loop, streaming

# Steps are timed for about so long; one that takes longer than `LONG` is timed once, without a warm-up.
SECONDS = 0.7
LONG = 5.0


class Cost(NamedTuple):
    """What is left of a piece of work, and what it was found to cost.

    Attributes:
        what: The unit it is counted in, in the plural.
        count: How many are left.
        seconds: Of one; not a number where it could not be measured.
        measured: How many were timed.
        compiling: Seconds to compile the program, once.
        memory: Bytes that the program takes on the device, its data included; 0 where that is little.
    """

    what: str
    count: float  # type: ignore[assignment]  # instead of the tuple's method
    seconds: float
    measured: int
    compiling: float = 0.0
    memory: int = 0

    @property
    def total(self) -> float:
        """Seconds of all that is left, compiling included; nothing where nothing is left."""
        return self.count * self.seconds + self.compiling if self.count else 0.0


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """Within it programs are taken from XLA's cache on disk, where they are there, but none is written to it."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


class Program(NamedTuple):
    """A compiled function, the seconds that compiling took, and the bytes it takes on the device, data included."""

    call: Callable[..., Any]
    compiling: float
    memory: int

    @property
    def fits(self) -> bool:
        """Whether it can be run on this device."""
        return self.memory <= streaming.memory_bytes()


def program(function: Any, *arguments: Any, **options: Any) -> Program:
    """Compile a function under `jax.jit` for these arguments.

    Args:
        function: What `jax.jit` gave.
        *arguments: Arrays, or their shapes.
        **options: Its static arguments by name.
    """
    began = time.perf_counter()
    compiled = function.lower(*arguments, **options).compile()
    seconds = time.perf_counter() - began
    sizes = compiled.memory_analysis()
    if sizes is None:
        return Program(compiled, seconds, 0)
    parts = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return Program(compiled, seconds, max(0, parts - sizes.alias_size_in_bytes))


def clock(call: Callable[[int], None], *, most: int) -> tuple[float, int]:
    """Seconds of one step, and how many were timed.

    Args:
        call: Does so many steps and returns when the device is done.
        most: The most steps that it can do at once.
    """
    first = _seconds(call, 1)
    if first > LONG:
        return first, 1
    one = _seconds(call, 1)
    count = max(1, min(most, int(SECONDS / max(one, 1e-6))))
    if count == 1:
        return one, 1
    return _seconds(call, count) / count, count


def once(call: Callable[[], Any]) -> float:
    """Seconds of a call whose result is waited for."""
    return _seconds(lambda _: jax.block_until_ready(call()), 1)


def _seconds(call: Callable[[int], Any], count: int) -> float:
    began = time.perf_counter()
    call(count)
    return time.perf_counter() - began


def warm(call: Callable[[int], Any], *, what: str, count: float, most: int, memory: int = 0) -> Cost:
    """The cost of a call that compiles when it is first made: what that takes longer than the next is compiling."""
    first = _seconds(call, 1)
    seconds, measured = clock(call, most=most)
    return Cost(what, count, seconds, measured, max(0.0, first - seconds), memory)


def measure(trial: Trial) -> Cost:
    """The cost of a piece of work: its program compiled, and a few of its calls timed.

    Args:
        trial: The piece of work.

    Returns:
        The cost; its seconds are NaN where the program does not fit the device.
    """
    last = (np.int32(1),) if trial.repeated else ()
    compiled = program(trial.function, *trial.arguments, *last, **trial.options)
    compiling = compiled.compiling if trial.compiles else 0.0
    if not compiled.fits:
        return Cost(trial.what, trial.count, math.nan, 0, compiling, compiled.memory + trial.held)

    def go(count: int) -> None:
        jax.block_until_ready(compiled.call(*trial.arguments, *((np.int32(count),) if trial.repeated else ())))

    seconds, timed = clock(go, most=trial.units if trial.repeated else 1)
    units = 1 if trial.repeated else trial.units
    return Cost(trial.what, trial.count, seconds / units, timed * units, compiling, compiled.memory + trial.held)


def steps(training: loop.Training, state: Any, data: Any, *, left: int) -> tuple[Cost, Any]:
    """The cost of the steps that are left of a training, in the loop that a run has.

    Args:
        training: What the loop is given.
        state: At its start; given away.
        data: What its steps are given.
        left: How many steps are left.

    Returns:
        The cost, and the state after the steps that were timed.
    """
    items = None if training.feed is None else jax.device_put(training.feed(0, training.per_call))
    found = program(loop.compiled(training, state, data, items), state, data, items, np.int32(1))
    if not found.fits:
        return Cost("steps", left, math.nan, 0, found.compiling, found.memory), state
    held = [state]

    def go(count: int) -> None:
        held[0], _ = found.call(held[0], data, items, np.int32(count))
        jax.block_until_ready(held[0])

    seconds, measured = clock(go, most=training.per_call)
    return Cost("steps", left, seconds, measured, found.compiling, found.memory), held[0]
