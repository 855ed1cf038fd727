"""Timing of calls that take turns, with the memory of each."""

from __future__ import annotations

import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Idle worker threads of the other side spin for a few milliseconds after their last task.
REST_SECONDS = 0.05
STATUS, RESET = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


def _no_memory() -> None:
    return None


class Timed(NamedTuple):
    """Call to be timed.

    Attributes:
        call: Runs the steps and returns when the device has finished.
        steps: Number of steps per call.
        memory: Returns the bytes that a step needs, as counted by its compiler or allocator; None if unknown.
        compile_seconds: Time of ahead-of-time compilation, if any.
        warm: Warm-up; None to use the call itself.
    """

    call: Callable[[], None]
    steps: int = 1
    memory: Callable[[], int | None] = _no_memory
    compile_seconds: float | None = None
    warm: Callable[[], object] | None = None


class Measured(NamedTuple):
    """Measurements of one call.

    Attributes:
        seconds: Seconds per step, one value per turn.
        memory: Largest `Timed.memory` of the turns, in bytes.
        process: Largest growth of the process during a call in bytes, as counted by the kernel (Linux).
    """

    seconds: list[float]
    memory: int | None
    process: int | None


def take_turns(calls: Sequence[Timed], repeats: int) -> list[Measured]:
    """Measure every call `repeats` times in turn, after a warm-up of each.

    Taking turns spreads the drift of the machine evenly over the calls.
    """
    for timed in calls:
        (timed.warm or timed.call)()
    results = [Measured([], None, None) for _ in calls]
    for _ in range(repeats):
        for i, timed in enumerate(calls):
            time.sleep(REST_SECONDS)
            before = _restart_peak()
            began = time.perf_counter()
            timed.call()
            results[i].seconds.append((time.perf_counter() - began) / timed.steps)
            growth = None if before is None else _status("VmHWM") - before
            results[i] = Measured(
                results[i].seconds, _larger(results[i].memory, timed.memory()), _larger(results[i].process, growth)
            )
    return results


def compared(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Return the ratio of the medians of first and second, and the smallest and largest ratio of the turns."""
    turns = [a / b for a, b in zip(first, second, strict=True)]
    return {"ratio": statistics.median(first) / statistics.median(second), "min": min(turns), "max": max(turns)}


def summary(measured: Measured, flops: float, rate: float) -> dict[str, Any]:
    """Return a row of the report: seconds per step, the rate of `flops` per step, its share of `rate`, and memory.

    Args:
        measured: Measurements of one call.
        flops: Operations per step.
        rate: Rate of the machine's matrix products in GFLOP/s.
    """
    median = statistics.median(measured.seconds)
    return {
        "seconds": median,
        "min": min(measured.seconds),
        "max": max(measured.seconds),
        "repeats": measured.seconds,
        "steps_per_second": 1 / median,
        "flops": flops,
        "gflops": 1e-9 * flops / median,
        "share": 1e-9 * flops / median / rate,
        "memory_bytes": measured.memory,
        "process_bytes": measured.process,
    }


def peak_process_bytes() -> int | None:
    """Return the process's peak memory since the start of the last measured call; None if unknown."""
    return _status("VmHWM") if STATUS.exists() else None


def _restart_peak() -> int | None:
    """Reset the process's peak memory to its current memory, and return that; None if not possible."""
    try:
        RESET.write_text("5")
        return _status("VmRSS")
    except OSError:  # not Linux, or a sandbox that forbids it
        return None


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def _larger(first: int | None, second: int | None) -> int | None:
    return second if first is None else first if second is None else max(first, second)
