"""The two ways to end early: a mistake that a user can mend, and a stop that was asked for."""

from __future__ import annotations


class UserError(Exception):
    """Something a user can mend, told without a traceback, with exit status 2.

    The text is one line: what is wrong, where, and what to do.
    """


class Stopped(Exception):
    """The work was asked to stop, and what was done is saved."""
