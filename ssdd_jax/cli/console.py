"""Behaviour shared by all commands: one-line error messages, and a clean stop that can be resumed."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from ssdd_jax.errors import Stopped, UserError

# Seconds after which a signal that was dropped is sent again.
AGAIN_SECONDS = 0.05
# Address space that loading SciPy with its OpenBLAS takes at most.
BLAS_BYTES, BLAS_BYTES_PER_CORE = 256 << 20, 64 << 20

# What a library says that could not get memory, a thread's stack or a place for its code.
_NO_MEMORY = ("std::bad_alloc", "Cannot allocate memory", "can't start new thread", "failed to map segment")
INTACT = "what was saved is intact"


class Parser(argparse.ArgumentParser):
    """Argument parser without abbreviations that raises `UserError` instead of exiting."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError` with the message."""
        raise UserError(f"{message}; --help shows what there is")


def answer(work: Callable[[], None], *, memory: str, name: str = "ssdd_jax") -> int:
    """Run a command and report its errors.

    Args:
        work: The command.
        memory: Settings to lower if the device's memory is full, for the error message.
        name: Prefix of lines on standard error.

    Returns:
        The exit status: 0, 1 if the output is not read any more, or 2 for an error that the user can fix.
    """
    # Names of files need not be UTF-8, and a terminal need not have every character: what it has not is escaped.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Signal handlers can be set only in the main thread; a command called from another thread runs without one.
    try:
        signal.signal(signal.SIGTERM, _stop)
    except ValueError:
        pass
    try:
        with _heard():
            _load_blas()
            work()
    except UserError as error:
        return _report(name, str(error))
    except (Stopped, KeyboardInterrupt) as stop:
        print(f"{name}: {str(stop) or 'stopped'}; the same command continues from there", file=sys.stderr)
    except BrokenPipeError:
        return _unread()
    except Exception as error:
        # First, as there may be too little to import anything.
        if is_full_memory(error) and "RESOURCE_EXHAUSTED" not in str(error):
            return _report(name, f"the machine's memory is full: end other programs, or lower {memory}; {INTACT}")
        from ssdd_jax.runtime import devices
        from ssdd_jax.runtime.files import is_full_disk

        if isinstance(error, OSError) and is_full_disk(error):
            return _report(name, f"no space left on the disk: {error}; free some and start the same command again")
        if "RESOURCE_EXHAUSTED" in str(error) and "memory" in str(error).lower():
            return _report(name, f"the device's memory is full: lower {memory}; {INTACT}")
        if words := devices.backend_missing(error) or devices.lost(error):
            return _report(name, words)
        if isinstance(error, PermissionError) and error.filename is not None:
            path = os.fsdecode(error.filename)
            return _report(
                name, f"{path}: {error.strerror}: check who may read it, and enter its folders, or name another"
            )
        if isinstance(error, RuntimeError) and "determine home directory" in str(error):
            return _report(name, "a path begins with ~ and a name that is no user's: check it, or write it in full")
        devices.report_failure(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")
        raise
    return _flushed()


def is_full_memory(error: BaseException) -> bool:
    """Return whether an error says that the machine, or the limit of this process, has no more memory."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def _load_blas() -> None:
    """Load SciPy's OpenBLAS while there is room for its buffers, if the address space is limited (`ulimit -v`).

    Where it finds none, it asks again without end: nothing would ever say that the memory is full.

    Raises:
        MemoryError: If there is too little room.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY or "scipy.linalg" in sys.modules:
        return
    try:
        mmap.mmap(-1, BLAS_BYTES + BLAS_BYTES_PER_CORE * (os.cpu_count() or 1)).close()
    except OSError as error:
        raise MemoryError(str(error)) from None
    importlib.import_module("scipy.linalg")


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Context in which no request to stop is lost; see `_hear`."""
    before = sys.unraisablehook
    _hear()
    try:
        yield
    finally:
        sys.unraisablehook = before


def _hear() -> None:
    """From now on, handle what Python only prints, with a traceback, since nobody can catch it.

    What a signal's handler raises while a finalizer or a callback of the garbage collector runs is dropped: the signal
    is sent again, to arrive elsewhere. After a read of a checkpoint that has failed, and was answered, TensorStore's
    threads still report to an event loop that is closed: that is nothing to say.
    """
    before = sys.unraisablehook

    def unraised(dropped: sys.UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, (Stopped, KeyboardInterrupt)):
            number = signal.SIGTERM if issubclass(dropped.exc_type, Stopped) else signal.SIGINT
            timer = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number))
            timer.daemon = True
            timer.start()
        elif not (dropped.object is None and str(dropped.exc_value) == "Event loop is closed"):
            before(dropped)

    sys.unraisablehook = unraised


def leave(main: Callable[[list[str]], int], arguments: list[str] | None) -> NoReturn:
    """Run a command with these arguments, by default those of the process, and exit with its status.

    Ctrl-C may come before the command has begun, while modules are imported, or after it has ended.
    """
    # Also after the work: a second Ctrl-C comes while the first one is answered, and threads of libraries end last.
    _hear()
    try:
        status = main(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("ssdd_jax: stopped before the command began, or after it ended", file=sys.stderr)
        status = 0
    # All is said and saved: a signal now could only interrupt how libraries end, with their tracebacks.
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(number, signal.SIG_IGN)
    # An interrupt that left an `exec`, as in the making of a dataclass while modules are imported, is remembered by
    # Python, which would end this process by SIGINT instead of with its status; the next `exec` forgets it.
    exec("")
    sys.exit(status)


def _flushed() -> int:
    """Write what is printed, before the interpreter fails to at its end; returns the exit status."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _unread()
    return 0


def _unread() -> int:
    """Discard what is still printed when whoever read the output has left, as `head` does; returns the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _report(name: str, line: str) -> int:
    """Print an error as one line on standard error; returns the exit status 2."""
    text = f"{name}: {' '.join(line.split())}"
    print(text, file=sys.stderr)
    if "ssdd_jax.runtime.devices" in sys.modules:  # otherwise there are no other processes yet
        sys.modules["ssdd_jax.runtime.devices"].report_failure(text)
    return 2


def _stop(*_: Any) -> None:
    """Handle SIGTERM: unwind like an exception, so that files are closed and locks released."""
    raise Stopped("stopped between two saved results")
