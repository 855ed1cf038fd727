"""The errors that a user can mend: printed as one line, without a traceback, with exit status 2."""

from __future__ import annotations


class UserError(Exception):
    """Something a user can mend. The text is one line: what is wrong, where, and what to do."""
