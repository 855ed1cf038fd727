"""Command that converts or uploads a set: `python -m ssdd_jax.export --set=PATH --form=FORM`, or `--to=hf://OWNER/NAME`."""

from __future__ import annotations

import argparse
import pathlib
import textwrap
from typing import TYPE_CHECKING, NoReturn

from ssdd_jax.cli import console
from ssdd_jax.errors import UserError

if TYPE_CHECKING:
    from ssdd_jax.distilled import DistilledSet
    from ssdd_jax.formats.card import Evaluation

# The form of a set that stays one of this package, in fewer bits.
PACKED = "packed"

HELP = """\
usage: python -m ssdd_jax.export --set=PATH --form=FORM [--out=DIR]
       python -m ssdd_jax.export --set=PATH --form=packed [--images=int8] [--targets=int8] [--bytes=N] [--out=DIR]
       python -m ssdd_jax.export --set=PATH --to=hf://OWNER/NAME [--license=ID] [--private]

Convert a distilled set to another format, or upload it. All pairs are written, including the views, with
constants.json, which holds what turns network inputs back into pixels and targets back into the teacher's features.
`packed` instead keeps the set as it is, for ssdd_jax.load, in fewer bits.
`ssdd export` is the same command.

  --set=PATH    the set: a run's distilled/ folder, a ready-made set, hf://OWNER/NAME, or a set in one of these formats:
{readable}
{ready}
  --form=FORM   krr_st       x_syn.pt and y_syn.pt, as the published code of KRR-ST reads them (needs PyTorch)
                npz          one archive of NumPy arrays, pairs.npz
                safetensors  one file of tensors, pairs.safetensors, for torch.utils.data without JAX
                png          images of 8 bits, and features.npy with the targets
                huggingface  a folder for datasets.load_dataset, with a card, ready to be uploaded (needs datasets)
                packed       set.safetensors and set.json, rounded
  --images=P, --targets=P
                precisions of a packed set, int8 where none is named:
{precisions}
  --bytes=N     the most bytes of a packed set's set.safetensors; WebP and JPEG get the quality that fits
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
    from ssdd_jax.storage import mosaic, quantize

    if "--help" in arguments or "-h" in arguments:
        readable = "\n".join(f"                  {words}" for words in formats.FORMS.values())
        precisions = f"{', '.join(quantize.NAMES)}; for images that are stored as such also {', '.join(mosaic.CODES)}"
        words = {"ready": f"Ready-made sets: {', '.join(ready.SETS)}", "precisions": precisions}
        print(HELP.format(readable=readable, **{name: _indented(text) for name, text in words.items()}))
        return
    options = _parse(arguments)
    source = formats.locate(options.set)
    distilled = formats.read(source)
    if options.to:
        _upload(options, source, distilled)
    elif options.form == PACKED:
        _pack(options, source, distilled)
    else:
        _convert(options, source, distilled)


def _indented(text: str) -> str:
    """Wrap a text below an option."""
    return textwrap.fill(text, 119, initial_indent=" " * 16, subsequent_indent=" " * 16, break_on_hyphens=False)


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


def _pack(options: argparse.Namespace, source: pathlib.Path, distilled: DistilledSet) -> None:
    import numpy as np

    from ssdd_jax import distilled as sets

    out = _out(options, source)
    # A set that is packed already may be there, from this command; another one may be all that its owner has.
    others = [path.name for path in out.iterdir()] if out.is_dir() else []
    if out.exists() and (others or not out.is_dir()):
        if not out.is_dir() or not {*others} <= {sets.TENSORS, sets.DESCRIPTION} or sets.load(out).stored is None:
            raise UserError(f"{out} holds something else than a packed set: choose another folder")
    packed = sets.pack(distilled, images=options.images, targets=options.targets, limit=options.bytes)
    size = packed.bytes_stored()
    packed.save(out)
    lost = [
        100 * float(np.square(np.asarray(now) - np.asarray(was)).sum() / max(np.square(np.asarray(was)).sum(), 1e-30))
        for now, was in zip(packed.pairs(), distilled.pairs(), strict=True)
    ]
    print(f"{_words(distilled)}, {size:,} bytes in {out / sets.TENSORS}, {distilled.bytes_stored():,} before")
    print(f"ssdd_jax: rounding takes {lost[0]:.2g} % of the energy of the images, {lost[1]:.2g} % of the targets'")


def _out(options: argparse.Namespace, source: pathlib.Path) -> pathlib.Path:
    """Return the output folder: the one that is named, or one beside the set."""
    # The parent of "." or "x/.." in writing is not the folder that holds it.
    parent = source.parent if source.name not in ("", "..") else source.resolve().parent
    # What does not lie at the given path is not the user's folder: the export goes to the current one.
    parent = parent if pathlib.Path(options.set).expanduser().exists() else pathlib.Path()
    return pathlib.Path(options.out).expanduser() if options.out else parent / f"export-{options.form}"


def _convert(options: argparse.Namespace, source: pathlib.Path, distilled: DistilledSet) -> None:
    from ssdd_jax import formats
    from ssdd_jax.formats import card, constants, huggingface

    summary = formats.write(distilled, _out(options, source), options.form)
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
    for name in ("images", "targets"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--bytes", type=int, default=0)
    options = parser.parse_args(arguments)
    if not options.set:
        raise UserError("name the set to convert: --set=PATH; --help shows what there is")
    if options.to:
        if options.form or options.out:
            raise UserError("--to uploads a set and takes neither --form nor --out: leave them out")
    elif options.form not in (*WRITABLE, PACKED):
        problem = f"unknown form {options.form!r}" if options.form else "name a form, --form=FORM"
        raise UserError(f"{problem}: there are {', '.join((*WRITABLE, PACKED))}; or upload it, --to=hf://OWNER/NAME")
    if options.private and not options.to:
        raise UserError("--private is for uploads: name a repository, --to=hf://OWNER/NAME")
    if options.license != card.UNKNOWN and not options.to and options.form != "huggingface":
        raise UserError("--license is for a card, which only uploads (--to) and --form=huggingface have")
    card.check_licence(options.license)
    _check_precisions(options)
    return options


def _check_precisions(options: argparse.Namespace) -> None:
    """Check the options of a packed set, and fill in int8 where no precision is named."""
    from ssdd_jax.storage import mosaic, quantize

    if (options.images or options.targets or options.bytes) and options.form != PACKED:
        raise UserError("--images, --targets and --bytes are for a packed set: --form=packed")
    if options.bytes < 0:
        raise UserError(f"--bytes={options.bytes} is negative: name the most bytes, or leave it out")
    options.images, options.targets = options.images or "int8", options.targets or "int8"
    for name, known in {"images": (*quantize.NAMES, *mosaic.CODES), "targets": quantize.NAMES}.items():
        if getattr(options, name) not in known:
            raise UserError(f"unknown precision --{name}={getattr(options, name)}: there are {', '.join(known)}")


def cli(arguments: list[str] | None = None) -> NoReturn:
    """Run the command with these arguments, by default those of the process, and exit with its status."""
    console.leave(main, arguments)


if __name__ == "__main__":
    cli()
