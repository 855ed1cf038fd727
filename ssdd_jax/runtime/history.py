"""What a run's folder remembers of its calls: the command, when it was given, and by what it was carried out."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
from typing import Any

import jax

from ssdd_jax.runtime import devices, files
from ssdd_jax.runtime.version import __version__


def machine() -> str:
    """The device and the processor cores in a few words."""
    found = jax.devices()
    count = f"{len(found)} x " if len(found) > 1 and found[0].platform != "cpu" else ""
    return f"{count}{found[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}"


def note(path: pathlib.Path, command: str) -> None:
    """Append a call to a file of JSON lines: the first of several processes does.

    Args:
        path: The file.
        command: What was typed, or what is equivalent to a call from Python.
    """
    if not devices.is_first():
        return
    line = {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "ssdd_jax": __version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "machine": machine(),
    }
    with files.saving(path):
        files.append_json_line(path, line)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The calls so far, the first one first; a line that a kill cut short is left out."""
    return files.read_json_lines(path)
