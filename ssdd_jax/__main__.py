"""The command `ssdd`, or `python -m ssdd_jax`: runs one of the package's commands."""

from __future__ import annotations

import difflib
import importlib
import sys

from ssdd_jax.cli import console
from ssdd_jax.errors import UserError
from ssdd_jax.runtime.version import __version__

# Commands by name: the module that is imported to run one, and its purpose.
COMMANDS = {
    "run": ("ssdd_jax.main", "distil images and evaluate the result: teacher, features, distillation, table, report"),
    "evaluate": ("ssdd_jax.evaluate.__main__", "train networks on distilled sets and on baselines, and test them"),
    "export": ("ssdd_jax.export", "convert a set to another format, or upload it"),
    "report": ("ssdd_jax.report.__main__", "write an HTML page about one finished run, or a comparison of several"),
}
HELP = """\
usage: ssdd COMMAND [OPTIONS]

Self-supervised dataset distillation: a large unlabelled image set in, a tiny set of images and target features out.

{commands}

ssdd COMMAND --help lists the options of a command. Without the script: python -m ssdd_jax COMMAND, or the modules
ssdd_jax.main (run), ssdd_jax.evaluate, ssdd_jax.export and ssdd_jax.report.

  --version  print the version
  --help     print this page

Examples:
  ssdd run
  ssdd evaluate --set=runs/digits/distilled
  ssdd export --set=runs/digits/distilled --form=png
  ssdd report runs/digits
"""


def main(arguments: list[str]) -> int:
    """Run a command.

    Args:
        arguments: Command-line arguments without the program's name; the first names the command.

    Returns:
        The exit status of the help page, or 2 for an unknown command, reported in one line. A command does not return:
        it exits with its own status.
    """
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command in COMMANDS:
        # Imported only now: the modules of a command load JAX.
        importlib.import_module(COMMANDS[command][0]).cli(rest)
    return console.answer(lambda: _show(command), memory="what else runs on it")


def _show(option: str) -> None:
    """Print the help page or the version; anything else is refused."""
    if option in ("--help", "-h", "help"):
        print(HELP.format(commands="\n".join(f"  {name:<9} {purpose}" for name, (_, purpose) in COMMANDS.items())))
    elif option == "--version":
        print(__version__)
    else:
        close = difflib.get_close_matches(option, COMMANDS, n=1)
        hint = f": did you mean {close[0]}?" if close else f": there are {', '.join(COMMANDS)}"
        problem = f"unknown command {option!r}{hint}" if option else f"name a command{hint}"
        raise UserError(f"{problem}; ssdd --help shows what they do")


def cli() -> None:
    """Run a command and exit with its status."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
