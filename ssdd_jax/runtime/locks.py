"""Locks between processes, which the system releases when their holder ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Callable, Iterator

try:
    import fcntl
except ImportError:  # not on Windows, where the user must avoid two runs in one folder
    fcntl = None  # type: ignore[assignment]


class Busy(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def held(path: pathlib.Path, *, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock that a file stands for during the context; the file is created, and deleted at the end.

    The file may be written to, and renamed.

    Args:
        path: The file; its folder must exist.
        wait: Called before another holder is waited for. Without it nothing is waited for.

    Raises:
        Busy: If another process holds the lock and `wait` is None.
        OSError: If the file cannot be created.
    """
    said = False
    while True:
        file = open(path, "ab")
        if fcntl is None or _lock(file.fileno(), wait=False):
            # A holder deletes its file before it lets go: what is locked may be a file that is gone.
            if _is_at(file.fileno(), path):
                break
        elif wait is None:
            file.close()
            raise Busy(str(path))
        else:
            if not said:
                wait()
            said = True
            _lock(file.fileno(), wait=True)
        file.close()
    with file:
        try:
            yield
        finally:
            if _is_at(file.fileno(), path):  # not if it was renamed, and another has made a new one
                path.unlink(missing_ok=True)


def _lock(descriptor: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
            raise
    return True


def _is_at(descriptor: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
