"""Peak memory of a piece of work: resident on the host, and allocated on this process's devices."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import threading
from collections.abc import Iterator

import jax

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

SECONDS = 0.2
_STATUS = pathlib.Path("/proc/self/status")


@contextlib.contextmanager
def peaks() -> Iterator[dict[str, int]]:
    """Measure the peak memory within the context.

    The system reports the peak of the whole process. If that rises within the context, it is the result. Otherwise the
    memory in use is sampled every `SECONDS`; where only the process's peak is available, that is returned.

    Yields:
        A dictionary that is filled at the end of the context with bytes: `host`, and `device` (of the fullest one) if
        the devices report their memory.
    """
    result: dict[str, int] = {}
    before = _usage()
    sampled: dict[str, int] = {}
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SECONDS):
            for place, (current, _) in _usage().items():
                sampled[place] = max(sampled.get(place, 0), current)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield result
    finally:
        ended.set()
        thread.join()
        for place, (current, peak) in _usage().items():
            rose = peak > before.get(place, (0, 0))[1]
            result[place] = peak if rose else max(sampled.get(place, 0), current)


def _usage() -> dict[str, tuple[int, int]]:
    """Return, for `host` and `device`, the bytes in use now and the peak since the process started."""
    usage = {}
    if _STATUS.exists():
        lines = (line.split() for line in _STATUS.read_text().splitlines())
        sizes = {words[0]: 1024 * int(words[1]) for words in lines if words and words[0] in ("VmRSS:", "VmHWM:")}
        if "VmRSS:" in sizes:  # some containers hide the fields
            usage["host"] = sizes["VmRSS:"], sizes.get("VmHWM:", sizes["VmRSS:"])
    elif resource is not None:
        # macOS reports bytes, other systems kilobytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        usage["host"] = peak, peak
    # CPU devices report no statistics.
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    reported = [entry for entry in statistics if "peak_bytes_in_use" in entry]
    if reported:
        usage["device"] = (
            max(entry.get("bytes_in_use", 0) for entry in reported),
            max(entry["peak_bytes_in_use"] for entry in reported),
        )
    return usage


def readable(size: float) -> str:
    """Format bytes in kB, MB or GB of 1000."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:,.0f} kB"


def is_full(error: BaseException) -> bool:
    """Return whether an error of JAX or PyTorch says that a device's memory is full."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error)
