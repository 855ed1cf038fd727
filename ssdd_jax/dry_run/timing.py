"""Timing of part of a run's work on this machine: seconds per step, compilation, and memory."""

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

# Steps are timed for about `SECONDS`; a step that takes longer than `LONG` is timed once, without a warm-up.
SECONDS = 0.7
LONG = 5.0


class Cost(NamedTuple):
    """Measured cost of the remaining work.

    Attributes:
        what: Name of the unit of work, in the plural.
        count: Remaining units.
        seconds: Seconds per unit; NaN if it could not be measured.
        measured: Number of units that were timed.
        compiling: Seconds to compile the program once.
        memory: Bytes of the program on the device, including its data; 0 if that is negligible.
    """

    what: str
    count: float  # type: ignore[assignment]  # instead of the tuple's method
    seconds: float
    measured: int
    compiling: float = 0.0
    memory: int = 0

    @property
    def total(self) -> float:
        """Seconds of the remaining work including compilation; 0 if no work is left."""
        return self.count * self.seconds + self.compiling if self.count else 0.0


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """Context in which programs are read from XLA's persistent cache but none is written to it."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


class Program(NamedTuple):
    """A compiled function, its compilation time in seconds, and its bytes on the device including data."""

    call: Callable[..., Any]
    compiling: float
    memory: int

    @property
    def fits(self) -> bool:
        """True if the device has enough memory for it."""
        return self.memory <= streaming.memory_bytes()


def program(function: Any, *arguments: Any, **options: Any) -> Program:
    """Compile a function under `jax.jit` for the given arguments.

    Args:
        function: A jitted function.
        *arguments: Arrays, or abstract values.
        **options: Static arguments by name.

    Returns:
        The compiled program.
    """
    began = time.perf_counter()
    compiled = function.lower(*arguments, **options).compile()
    seconds = time.perf_counter() - began
    return Program(compiled, seconds, memory_of(compiled))


def memory_of(compiled: Any) -> int:
    """Return the bytes on the device of a compiled program, data included; 0 if the backend does not report them."""
    sizes = compiled.memory_analysis()
    if sizes is None:
        return 0
    # Outputs that alias donated arguments count once.
    parts = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return max(0, parts - sizes.alias_size_in_bytes)


def clock(call: Callable[[int], None], *, most: int) -> tuple[float, int]:
    """Measure the seconds per step.

    Args:
        call: Performs the given number of steps, and returns when the device has finished.
        most: Largest number of steps that it accepts.

    Returns:
        Seconds per step, and the number of timed steps.
    """
    # The first step warms up caches and the allocator, unless steps are too long to repeat.
    first = _seconds(call, 1)
    if first > LONG:
        return first, 1
    warm_seconds = _seconds(call, 1)
    count = max(1, min(most, int(SECONDS / max(warm_seconds, 1e-6))))
    if count == 1:
        return warm_seconds, 1
    return _seconds(call, count) / count, count


def once(call: Callable[[], Any]) -> float:
    """Measure the seconds of a call until its result is computed."""
    return _seconds(lambda _: jax.block_until_ready(call()), 1)


def _seconds(call: Callable[[int], Any], count: int) -> float:
    began = time.perf_counter()
    call(count)
    return time.perf_counter() - began


def warm(call: Callable[[int], Any], *, what: str, count: float, most: int, memory: int = 0) -> Cost:
    """Measure a call that compiles when it runs first; the extra time of the first call counts as compilation."""
    first = _seconds(call, 1)
    seconds, measured = clock(call, most=most)
    return Cost(what, count, seconds, measured, max(0.0, first - seconds), memory)


def measure(trial: Trial) -> Cost:
    """Compile a trial's program and time a few calls.

    Args:
        trial: The trial.

    Returns:
        The cost; its seconds are NaN if the program does not fit the device.
    """
    # The number of repetitions is an argument, so that one program serves every count.
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
    """Measure the remaining steps of a training in the training loop's own program.

    Args:
        training: The training.
        state: Its initial state, which is donated.
        data: The data passed to every step.
        left: Number of remaining steps.

    Returns:
        The cost, and the state after the timed steps.
    """
    items = None if training.feed is None else jax.device_put(training.feed(0, training.per_call))
    compiled = program(loop.compiled(training, state, data, items), state, data, items, np.int32(1))
    if not compiled.fits:
        return Cost("steps", left, math.nan, 0, compiled.compiling, compiled.memory), state
    # A list, because each call consumes the state that it is given.
    held = [state]

    def go(count: int) -> None:
        held[0], _ = compiled.call(held[0], data, items, np.int32(count))
        jax.block_until_ready(held[0])

    seconds, measured = clock(go, most=training.per_call)
    return Cost("steps", left, seconds, measured, compiled.compiling, compiled.memory), held[0]
