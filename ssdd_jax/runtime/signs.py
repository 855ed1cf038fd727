"""Signs of life: what a long compiled computation has done so far, counted from inside of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Count:
    """Progress of a computation in a context of `counting`: a number, and a text that says it."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.done, self.text = 0, ""


_counts: list[Count] = []


@contextlib.contextmanager
def counting() -> Iterator[Count]:
    """Context whose value is what `count` has been told in it, the innermost first."""
    own = Count()
    _counts.append(own)
    try:
        yield own
    finally:
        _counts.remove(own)


def count(what: str, total: int, _: object = None) -> None:
    """Count one more; a callback for `jax.debug.callback`.

    Args:
        what: What is counted, in the plural, such as `models trained`.
        total: How many there will be.
        _: A value of the computation, so that this is called when it is known.
    """
    for own in _counts[-1:]:
        own.done += 1
        own.text = f"{min(own.done, total)} of {total} {what}"
