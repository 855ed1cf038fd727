"""Command that converts or uploads a set: `python -m ssdd_jax.export --set=PATH --form=FORM`, or `--to=hf://OWNER/NAME`."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING, NoReturn

from ssdd_jax.cli import console
from ssdd_jax.errors import UserError

if TYPE_CHECKING:
    from ssdd_jax.distilled import DistilledSet
    from ssdd_jax.formats.card import Evaluation

HELP = """\
usage: python -m ssdd_jax.export --set=PATH --form=FORM [--out=DIR]
       python -m ssdd_jax.export --set=PATH --to=hf://OWNER/NAME [--license=ID] [--private]

Convert a distilled set to another format, or upload it. All pairs are written, including the views, with
constants.json, which holds what turns network inputs back into pixels and targets back into the teacher's features.
`ssdd export` is the same command.

  --set=PATH    the set: a run's distilled/ folder, a ready-made set ({ready}), hf://OWNER/NAME, or a set in one of
                these formats:
{readable}
  --form=FORM   krr_st       x_syn.pt and y_syn.pt, as the published code of KRR-ST reads them (needs PyTorch)
                npz          one archive of NumPy arrays, pairs.npz
                safetensors  one file of tensors, pairs.safetensors, for torch.utils.data without JAX
                png          images of 8 bits, and features.npy with the targets
                huggingface  a folder for datasets.load_dataset, with a card, ready to be uploaded (needs datasets)
  --out=DIR     output folder; default: export-FORM beside the set. An earlier export of the same form is replaced
  --to=ADDRESS  upload the set with a card to a data set repository of the Hugging Face hub, which is created if it
                does not exist; the results of the run that holds the set are shown on the card. Log in with
                `hf auth login` or HF_TOKEN. Needs huggingface_hub and datasets: pip install 'ssdd_jax[hub]'
  --license=ID  licence of the set for the card, an identifier of the hub such as cc-by-4.0; default: not stated
  --private     make a new repository private
  --help        print this page

Examples:
  python -m ssdd_jax.export --set=runs/digits/distilled --form=png
  python -m ssdd_jax.export --set=downloads/krr_st --form=huggingface --out=upload
  python -m ssdd_jax.export --set=runs/digits/distilled --to=hf://me/digits-n20 --license=cc-by-4.0
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
    from ssdd_jax.formats import ready

    if "--help" in arguments or "-h" in arguments:
        readable = "\n".join(f"                  {words}" for words in formats.FORMS.values())
        print(HELP.format(readable=readable, ready=", ".join(ready.SETS)))
        return
    options = _parse(arguments)
    source = formats.locate(options.set)
    distilled = formats.read(source)
    if options.to:
        _upload(options, source, distilled)
    else:
        _convert(options, source, distilled)


def _upload(options: argparse.Namespace, source: pathlib.Path, distilled: DistilledSet) -> None:
    from ssdd_jax import formats

    summary = formats.upload(
        distilled,
        options.to,
        licence=options.license,
        private=options.private,
        evaluation=_evaluation(source, distilled),
    )
    print(f"{_words(distilled)}, {summary.size:,} bytes in {summary.address}")
    print(f'ssdd_jax: ssdd_jax.load("{summary.address}") reads it; its card says how to load it without JAX')


def _convert(options: argparse.Namespace, source: pathlib.Path, distilled: DistilledSet) -> None:
    from ssdd_jax import formats
    from ssdd_jax.formats import card, constants, huggingface

    # The parent of "." or "x/.." in writing is not the folder that holds it.
    parent = source.parent if source.name not in ("", "..") else source.resolve().parent
    # What does not lie at the given path is not the user's folder: the export goes to the current one.
    parent = parent if pathlib.Path(options.set).expanduser().exists() else pathlib.Path()
    out = pathlib.Path(options.out).expanduser() if options.out else parent / f"export-{options.form}"
    summary = formats.write(distilled, out, options.form)
    if options.form == "huggingface":
        card.write(
            summary.folder,
            constants.read(summary.folder),
            huggingface.UNDO,
            licence=options.license,
            evaluation=_evaluation(source, distilled),
        )
    print(f"{_words(distilled)} as {summary.form}, {summary.size:,} bytes in {summary.folder}")
    accuracy = "the pairs are exact" if summary.form != "png" else "the images have 8 bits"
    if summary.clipped is not None:
        accuracy += (
            f", {summary.clipped:,} of {summary.pixels:,} pixel values lay outside 0..1 and are clipped in the PNG"
        )
    print(f"ssdd_jax: {accuracy}; how to undo the normalisation is in {summary.folder / 'constants.json'}")


def _words(distilled: DistilledSet) -> str:
    images, targets = distilled.pairs()
    shape = "x".join(map(str, images.shape[1:]))
    return f"ssdd_jax: {len(images)} pairs ({shape} images, {targets.shape[1]} target numbers)"


def _evaluation(source: pathlib.Path, distilled: DistilledSet) -> Evaluation:
    """Describe the results of the run that holds the set, for the card; empty for a set from elsewhere."""
    from ssdd_jax.formats.card import Evaluation
    from ssdd_jax.report import summary

    folder = source.resolve()
    return summary.of_folder(folder.parent, distilled.about) if folder.name == "distilled" else Evaluation()


def _parse(arguments: list[str]) -> argparse.Namespace:
    from ssdd_jax.formats import WRITABLE, card

    parser = console.Parser()
    for name in ("set", "form", "out", "to"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--license", default=card.UNKNOWN)
    parser.add_argument("--private", action="store_true")
    options = parser.parse_args(arguments)
    if not options.set:
        raise UserError("name the set to convert: --set=PATH; --help shows what there is")
    if options.to:
        if options.form or options.out:
            raise UserError("--to uploads a set and takes neither --form nor --out: leave them out")
    elif options.form not in WRITABLE:
        problem = f"unknown form {options.form!r}" if options.form else "name a form, --form=FORM"
        raise UserError(f"{problem}: there are {', '.join(WRITABLE)}; or upload it, --to=hf://OWNER/NAME")
    if options.private and not options.to:
        raise UserError("--private is for uploads: name a repository, --to=hf://OWNER/NAME")
    if options.license != card.UNKNOWN and not options.to and options.form != "huggingface":
        raise UserError("--license is for a card, which only uploads (--to) and --form=huggingface have")
    card.check_licence(options.license)
    return options


def cli(arguments: list[str] | None = None) -> NoReturn:
    """Run the command with these arguments, by default those of the process, and exit with its status."""
    console.leave(main, arguments)


if __name__ == "__main__":
    cli()
