"""The most memory that a piece of work held: resident on the host, and allocated on this process's devices."""

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
    """The most bytes held within, by place.

    A system keeps the highest value of a whole process: where that rises within, it is the answer. Where it does not,
    the work is looked at every `SECONDS`; a system that tells no more than the highest value gives that.

    Yields:
        A dictionary that is filled at the end: `host`, and `device` (of the fullest one) where devices tell.
    """
    found: dict[str, int] = {}
    before = _look()
    most: dict[str, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SECONDS):
            for place, (held, _) in _look().items():
                most[place] = max(most.get(place, 0), held)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        for place, (held, highest) in _look().items():
            rose = highest > before.get(place, (0, 0))[1]
            found[place] = highest if rose else max(most.get(place, 0), held)


def _look() -> dict[str, tuple[int, int]]:
    """By place, the bytes held now, and the most that were ever held."""
    found = {}
    if _STATUS.exists():
        lines = (line.split() for line in _STATUS.read_text().splitlines())
        sizes = {words[0]: 1024 * int(words[1]) for words in lines if words and words[0] in ("VmRSS:", "VmHWM:")}
        if "VmRSS:" in sizes:  # some containers tell less than Linux
            found["host"] = sizes["VmRSS:"], sizes.get("VmHWM:", sizes["VmRSS:"])
    elif resource is not None:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        found["host"] = most, most
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    known = [one for one in stats if "peak_bytes_in_use" in one]
    if known:
        found["device"] = (
            max(one.get("bytes_in_use", 0) for one in known),
            max(one["peak_bytes_in_use"] for one in known),
        )
    return found


def readable(size: float) -> str:
    """Format bytes in kB, MB or GB of 1000."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:,.0f} kB"
