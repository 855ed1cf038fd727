"""Command that converts a distilled set: `python -m ssdd_jax.export --set=PATH --form=FORM [--out=DIR]`."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import NoReturn

from ssdd_jax.cli import console
from ssdd_jax.errors import UserError

HELP = """\
usage: python -m ssdd_jax.export --set=PATH --form=FORM [--out=DIR]

Convert a distilled set to another format. All pairs are written, including the views, with constants.json, which holds
what turns network inputs back into pixels and targets back into the teacher's features.
`ssdd export` is the same command.

  --set=PATH   the set: a run's distilled/ folder, or a set in one of these formats:
{readable}
  --form=FORM  krr_st       x_syn.pt and y_syn.pt, as the published code of KRR-ST reads them (needs PyTorch)
               npz          one archive of NumPy arrays, pairs.npz
               png          images of 8 bits, and features.npy with the targets
               huggingface  a folder for datasets.load_dataset, ready to be uploaded (needs datasets)
  --out=DIR    output folder; default: export-FORM beside the set. An earlier export of the same form is replaced
  --help       print this page

Examples:
  python -m ssdd_jax.export --set=runs/digits/distilled --form=png
  python -m ssdd_jax.export --set=downloads/krr_st --form=huggingface --out=upload
"""


def main(arguments: list[str]) -> int:
    """Run the command.

    Args:
        arguments: Command-line arguments without the program's name.

    Returns:
        The exit status: 0, or 2 for an error that the user can fix, reported in one line.
    """
    return console.answer(lambda: _run(arguments), memory="what else runs on it")


def _run(arguments: list[str]) -> None:
    from ssdd_jax import formats

    if "--help" in arguments or "-h" in arguments:
        print(HELP.format(readable="\n".join(f"                 {words}" for words in formats.FORMS.values())))
        return
    options = _parse(arguments)
    source = pathlib.Path(options.set).expanduser()
    # The parent of "." or "x/.." in writing is not the folder that holds it.
    parent = source.parent if source.name not in ("", "..") else source.resolve().parent
    out = pathlib.Path(options.out) if options.out else parent / f"export-{options.form}"
    distilled = formats.read(source)
    summary = formats.write(distilled, out, options.form)
    images, targets = distilled.pairs()
    shape, dim = "x".join(map(str, images.shape[1:])), targets.shape[1]
    print(
        f"ssdd_jax: {summary.pairs} pairs ({shape} images, {dim} target numbers) as {summary.form}, "
        f"{summary.size:,} bytes in {summary.folder}"
    )
    accuracy = "the pairs are exact" if summary.form != "png" else "the images have 8 bits"
    if summary.clipped is not None:
        accuracy += (
            f", {summary.clipped:,} of {summary.pixels:,} pixel values lay outside 0..1 and are clipped in the PNG"
        )
    print(f"ssdd_jax: {accuracy}; how to undo the normalisation is in {summary.folder / 'constants.json'}")


def _parse(arguments: list[str]) -> argparse.Namespace:
    from ssdd_jax.formats import WRITABLE

    parser = console.Parser()
    for name in ("set", "form", "out"):
        parser.add_argument(f"--{name}", default="")
    options = parser.parse_args(arguments)
    if not options.set:
        raise UserError("name the set to convert: --set=PATH; --help shows what there is")
    if options.form not in WRITABLE:
        problem = f"unknown form {options.form!r}" if options.form else "name a form, --form=FORM"
        raise UserError(f"{problem}: there are {', '.join(WRITABLE)}")
    return options


def cli(arguments: list[str] | None = None) -> NoReturn:
    """Run the command with these arguments, by default those of the process, and exit with its status."""
    sys.exit(main(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    cli()
