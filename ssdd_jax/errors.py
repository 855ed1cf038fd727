"""Exceptions of the package: an error that the user can fix, and a requested stop."""

from __future__ import annotations

from typing import Any


class UserError(ValueError):
    """Error that the user can fix; commands print it without a traceback and exit with status 2.

    The message is one line: what is wrong, where, and what to do.
    """


class StoredError(UserError):
    """Error of a file or folder of a run, whatever it computes.

    It is in use, of other settings, damaged, or cannot be written.
    """


class Stopped(KeyboardInterrupt):
    """Raised when a stop was requested, after the progress has been saved.

    It passes through `except Exception`, and through libraries, as Ctrl-C does: it says nothing of the work in which it
    happens to arrive.
    """


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Check an argument that is a whole number, of Python, NumPy or JAX.

    Args:
        name: Name of the argument.
        value: Its value; True and False are none.
        least: The smallest value.
        most: The largest value; None for no limit.

    Returns:
        The number.

    Raises:
        UserError: If it is not one, or out of range.
    """
    number = value.__index__() if hasattr(value, "__index__") and not isinstance(value, bool) else None
    if number is None or number < least or (most is not None and number > most):
        limits = f"of at least {least}" if most is None else f"between {least} and {most}"
        raise UserError(f"{name}={value!r} is out of range: it must be a whole number {limits}")
    return int(number)
