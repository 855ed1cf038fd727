"""Times of calls that take turns, with the memory that each takes."""

from __future__ import annotations

import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Idle worker threads of the other side keep spinning for a few milliseconds after their last task.
REST_SECONDS = 0.05
STATUS, RESET = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


def _no_memory() -> None:
    return None


class Timed(NamedTuple):
    """Something to time.

    Attributes:
        call: Does the steps and returns when the device is done.
        steps: How many steps one call does.
        memory: Bytes that a step needs, as its compiler or allocator counts them; None where nobody counts.
        compile_seconds: What compiling took, where it was done beforehand.
        warm: Makes ready what the first call would; None for the call itself.
    """

    call: Callable[[], None]
    steps: int = 1
    memory: Callable[[], int | None] = _no_memory
    compile_seconds: float | None = None
    warm: Callable[[], object] | None = None


class Measured(NamedTuple):
    """What the turns of one call showed.

    Attributes:
        seconds: Per step, one number per turn.
        memory: Bytes, the largest of the turns, as `Timed.memory` counts them.
        process: Bytes by which the process grew at most during a call, as the kernel counts them (Linux).
    """

    seconds: list[float]
    memory: int | None
    process: int | None


def take_turns(calls: Sequence[Timed], repeats: int) -> list[Measured]:
    """Measure every call `repeats` times in turn, after one of each, or what makes it ready, that is not counted.

    A machine that drifts slows all of them alike.
    """
    for one in calls:
        (one.warm or one.call)()
    found = [Measured([], None, None) for _ in calls]
    for _ in range(repeats):
        for i, one in enumerate(calls):
            time.sleep(REST_SECONDS)
            before = _restart_peak()
            began = time.perf_counter()
            one.call()
            found[i].seconds.append((time.perf_counter() - began) / one.steps)
            grown = None if before is None else _status("VmHWM") - before
            found[i] = Measured(
                found[i].seconds, _larger(found[i].memory, one.memory()), _larger(found[i].process, grown)
            )
    return found


def compared(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """First over second: the ratio of the medians, and the smallest and largest of the turns."""
    turns = [a / b for a, b in zip(first, second, strict=True)]
    return {"ratio": statistics.median(first) / statistics.median(second), "min": min(turns), "max": max(turns)}


def summary(measured: Measured, flops: float, rate: float) -> dict[str, Any]:
    """A row of the report: seconds per step, the rate of `flops` per step and its share of `rate` GFLOP/s, memory."""
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
    """The most memory that the process has held since the last call that was measured; None where unknown."""
    return _status("VmHWM") if STATUS.exists() else None


def _restart_peak() -> int | None:
    """Let the process's peak start again from what it holds now, and give that."""
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
