"""Export of a distilled set to another form, with the constants that undo its normalisation."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssdd_jax.distilled import DistilledSet
from ssdd_jax.errors import UserError
from ssdd_jax.formats import archive, card, constants, huggingface, pictures, safe_tensors, tensor_files
from ssdd_jax.formats.content import Content, check_inputs, check_targets
from ssdd_jax.runtime import files

_STAGING = ".partial"


class Summary(NamedTuple):
    """Summary of an export.

    Attributes:
        folder: Folder of the export.
        form: Name of the form.
        pairs: Number of pairs.
        size: Size of all files in bytes.
        clipped: Number of pixel values outside 0..1 that were clipped to 8 bits; None for a form without 8-bit images.
        pixels: Total number of pixel values.
    """

    folder: pathlib.Path
    form: str
    pairs: int
    size: int
    clipped: int | None
    pixels: int


class _Form(NamedTuple):
    """Writer of a form: `exact`, or `pictured` for one with 8-bit images; and the glob patterns of its files."""

    undo: str
    names: tuple[str, ...]
    exact: Callable[[pathlib.Path, Content], None] | None = None
    pictured: Callable[[pathlib.Path, Content, np.ndarray, list[str]], None] | None = None


_FORMS = {
    "krr_st": _Form(tensor_files.UNDO, tensor_files.KRR_ST, exact=tensor_files.write_krr_st),
    "npz": _Form(archive.UNDO, (archive.NAME,), exact=archive.write),
    "png": _Form(pictures.UNDO, (pictures.FEATURES[0], "[0-9][0-9][0-9][0-9]*.png"), pictured=pictures.write),
    "safetensors": _Form(safe_tensors.UNDO, (safe_tensors.NAME,), exact=safe_tensors.write),
    "huggingface": _Form(
        huggingface.UNDO, (card.NAME, safe_tensors.NAME, "data/*.parquet"), pictured=huggingface.write
    ),
}
WRITABLE = tuple(_FORMS)


def write(distilled: DistilledSet, folder: str | os.PathLike[str], form: str) -> Summary:
    """Write a set in another form, with `constants.json`; replaces an earlier export of the same form.

    `krr_st`, `npz`, `safetensors` and the `pixel_values` of `huggingface` equal the result of `pairs()` exactly; `png`
    differs by at most half a grey level if pixels lie in 0..1. All pairs are written, including views: a set that
    stores bases becomes a larger one that stores pairs.

    Args:
        distilled: The set.
        folder: A new or empty folder, or an earlier export.
        form: A name in `WRITABLE`.

    Returns:
        A summary of the export.

    Raises:
        UserError: If the folder holds other files or is not writable, a library is missing, or the set has values that
            are not finite.
    """
    if form not in _FORMS:
        raise UserError(f"unknown form {form!r}: there are {', '.join(WRITABLE)}")
    # Everything that may fail because of the set or the folder is checked before the first file is written.
    target, writer = pathlib.Path(folder).expanduser(), _FORMS[form]
    _check_place(target, form)
    images, targets = (np.asarray(array) for array in distilled.pairs())
    facts = constants.describe(distilled, form, writer.undo)
    content = Content(check_inputs("the set's images", images), check_targets("the set's targets", targets), facts)
    clipped = None
    # A failed export leaves neither its staging folder nor an empty new one behind.
    created = not target.exists()
    staging = _stage(target)
    try:
        with files.saving(target):
            if writer.exact is not None:
                writer.exact(staging, content)
            if writer.pictured is not None:
                mean, std = (np.asarray(array) for array in distilled.preprocessing[:2])
                pixels, clipped = pictures.to_bytes(content.images, mean, std)
                views = list(distilled.statics.get("views", ()))
                writer.pictured(staging, content, pixels, pictures.file_names(len(pixels), views))
            files.write_json(staging / constants.NAME, facts)
            size = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
            _replace(staging, target, writer.names)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if created and not any(target.iterdir()):
            target.rmdir()
    return Summary(target, form, len(images), size, clipped, content.images.size)


def _check_place(folder: pathlib.Path, form: str) -> None:
    """Refuse a folder that is neither new, nor empty, nor an earlier export of the same form."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another folder")
    # An export that was killed may have left its staging folder.
    if all(file.name == _STAGING for file in folder.iterdir()):
        return
    earlier = constants.read(folder).get("form")
    if earlier != form:
        state = f"is an export of the form {earlier}" if earlier else "is not empty"
        raise UserError(f"{folder} {state}, and is not overwritten: choose another folder")


def _stage(folder: pathlib.Path) -> pathlib.Path:
    """Create an empty staging folder within `folder`, on the same file system, for files to be renamed from."""
    staging = folder / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    return staging


def _replace(staging: pathlib.Path, folder: pathlib.Path, names: tuple[str, ...]) -> None:
    """Replace an earlier export by the staged files.

    An interruption leaves an incomplete export, which is refused when read, but never a mixture of two exports.
    """
    # All old files go first. `constants.json` is replaced last: it identifies the folder as an export of this form,
    # which may be overwritten after an interruption.
    for name in names:
        for old in folder.glob(name):
            old.unlink()
    new = sorted(
        (file.relative_to(staging) for file in staging.rglob("*") if file.is_file()),
        key=lambda file: (file.name == constants.NAME, file),
    )
    for file in new:
        (folder / file).parent.mkdir(exist_ok=True)
        os.replace(staging / file, folder / file)
