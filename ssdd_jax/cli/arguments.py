"""Command-line arguments of a run: a config file, changes to it, and the output folders."""

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
FOLDER = "folder.py"  # its argument begins with a path
NAMES = ("config", "workdir", "shared", "stage", "tensorboard", "dry_run")
# Options that need no value: alone they mean `true`.
SWITCHES = ("tensorboard", "dry_run")
TRUE_OR_FALSE = ("true", "false", "t", "f", "1", "0")  # as absl reads them


class Options(NamedTuple):
    """Parsed command line.

    Attributes:
        config: The config with its changes applied.
        workdir: Folder of the run.
        shared: Folder shared with other runs, if any.
        stage: Last stage to run.
        tensorboard: Write event files for TensorBoard.
        dry_run: Only predict the costs.
    """

    config: ConfigDict
    workdir: pathlib.Path
    shared: pathlib.Path | None
    stage: str
    tensorboard: bool = False
    dry_run: bool = False


def parse(arguments: list[str]) -> Options:
    """Parse the arguments after the program's name.

    Raises:
        UserError: If an argument is unknown, has no value, or has a value of the wrong type.
    """
    # Normalised and checked first: the errors of absl and ml_collections span many lines and name internals.
    arguments = _with_method(_located(_last(_joined(arguments))))
    _check_keys(arguments)
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["ssdd_jax", *arguments])
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    flags.DEFINE_string("shared", "", "", flag_values=values)
    flags.DEFINE_string("stage", "report", "", flag_values=values)
    for name in SWITCHES:
        flags.DEFINE_boolean(name, False, "", flag_values=values)
    try:
        rest = values(["ssdd_jax", *arguments])[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, SyntaxError, ImportError) as error:
        raise _raised_by_config(error) or UserError(_explain(arguments, error)) from None
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; --help shows what there is")
    chosen = config.value
    if not isinstance(chosen, ConfigDict):
        raise UserError(f"{_config_file(arguments)}: get_config must return an ml_collections.ConfigDict")
    chosen.lock()
    configuration.validate(chosen)
    workdir = pathlib.Path(values.workdir or _workdir(arguments)).expanduser()
    shared = pathlib.Path(values.shared).expanduser() if values.shared else None
    return Options(chosen, workdir, shared, values.stage, values.tensorboard, values.dry_run)


def _joined(arguments: list[str]) -> list[str]:
    """Rewrite `--name value` as `--name=value`; arguments that are not options are refused."""
    joined, remaining = [], list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("--"):
            raise UserError(f"unexpected argument {argument!r}; --help shows what there is")
        name = argument[2:].split("=")[0]
        if name not in NAMES and not name.startswith("config."):
            raise UserError(f"unknown option --{name}: there are --{', --'.join(NAMES)} and --config.KEY")
        if "=" not in argument:
            if name in SWITCHES:
                joined.append(f"{argument}=true")
                continue
            if not remaining:
                raise UserError(f"option {argument} needs a value: {argument}=...")
            argument = f"{argument}={remaining.pop(0)}"
        if name in SWITCHES and argument.partition("=")[2].lower() not in TRUE_OR_FALSE:
            raise UserError(f"cannot read {argument!r}: --{name} alone turns it on, and --{name}=false off")
        joined.append(argument)
    return joined


def _last(arguments: list[str]) -> list[str]:
    """Keep the last of several values of one key; ml_collections would append those of a tuple to each other."""
    by_key = {argument.partition("=")[0]: number for number, argument in enumerate(arguments)}
    return [argument for number, argument in enumerate(arguments) if by_key[argument.partition("=")[0]] == number]


def _located(arguments: list[str]) -> list[str]:
    """Put the config first, as the path of an existing file: the one that is named, or the default."""
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")]
    others = [argument for argument in arguments if not argument.startswith("--config=")]
    # Types of values are known from the config, and the values are read in turn.
    return [f"--config={configuration.find(named[-1] if named else DEFAULT)}", *others]


def _with_method(arguments: list[str]) -> list[str]:
    """Turn `--config.method=krr_st` into the edition of that name, which also has the method's settings.

    Editions are presets of a config, named after a colon: `--config=configs/digits.py:krr_st`.
    """
    methods = [a.partition("=")[2] for a in arguments if a.startswith("--config.method=")]
    path, _, edition = _config_file(arguments).partition(":")
    if _is_folder(path):
        edition = configuration.folder_argument(edition)[1]
    # A user's config need not have editions, and an explicit edition takes precedence.
    editions = edition.split(",") if edition else []
    if not methods or not _is_shipped(path) or any(name in configuration.EDITIONS for name in editions):
        return arguments
    if methods[-1] not in configuration.EDITIONS:
        return arguments  # an unknown method is refused when the method is created
    _, _, argument = _config_file(arguments).partition(":")
    config_argument = f"--config={path}:{','.join([*filter(None, [argument]), methods[-1]])}"
    others = [argument for argument in arguments if not argument.startswith(("--config=", "--config.method="))]
    return [config_argument, *others]


def _is_shipped(path: str) -> bool:
    return pathlib.Path(path).parent.resolve() in [folder.resolve() for folder in configuration.shipped_folders()]


def _is_folder(path: str) -> bool:
    """Return whether this is the shipped config for a folder of photographs, not a user's file of the same name."""
    return pathlib.Path(path).name == FOLDER and _is_shipped(path)


