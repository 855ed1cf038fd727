"""What a run's folder remembers of its calls: the command, when it was given, and by what it was carried out."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
import shlex
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

import ssdd_jax
from ssdd_jax import config as configuration
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import devices, files

PROGRAM = ("python", "-m", "ssdd_jax.main")


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
        "ssdd_jax": ssdd_jax.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "machine": machine(),
    }
    with files.saving(path):
        files.append_json_line(path, line)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The calls so far, the first one first; a line that a kill cut short is left out."""
    return files.read_json_lines(path)


def typed(arguments: Sequence[str]) -> str:
    """The command line that has these arguments after the program's name."""
    return shlex.join([*PROGRAM, *arguments])


def equivalent(
    config: ConfigDict, workdir: str | os.PathLike[str], shared: str | os.PathLike[str] | None = None
) -> str:
    """The command line that does what a call from Python did.

    Of the configs that come with the package, and the editions of the config's method, it begins with the one that has
    the fewest values to be changed.

    Args:
        config: The run's config.
        workdir: The run's folder.
        shared: The folder that it shares with other runs, if any.
    """
    wanted = configuration.flatten(config)
    files_ = sorted({file.name for folder in configuration.shipped_folders() for file in folder.glob("*.py")})
    editions = ["", *(name for name, own in configuration.EDITIONS.items() if own.get("method") == config.method)]
    starts = [f"--config=configs/{file}{':' * bool(edition)}{edition}" for file in files_ for edition in editions]
    least = min((line for start in starts if (line := _changed(start, wanted))), key=len)
    folders = [f"--workdir={workdir}", *([f"--shared={shared}"] if shared is not None else [])]
    return typed([*least, *folders])


def _changed(start: str, wanted: dict[str, Any]) -> list[str]:
    """The arguments that lead from a shipped config to the wanted values; none if it cannot be read without more."""
    from ssdd_jax.cli import arguments as commandline

    try:
        found = configuration.flatten(commandline.parse([start]).config)
    except UserError:
        return []
    return [start, *(f"--config.{key}={_text(value)}" for key, value in wanted.items() if found.get(key) != value)]


def _text(value: Any) -> str:
    return repr(tuple(value)) if isinstance(value, list) else str(value)
