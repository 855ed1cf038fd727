"""Which form it is that lies at a path, and the set in it."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from ssdd_jax import distilled
from ssdd_jax.errors import UserError
from ssdd_jax.formats import archive, huggingface, pictures, tensor_files
from ssdd_jax.formats.content import Content, to_set


class _Form(NamedTuple):
    words: str
    recognises: Callable[[pathlib.Path], bool]
    read: Callable[[pathlib.Path], Content]


# In this order: the first that recognises a path reads it.
_FOREIGN = {
    "krr_st": _Form("a folder with x_syn.pt and y_syn.pt", tensor_files.is_krr_st, tensor_files.read_krr_st),
    "mkdt": _Form("a folder with images_N.pt and labels_N.pt", tensor_files.is_mkdt, tensor_files.read_mkdt),
    "npz": _Form("an .npz file with images and targets", archive.is_archive, archive.read),
    "huggingface": _Form(
        "a folder with data/*.parquet of pixel_values and target", huggingface.is_folder, huggingface.read
    ),
    "png": _Form("a folder of images with features.npy or features.npz", pictures.is_folder, pictures.read),
}
# What can be read, by name, in words for messages.
FORMS = {
    "ssdd_jax": f"a folder with {distilled.DESCRIPTION}",
    **{name: form.words for name, form in _FOREIGN.items()},
}


def read(path: str | os.PathLike[str]) -> distilled.DistilledSet:
    """Read a distilled set in any form of `FORMS`. Nothing is unpickled.

    A set of another form than this package's own stores its pairs as they are. Constants that it does not name leave
    everything unchanged, so that a network is trained on exactly what was stored; a `constants.json` in the folder
    names them (`image_mean`, `image_std`, `target_mean`, `target_scale`, `learning_rate`, `class_names`, ...). Only
    images of 8 bits are always normalised: by the constants, or else by their own mean and deviation per channel.

    Args:
        path: A folder or a file.

    Returns:
        The set; `about` says the form as `from`, and the method `imported` if nothing better is known.

    Raises:
        UserError: If nothing there is understood, or what is there is damaged, unsafe or inconsistent.
    """
    where = pathlib.Path(path).expanduser()
    if not where.exists():
        raise UserError(f"there is nothing at {where}: check the path")
    if (where / distilled.DESCRIPTION).is_file():
        return distilled.load(where)
    for name, form in _FOREIGN.items():
        if form.recognises(where):
            return to_set(where, name, form.read(where))
    inside = where / "distilled"
    hint = f"did you mean {inside}? " if (inside / distilled.DESCRIPTION).is_file() else ""
    raise UserError(f"{where} holds no distilled set: {hint}what is understood is {'; '.join(FORMS.values())}")