def _config_file(arguments: list[str]) -> str:
    """Return the value of `--config`: the file, and its argument after a colon."""
    return next(a.partition("=")[2] for a in arguments if a.startswith("--config="))


def _workdir(arguments: list[str]) -> pathlib.Path:
    """Derive the default run folder from the config's name and edition."""
    path, _, edition = _config_file(arguments).partition(":")
    name = pathlib.Path(path).stem
    if _is_folder(path):
        folder, method = configuration.folder_argument(edition)
        edition = ",".join(filter(None, [folder.name, method]))
    safe = re.sub(r"[^\w.-]+", "-", edition).strip("-")
    return pathlib.Path("runs") / (f"{name}-{safe}" if safe else name)


def _check_keys(arguments: list[str]) -> None:
    """Raise a UserError if a changed key does not exist."""
    keys = list(configuration.flatten(configuration.default()))
    for argument in arguments:
        key = argument[2:].partition("=")[0].removeprefix("config.")
        if argument.startswith("--config.") and key not in keys:
            raise UserError(f"unknown config key config.{key}{_nearest(key, keys)}")
    typed = dict(argument[2:].split("=", 1) for argument in arguments if argument.startswith("--config."))
    if "config.storage.N" in typed and typed.get("config.storage.bytes", "0") != "0":
        raise UserError("config.storage.N and config.storage.bytes are two budgets: give one of them")


def _explain(arguments: list[str], error: Exception) -> str:
    """Describe a parsing error in one line, naming the key if its value has the wrong type."""
    base = configuration.default()
    for argument in arguments:
        name, _, text = argument[2:].partition("=")
        if argument.startswith("--config.") and f"{name}={text}" in str(error):
            kind = type(configuration.get(base, name.removeprefix("config."))).__name__
            return f"{name}={text!r} is not {'an' if kind == 'int' else 'a'} {kind}"
    if "Traceback" in str(error):  # the config file raised an error: the last line of its traceback is the message
        error = Exception(str(error).strip().splitlines()[-1].partition(": ")[2])
    return f"{_config_file(arguments)}: {error}"


def _raised_by_config(error: BaseException | None) -> UserError | None:
    """Return the UserError that a config file raised, out of the errors that absl and ml_collections make of it."""
    while error is not None:
        # ml_collections repeats the type of the error, with a traceback as its message.
        if isinstance(error, UserError) and "Traceback" not in str(error):
            return error
        error = error.__cause__ or error.__context__
    return None


def _nearest(key: str, keys: list[str]) -> str:
    """Return a hint for an unknown key: the most similar one, or how to list them all."""
    import difflib

    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    return f": did you mean config.{close[0]}?" if close else "; --help_config lists them all"


def shipped_configs() -> str:
    """List the configs that come with the package, one per line: name and first line of the docstring."""
    lines = []
    for folder in configuration.shipped_folders()[:1]:
        for file in sorted(folder.glob("*.py")):
            first = file.read_text(encoding="utf-8").split('"""')[1].strip().splitlines()[0]
            lines.append(f"    configs/{file.name:<16} {first}")
    return "\n".join(lines)


def config_page() -> str:
    """List every config key with its default and comment, extracted from the source of `config.default`."""
    source = inspect.getsource(configuration.default)
    lines = [re.sub(r"^    ", "", line) for line in source.splitlines()]
    begin = next(i for i, line in enumerate(lines) if line.startswith("config.seed"))
    page, group = [], ""
    for line in lines[begin:]:
        header = re.match(r"config\.(\w+) = \w+ = ConfigDict\(\)(?:  # (.*))?", line)
        if header:
            group = header.group(1)
            if header.group(2):
                page.append(f"# {group}: {header.group(2)}")
            continue
        if line.startswith("return"):
            break
        if group and line.startswith(f"{group}."):
            line = f"config.{line}"
        page.append(line if not line or line.startswith("#") else f"--{line}")
    return "\n".join(page)


def typed(arguments: Sequence[str]) -> str:
    """Return the command line with these arguments, quoted for a shell."""
    return shlex.join([*PROGRAM, *arguments])


def equivalent(
    config: ConfigDict, workdir: str | os.PathLike[str], shared: str | os.PathLike[str] | None = None
) -> str:
    """Return the command line that is equivalent to a call from Python.

    It starts from the config, among those that come with the package and the editions of the config's method, that
    requires the fewest changes.

    Args:
        config: The run's config.
        workdir: The run's folder.
        shared: The folder that the run shares with others, if any.
    """
    values = configuration.flatten(config)
    names = sorted({file.name for folder in configuration.shipped_folders() for file in folder.glob("*.py")})
    editions = ["", *(name for name, preset in configuration.EDITIONS.items() if preset.get("method") == config.method)]
    bases = [f"--config=configs/{name}{':' * bool(edition)}{edition}" for name in names for edition in editions]
    shortest = min((line for base in bases if (line := _changed(base, values))), key=len)
    folders = [f"--workdir={workdir}", *([f"--shared={shared}"] if shared is not None else [])]
    return typed([*shortest, *folders])


def _changed(base: str, values: dict[str, Any]) -> list[str]:
    """Return the arguments that turn a shipped config into `values`; none if the config requires an argument."""
    try:
        original = configuration.flatten(parse([base]).config)
    except UserError:
        return []
    return [base, *(f"--config.{key}={_text(value)}" for key, value in values.items() if original.get(key) != value)]


def _text(value: Any) -> str:
    return repr(tuple(value)) if isinstance(value, list) else str(value)
