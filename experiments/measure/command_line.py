"""Command lines of the experiments: options of the form --name=value, each read by a function of its own."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ssdd_jax.cli import console
from ssdd_jax.errors import UserError

Kind = Callable[[str], Any]


def whole(text: str) -> int:
    """Read a whole number of at least 0; raises a ValueError for anything else."""
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)


def count(text: str) -> int:
    """Read a whole number of at least 1; raises a ValueError for anything else."""
    return whole(text) or whole("")


def wholes(text: str) -> tuple[int, ...]:
    """Read whole numbers of at least 0, separated by commas; raises a ValueError for anything else."""
    return tuple(map(whole, text.split(",")))


def counts(text: str) -> tuple[int, ...]:
    """Read different numbers of at least 1, separated by commas, and sort them; raises a ValueError for others."""
    return tuple(sorted(set(map(count, text.split(",")))))


def text(value: str) -> str:
    """Read any text but an empty one; raises a ValueError for that."""
    if not value:
        raise ValueError("empty")
    return value


def names(known: Collection[str], what: str) -> Kind:
    """Return a reader of one or several different names, separated by commas.

    Args:
        known: The names that there are.
        what: What they name, for the message about another.
    """

    def read(value: str) -> tuple[str, ...]:
        found = tuple(dict.fromkeys(filter(None, value.split(","))))
        unknown = [name for name in found if name not in known]
        if unknown:
            raise UserError(f"unknown {what} {unknown[0]!r}: there are {', '.join(known)}")
        if not found:
            raise UserError(f"no {what} is named: there are {', '.join(known)}")
        return found

    return read


def read(
    arguments: Sequence[str], kinds: Mapping[str, Kind | None], usage: str, *, config: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Read a command line.

    Args:
        arguments: The arguments.
        kinds: Readers of the options by name, without dashes; None for one that has no value.
        usage: The options that are known, for the message about another.
        config: Whether arguments `--config.KEY=VALUE` are passed on.

    Returns:
        The values of the options that are given, by name, and the arguments that are passed on.

    Raises:
        UserError: If an argument is not understood.
    """
    values: dict[str, Any] = {}
    changes = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        name = option.removeprefix("--")
        if config and option.startswith("--config.") and equals:
            changes.append(argument)
        elif option == f"--{name}" and name in kinds and bool(equals) == (kinds[name] is not None):
            values[name] = _value(argument, kinds[name], value, usage)
        else:
            raise UserError(f"cannot read {argument!r}: {usage}")
    return values, changes


def by_key(changes: Sequence[str]) -> dict[str, str]:
    """Return changes of the config, `--config.KEY=VALUE`, by key; of repeated ones the last counts."""
    pairs = (change.removeprefix("--config.").partition("=") for change in changes)
    return {key: value for key, _, value in pairs}


def _value(argument: str, kind: Kind | None, value: str, usage: str) -> Any:
    if kind is None:
        return True
    try:
        return kind(value)
    except UserError:
        raise
    except ValueError:
        raise UserError(f"cannot read {argument!r}: {usage}") from None


def folder(workdir: str, command: str, config: str) -> pathlib.Path:
    """Return the folder of a command's results: the given one, or one named after the command and the config file."""
    path, _, edition = config.partition(":")
    name = "-".join(filter(None, (command, pathlib.Path(path).stem, edition)))
    return pathlib.Path(workdir or f"runs/{name}").expanduser()


def warnings_once() -> Callable[[str], None]:
    """Return a function for the messages of many runs that prints those on teacher and checkpoints once."""
    said = set()

    def say(line: str) -> None:
        if line.startswith(("teacher:", "gate:", "checkpoint")) and line not in said:
            said.add(line)
            print(line, flush=True)

    return say


def run(
    arguments: Sequence[str], page: str | None, work: Callable[[Sequence[str]], Any], *, memory: str, name: str
) -> int:
    """Print the page of a command if its arguments ask for help; otherwise do its work.

    Args:
        arguments: The command line.
        page: The help.
        work: What the command does with its arguments. Returns what it found wrong, if anything.
        memory: What to lower if memory runs out.
        name: The command's, which starts the line of an error.

    Returns:
        The exit status: 1 if something was found.
    """
    found: list[Any] = []

    def answer() -> None:
        if "--help" in arguments or "-h" in arguments:
            print(page)
        else:
            found.append(work(arguments))

    status = console.answer(answer, memory=memory, name=name)
    return status or int(any(found))
