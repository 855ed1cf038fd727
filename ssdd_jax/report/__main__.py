"""The command line that writes reports of finished runs: `python -m ssdd_jax.report RUN [RUN ...] [--out=FILE]`."""

from __future__ import annotations

import argparse
import pathlib
import shlex
from typing import NoReturn

from ssdd_jax.cli import console
from ssdd_jax.errors import UserError

HELP = """\
usage: python -m ssdd_jax.report RUN [RUN ...] [--out=FILE]

Write a self-contained HTML report of one run, or a comparison of several. Every run writes its own report at the end,
as report.html in its folder. `ssdd report` is the same command.

  RUN         folder of a finished run, its --workdir
  --out=FILE  output file; default report.html in the folder of a single run, comparison.html for several
  --help      print this page

Examples:
  python -m ssdd_jax.report runs/digits
  python -m ssdd_jax.report runs/digits runs/digits-krr_st runs/digits-mkdt --out=comparison.html
"""


def main(arguments: list[str]) -> int:
    """Run the command.

    Args:
        arguments: Command-line arguments without the program's name.

    Returns:
        The exit status: 0, or 2 for a user's mistake, which is reported in one line.
    """
    return console.answer(lambda: _run(arguments), memory="what else runs on it")


def _run(arguments: list[str]) -> None:
    if "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    options = _parse(arguments)
    from ssdd_jax import report
    from ssdd_jax.report import comparison_page

    # A folder named twice would be compared with itself.
    records = [report.read(folder) for folder in dict.fromkeys(options.runs)]
    default = records[0].folder / "report.html" if len(records) == 1 else pathlib.Path("comparison.html")
    out = pathlib.Path(options.out).expanduser() if options.out else default
    if len(records) == 1:
        report.write(out, records[0])
    else:
        # Runs that differ in their seed only are not combined: each run is one side.
        sides = [
            report.side_of(*side) for side in zip(comparison_page.labels(records), ([r] for r in records), strict=True)
        ]
        command = shlex.join(["python", "-m", "ssdd_jax.report", *arguments])
        report.compare(out, sides, beside=comparison_page.references(records), command=command)
    print(f"ssdd_jax: {out}, {out.stat().st_size:,} bytes")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = console.Parser()
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--out", default="")
    options = parser.parse_args(arguments)
    if not options.runs:
        raise UserError("name the folder of a finished run, such as runs/digits; --help shows what there is")
    if options.out and pathlib.Path(options.out).expanduser().is_dir():
        raise UserError(f"--out={options.out} is a folder: name a file, such as comparison.html")
    return options


def cli(arguments: list[str] | None = None) -> NoReturn:
    """Run the command with these arguments, by default those of the process, and exit with its status."""
    console.leave(main, arguments)


if __name__ == "__main__":
    cli()
