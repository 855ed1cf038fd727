"""Log of the commands that were run in a work directory, with their dates, versions and machines."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
from typing import Any

import jax

from ssdd_jax.runtime import devices, files
from ssdd_jax.runtime.version import __version__

FIELDS = ("command", "date", "ssdd_jax", "jax", "python", "machine")


def machine() -> str:
    """Describe the devices and the processor cores in a few words."""
    available = jax.devices()
    count = f"{len(available)} x " if len(available) > 1 and available[0].platform != "cpu" else ""
    return f"{count}{available[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}"


def note(path: pathlib.Path, command: str) -> None:
    """Append a command to a file of JSON lines; only the first of several processes writes.

    Args:
        path: The file.
        command: Command line, or the command line equivalent to a call from Python.
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
    """Read the logged commands in chronological order; damaged lines are skipped."""
    return [line for line in files.json_lines(path) if all(isinstance(line.get(field), str) for field in FIELDS)]
