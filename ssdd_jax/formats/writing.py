"""A distilled set in the form of others: whole, with what is needed to undo its normalisation."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssdd_jax.distilled import DistilledSet
from ssdd_jax.errors import UserError
from ssdd_jax.formats import archive, constants, huggingface, pictures, tensor_files
from ssdd_jax.formats.content import Content, check_inputs, check_targets
from ssdd_jax.runtime import files

_STAGING = ".partial"


class Summary(NamedTuple):
    """What was written.

    Attributes:
        folder: Where.
        form: In which form.
        pairs: Number of pairs.
        size: Of all files, in bytes.
        clipped: Pixel values outside 0..1 that 8 bits cannot hold, None where the form has no 8-bit images.
        pixels: Pixel values in all.
    """

    folder: pathlib.Path
    form: str
    pairs: int
    size: int
    clipped: int | None
    pixels: int


class _Form(NamedTuple):
    """How a form is written: by `exact` or, with 8-bit images, by `pictured`; and the names of its files."""

    undo: str
    names: tuple[str, ...]
    exact: Callable[[pathlib.Path, Content], None] | None = None
    pictured: Callable[[pathlib.Path, Content, np.ndarray, list[str]], None] | None = None


_FORMS = {
    "krr_st": _Form(tensor_files.UNDO, tensor_files.KRR_ST, exact=tensor_files.write_krr_st),
    "npz": _Form(archive.UNDO, (archive.NAME,), exact=archive.write),
    "png": _Form(pictures.UNDO, (pictures.FEATURES[0], "[0-9][0-9][0-9][0-9]*.png"), pictured=pictures.write),
    "huggingface": _Form(huggingface.UNDO, (huggingface.CARD, "data/*.parquet"), pictured=huggingface.write),
}
WRITABLE = tuple(_FORMS)


def write(distilled: DistilledSet, folder: str | os.PathLike[str], form: str) -> Summary:
    """Write a set in another form, with `constants.json`; an earlier export of the same form is replaced.

    `krr_st`, `npz` and the `pixel_values` of `huggingface` are exactly what `pairs()` gives; `png` is within half a
    grey level of it where pixels lie in 0..1. All pairs are written, further views too: a set that stores bases
    becomes one that stores pairs, and is larger.

    Args:
        distilled: The set.
        folder: Where to: a new or empty folder, or an earlier export.
        form: A name in `WRITABLE`.

    Returns:
        What was written.

    Raises:
        UserError: If the folder holds other things or cannot be written to, a library is missing, or the set holds
            numbers that are not finite.
    """
    if form not in _FORMS:
        raise UserError(f"unknown form {form!r}: there are {', '.join(WRITABLE)}")
    target, writer = pathlib.Path(folder).expanduser(), _FORMS[form]
    _check_place(target, form)
    images, targets = (np.asarray(array) for array in distilled.pairs())
    facts = constants.describe(distilled, form, writer.undo)
    content = Content(check_inputs("the set's images", images), check_targets("the set's targets", targets), facts)
    clipped = None
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
    """Only a new or empty folder, or an earlier export of the same form."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another folder")
    if all(file.name == _STAGING for file in folder.iterdir()):
        return
    earlier = constants.read(folder).get("form")
    if earlier != form:
        what = f"is an export of the form {earlier}" if earlier else "is not empty"
        raise UserError(f"{folder} {what}, and is not overwritten: choose another folder")


def _stage(folder: pathlib.Path) -> pathlib.Path:
    """An empty folder within `folder`, where files are written before they take their places."""
    staging = folder / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    return staging


def _replace(staging: pathlib.Path, folder: pathlib.Path, names: tuple[str, ...]) -> None:
    """Exchange an earlier export for a new one; cut in between, the rest is refused when read, never mixed.

    `constants.json` goes last, so that the folder stays one that may be written again.
    """
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
