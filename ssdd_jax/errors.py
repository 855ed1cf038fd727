"""Exceptions of the package: an error that the user can fix, and a requested stop."""

from __future__ import annotations


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
