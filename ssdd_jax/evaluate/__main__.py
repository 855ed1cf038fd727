"""The command line: `python -m ssdd_jax.evaluate --set=PATH [--models=A,B] [--targets=A,B] [--protocol=A,B]`."""

from __future__ import annotations

import contextlib
import difflib
import re
import textwrap
from typing import Any, NoReturn

HELP = """\
usage: python -m ssdd_jax.evaluate --set=PATH [--models=A,B] [--targets=A,B] [--protocol=A,B] [--seeds=N] ...

Train networks on a distilled set and on its baselines, and evaluate them. `ssdd evaluate` is the same command.

  --set=PATH               distilled set to evaluate: a run's distilled/, a ready-made set such as digits-n20,
                           hf://OWNER/NAME, KRR-ST's x_syn.pt and y_syn.pt, images with features, or an .npz; separate
                           several by commas; NAME=PATH names a row.
                           Default runs/digits/distilled
  --models=A,B             architectures: {models};
                           with custom widths: convnet_16_32_64_bn (or _in), resnet18_16
  --targets=A,B            labelled data sets: {targets},
                           digits, tfds:NAME, folder:PATH, npz:PATH, npy:PATH; default the data that the set was
                           distilled from
  --protocol=A,B           evaluation protocols: {protocols}
  --references=A,B         baselines: {references}, or none; chance is always added
  --seeds=N                networks per row
  --edition=NAME           preset of default values: {editions}; default digits for sets of digits, else paper
                           on an accelerator and cpu, with narrower networks and fewer steps, on a CPU
  --source=RUN             folder of the run that distilled the set, from which its data and teacher are loaded; default
                           the folder that contains the set. Or the name of a data set, with --features=FILE. Or none
  --workdir=DIR            folder of the cached results and of evaluation.json, .md and .png;
                           default {workdir}
  --help                   print this page

All other settings, with their defaults in the edition paper and the source of each default:
{settings}

Examples:
  python -m ssdd_jax.evaluate
  python -m ssdd_jax.evaluate --set=runs/cifar100/distilled --models=convnet,resnet18,vit_tiny \\
      --targets=cifar100,cifar10,stanford_dogs --protocol=linear,finetune,few_labels --seeds=5 --data_dir=DIR
  python -m ssdd_jax.evaluate --set=ours=runs/a/distilled,theirs=krr_st_folder --source=runs/a
"""
DEFAULT = "runs/digits/distilled"
LISTS = ("sets", "models", "targets", "protocols", "references")
WORDS = ("source", "edition", "workdir")
ALIASES = {"set": "sets", "protocol": "protocols", "model": "models", "target": "targets"}


def main(arguments: list[str]) -> int:
    """Run the command line.

    Args:
        arguments: Command-line arguments without the program's name.

    Returns:
        The exit status: 0, or 2 for a user's mistake, which is reported in one line.
    """
    from ssdd_jax.cli import console

    return console.answer(lambda: _run(arguments), memory="--together to 1")


def _run(arguments: list[str]) -> None:

    import os
    import pathlib

    import jax

    from ssdd_jax.data import targets
    from ssdd_jax.evaluate import api, entries, options
    from ssdd_jax.evaluate.protocols import table as protocols
    from ssdd_jax.models import architectures

    if "--help" in arguments or "-h" in arguments:
        lists: dict[str, list[str]] = {
            "models": list(architectures.ARCHITECTURES),
            "targets": list(targets.NAMES),
            "protocols": list(protocols.PROTOCOLS),
            "references": list(entries.REFERENCES),
            "editions": list(options.EDITIONS),
        }
        indent = "\n" + 27 * " "
        words = {key: indent.join(textwrap.wrap(", ".join(names), 90)) for key, names in lists.items()}
        print(HELP.format(**words, workdir=api.WORKDIR, settings=options.page()))
        return
    options_given = parse(arguments)
    workdir = pathlib.Path(options_given.setdefault("workdir", api.WORKDIR)).expanduser()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # Programs compiled for one target or seed are reused by the next command.
        jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").absolute()))
    sets = options_given.pop("sets", DEFAULT)
    table = api.write(api.evaluate(sets, **options_given), workdir)
    print(f"\n{table}\n\nevaluation.json, .md and .png are in {workdir}", flush=True)


def parse(arguments: list[str]) -> dict[str, Any]:
    """Parse a command line into keyword arguments of `evaluate`.

    Args:
        arguments: Command-line arguments without the program's name.

    Returns:
        Values by the names of `evaluate`'s parameters and of the settings; options that are not set are absent.

    Raises:
        UserError: If an option is unknown, has no value, or has a value of the wrong type.
    """
    from ssdd_jax.errors import UserError
    from ssdd_jax.evaluate.options import Options

    settings = Options._field_defaults
    parsed: dict[str, Any] = {}
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        name = ALIASES.get(name, name)
        if not argument.startswith("--") or name not in (*LISTS, *WORDS, "seeds", *settings):
            near = difflib.get_close_matches(name, [*ALIASES, *LISTS, *WORDS, "seeds", *settings], n=1)
            hint = f": did you mean --{near[0]}?" if near else "; --help shows what there is"
            raise UserError(f"unknown option {argument!r}{hint}")
        if not equals or (not value and name not in settings):
            raise UserError(f"--{name} has no value: write --{name}=VALUE")
        if name in LISTS:
            parsed[name] = [part for part in value.split(",") if part]
        else:
            parsed[name] = value if name in WORDS else _converted(name, value, settings.get(name, 1))
    if parsed.get("references") == ["none"]:
        parsed["references"] = []
    # NAME=PATH: a path may contain "=" itself, so only a name without a slash counts.
    matches = [re.fullmatch(r"([\w .+-]+)=(.+)", path) for path in parsed.get("sets", ())]
    if any(matches):
        items = zip(matches, parsed["sets"], strict=True)
        pairs = [(match[1], match[2]) if match else (path, path) for match, path in items]
        if len({name for name, _ in pairs}) < len(pairs):
            raise UserError("two sets have one name: give each set a different name, as in --set=A=PATH,B=PATH")
        parsed["sets"] = dict(pairs)
    if parsed.get("seeds", 1) < 1:
        raise UserError(f"--seeds={parsed['seeds']} is out of range: it must be at least 1")
    return parsed


def _converted(name: str, text: str, default: Any) -> Any:
    """Convert the text of a setting to the type of its default."""
    from ssdd_jax.errors import UserError

    if isinstance(default, bool):  # before the general case: bool("False") is True
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif isinstance(default, str):
        return text
    elif isinstance(default, tuple):
        with contextlib.suppress(ValueError):
            return tuple(float(part) for part in text.split(","))
        raise UserError(f"--{name}={text} is not a list of numbers, such as --{name}=1e-4,1e-3")
    else:
        with contextlib.suppress(ValueError):
            return type(default)(text)
    kind = type(default).__name__
    raise UserError(f"--{name}={text} is not {'an' if kind == 'int' else 'a'} {kind}")


def cli(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line with these arguments, by default those of the process, and exit with its status."""
    from ssdd_jax.cli import console

    console.leave(main, arguments)


if __name__ == "__main__":
    cli()
