"""The command that converts a set: `python -m ssdd_jax.export --set=PATH --form=FORM [--out=DIR]`."""

from __future__ import annotations

import argparse
import pathlib
import sys

from ssdd_jax.cli import console
from ssdd_jax.errors import UserError

HELP = """\
usage: python -m ssdd_jax.export --set=PATH --form=FORM [--out=DIR]

Write a distilled set in the form of others. All pairs are written, views too, with constants.json: what turns network
inputs back into pixels and targets back into the teacher's features.

  --set=PATH   the set: a run's distilled/ folder, or what other systems wrote:
{readable}
  --form=FORM  krr_st       x_syn.pt and y_syn.pt, as the published code of KRR-ST reads them (needs PyTorch)
               npz          one archive of NumPy arrays, pairs.npz
               png          images of 8 bits, and features.npy with the targets
               huggingface  a folder for datasets.load_dataset, ready to be uploaded (needs datasets)
  --out=DIR    where to; default export-FORM beside the set. An earlier export of the same form is replaced
  --help       print this page

Examples:
  python -m ssdd_jax.export --set=runs/digits/distilled --form=png
  python -m ssdd_jax.export --set=downloads/krr_st --form=huggingface --out=upload
"""


def main(arguments: list[str]) -> int:
    """Run the command.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit status: 0, 2 for a mistake that a user can mend, told in one line.
    """
    return console.answer(lambda: _run(arguments), memory="what else runs on it")


def _run(arguments: list[str]) -> None:
    from ssdd_jax import formats

    if "--help" in arguments or "-h" in arguments:
        print(HELP.format(readable="\n".join(f"                 {words}" for words in formats.FORMS.values())))
        return
    options = _parse(arguments)
    place = pathlib.Path(options.set).expanduser()
    beside = place.parent if place.name not in ("", "..") else place.resolve().parent
    out = pathlib.Path(options.out) if options.out else beside / f"export-{options.form}"
    distilled = formats.read(place)
    summary = formats.write(distilled, out, options.form)
    images, targets = distilled.pairs()
    shape, dim = "x".join(map(str, images.shape[1:])), targets.shape[1]
    print(
        f"ssdd_jax: {summary.pairs} pairs ({shape} images, {dim} target numbers) as {summary.form}, "
        f"{summary.size:,} bytes in {summary.folder}"
    )
    exact = "the pairs are exact" if summary.form != "png" else "the images have 8 bits"
    if summary.clipped is not None:
        exact += f", {summary.clipped:,} of {summary.pixels:,} pixel values lay outside 0..1 and are clipped in the PNG"
    print(f"ssdd_jax: {exact}; how to undo the normalisation is in {summary.folder / 'constants.json'}")


def _parse(arguments: list[str]) -> argparse.Namespace:
    from ssdd_jax.formats import WRITABLE

    parser = console.Parser()
    for name in ("set", "form", "out"):
        parser.add_argument(f"--{name}", default="")
    options = parser.parse_args(arguments)
    if not options.set:
        raise UserError("name the set to convert: --set=PATH; --help shows what there is")
    if options.form not in WRITABLE:
        asked = f"unknown form {options.form!r}" if options.form else "name a form, --form=FORM"
        raise UserError(f"{asked}: there are {', '.join(WRITABLE)}")
    return options


def cli() -> None:
    """Run and exit with the status."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
