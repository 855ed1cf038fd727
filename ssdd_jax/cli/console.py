"""What every command has in common: mistakes are told in one line, and what is stopped can be continued."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ssdd_jax.errors import Stopped, UserError


class Parser(argparse.ArgumentParser):
    """A command's options, without abbreviations; what is wrong with them is a `UserError`."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise UserError(f"{message}; --help shows what there is")


def answer(work: Callable[[], None], *, memory: str, name: str = "ssdd_jax") -> int:
    """Do a command's work.

    Args:
        work: What the command does.
        memory: What to lower where the device's memory is full.
        name: What lines on standard error begin with.

    Returns:
        The exit status: 0, or 2 for a mistake that a user can mend.
    """
    # A handler belongs to the main thread, and so does every command but one that is called from elsewhere.
    try:
        signal.signal(signal.SIGTERM, _stop)
    except ValueError:
        pass
    try:
        work()
    except UserError as error:
        return _tell(name, str(error))
    except (Stopped, KeyboardInterrupt) as stop:
        print(f"{name}: {str(stop) or 'stopped'}; the same command continues from there", file=sys.stderr)
    except Exception as error:
        from ssdd_jax.runtime.files import is_full_disk

        if isinstance(error, OSError) and is_full_disk(error):
            return _tell(name, f"no space left on the disk: {error}; free some and start the same command again")
        if "RESOURCE_EXHAUSTED" in str(error) and "memory" in str(error).lower():
            return _tell(name, f"the device's memory is full: lower {memory}; what was saved is intact")
        raise
    return 0


def _tell(name: str, line: str) -> int:
    print(f"{name}: {' '.join(line.split())}", file=sys.stderr)
    return 2


def _stop(*_: Any) -> None:
    raise Stopped("stopped between two saved results")
