"""Reading the command line: a config file, changes to it, and where to write."""

from __future__ import annotations

import inspect
import os
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from ssdd_jax import config as configuration
from ssdd_jax.errors import UserError

PROGRAM = ("python", "-m", "ssdd_jax.main")
DEFAULT = "configs/digits.py"
FOLDER = "folder.py"  # whose argument begins with a path
NAMES = ("config", "workdir", "shared", "stage", "dry_run")
# Those that mean `true` where they stand alone.
SWITCHES = ("dry_run",)


class Options(NamedTuple):
    """What the command line says: the config with its changes, the folders, the last stage, whether only to plan."""

    config: ConfigDict
    workdir: pathlib.Path
    shared: pathlib.Path | None
    stage: str
    dry_run: bool = False


def parse(arguments: list[str]) -> Options:
    """Read the arguments after the program's name.

    Raises:
        UserError: If one is unknown, has no value, or has a value of the wrong type.
    """
    arguments = _with_method(_located(_joined(arguments)))
    _check_keys(arguments)
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["ssdd_jax", *arguments])
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    flags.DEFINE_string("shared", "", "", flag_values=values)
    flags.DEFINE_string("stage", "report", "", flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "", flag_values=values)
    try:
        rest = values(["ssdd_jax", *arguments])[1:]
    except UserError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, SyntaxError, ImportError) as error:
        raise UserError(_explained(arguments, error)) from None
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; --help shows what there is")
    chosen = config.value
    if not isinstance(chosen, ConfigDict):
        raise UserError(f"{_named(arguments)}: get_config must return an ml_collections.ConfigDict")
    chosen.lock()
    configuration.validate(chosen)
    workdir = pathlib.Path(values.workdir or _workdir(arguments)).expanduser()
    shared = pathlib.Path(values.shared).expanduser() if values.shared else None
    return Options(chosen, workdir, shared, values.stage, values.dry_run)


def _joined(arguments: list[str]) -> list[str]:
    """`--name value` as `--name=value`, and everything but options refused."""
    joined, waiting = [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("--"):
            raise UserError(f"unexpected argument {argument!r}; --help shows what there is")
        name = argument[2:].split("=")[0]
        if name not in NAMES and not name.startswith("config."):
            raise UserError(f"unknown option --{name}: there are --{', --'.join(NAMES)} and --config.KEY")
        if "=" not in argument:
            if name in SWITCHES:
                joined.append(f"{argument}=true")
                continue
            if not waiting:
                raise UserError(f"option {argument} needs a value: {argument}=...")
            argument = f"{argument}={waiting.pop(0)}"
        joined.append(argument)
    return joined


def _located(arguments: list[str]) -> list[str]:
    """With a config file that exists; the default one if none is named."""
    if not any(argument.startswith("--config=") for argument in arguments):
        arguments = [f"--config={DEFAULT}", *arguments]
    return [
        f"--config={configuration.find(argument.partition('=')[2])}" if argument.startswith("--config=") else argument
        for argument in arguments
    ]


def _with_method(arguments: list[str]) -> list[str]:
    """`--config.method=krr_st` brings the method's own settings too: it is the edition of that name."""
    methods = [a.partition("=")[2] for a in arguments if a.startswith("--config.method=")]
    path, _, edition = _named(arguments).partition(":")
    if _is_folder(path):
        edition = configuration.folder_argument(edition)[1]
    named = edition.split(",") if edition else []
    if not methods or not _is_shipped(path) or any(name in configuration.EDITIONS for name in named):
        return arguments
    if methods[-1] not in configuration.EDITIONS:
        return arguments  # refused, if there is no such method either, where the method is made
    _, _, argument = _named(arguments).partition(":")
    whole = f"--config={path}:{','.join([*filter(None, [argument]), methods[-1]])}"
    others = [argument for argument in arguments if not argument.startswith(("--config=", "--config.method="))]
    return [whole, *others]


def _is_shipped(path: str) -> bool:
    return pathlib.Path(path).parent.resolve() in [folder.resolve() for folder in configuration.shipped_folders()]


def _is_folder(path: str) -> bool:
    """Whether this is the config for a folder of photographs, not a file of the user's that has its name."""
    return pathlib.Path(path).name == FOLDER and _is_shipped(path)


def _named(arguments: list[str]) -> str:
    return next(a.partition("=")[2] for a in arguments if a.startswith("--config="))


def _workdir(arguments: list[str]) -> pathlib.Path:
    path, _, edition = _named(arguments).partition(":")
    name = pathlib.Path(path).stem
    if _is_folder(path):
        folder, method = configuration.folder_argument(edition)
        edition = ",".join(filter(None, [folder.name, method]))
    safe = re.sub(r"[^\w.-]+", "-", edition).strip("-")
    return pathlib.Path("runs") / (f"{name}-{safe}" if safe else name)


def _check_keys(arguments: list[str]) -> None:
    """Every key that is changed must exist."""
    known = list(configuration.flatten(configuration.default()))
    for argument in arguments:
        key = argument[2:].partition("=")[0].removeprefix("config.")
        if argument.startswith("--config.") and key not in known:
            raise UserError(f"unknown config key config.{key}{_nearest(key, known)}")


def _explained(arguments: list[str], error: Exception) -> str:
    """One line for what went wrong: by the key whose value is of the wrong type, if that is it."""
    base = configuration.default()
    for argument in arguments:
        name, _, text = argument[2:].partition("=")
        if argument.startswith("--config.") and f"{name}={text}" in str(error):
            kind = type(configuration.get(base, name.removeprefix("config."))).__name__
            return f"{name}={text!r} is not {'an' if kind == 'int' else 'a'} {kind}"
    if "Traceback" in str(error):  # of an error that the config file raised: its last line says it
        error = Exception(str(error).strip().splitlines()[-1].partition(": ")[2])
    return f"{_named(arguments)}: {error}"


def _nearest(key: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f": did you mean config.{near[0]}?" if near else "; --help_config lists them all"


def shipped_configs() -> str:
    """The configs that come with the package, a line each: name, and what its docstring begins with."""
    lines = []
    for folder in configuration.shipped_folders()[:1]:
        for file in sorted(folder.glob("*.py")):
            first = file.read_text().split('"""')[1].strip().splitlines()[0]
            lines.append(f"    configs/{file.name:<16} {first}")
    return "\n".join(lines)


def config_page() -> str:
    """Every key as `config.default` writes it: default, and what it means."""
    source = inspect.getsource(configuration.default)
    lines = [re.sub(r"^    ", "", line) for line in source.splitlines()]
    begin = next(i for i, line in enumerate(lines) if line.startswith("config.seed"))
    page, group = [], ""
    for line in lines[begin:]:
        header = re.match(r"config\.(\w+) = \w+ = ConfigDict\(\)", line)
        if header:
            group = header.group(1)
            continue
        if line.startswith("return"):
            break
        if group and line.startswith(f"{group}."):
            line = f"config.{line}"
        page.append(f"--{line}" if line else line)
    return "\n".join(page)


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
    try:
        found = configuration.flatten(parse([start]).config)
    except UserError:
        return []
    return [start, *(f"--config.{key}={_text(value)}" for key, value in wanted.items() if found.get(key) != value)]


def _text(value: Any) -> str:
    return repr(tuple(value)) if isinstance(value, list) else str(value)
