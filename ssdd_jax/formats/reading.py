"""Recognise the form of a distilled set at a path, and read it."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from ssdd_jax import distilled
from ssdd_jax.errors import UserError
from ssdd_jax.formats import archive, hub, huggingface, pictures, ready, safe_tensors, tensor_files
from ssdd_jax.formats.content import Content, to_set


class _Form(NamedTuple):
    words: str
    recognises: Callable[[pathlib.Path], bool]
    read: Callable[[pathlib.Path], Content]


# Tried in this order: the first form that recognises a path reads it.
_FOREIGN = {
    "krr_st": _Form("a folder with x_syn.pt and y_syn.pt", tensor_files.is_krr_st, tensor_files.read_krr_st),
    "mkdt": _Form("a folder with images_N.pt and labels_N.pt", tensor_files.is_mkdt, tensor_files.read_mkdt),
    "npz": _Form("an .npz file with images and targets", archive.is_archive, archive.read),
    "huggingface": _Form(
        "a folder with data/*.parquet of pixel_values and target", huggingface.is_folder, huggingface.read
    ),
    "safetensors": _Form("pairs.safetensors", safe_tensors.is_file, safe_tensors.read),
    "png": _Form("a folder of images with features.npy or features.npz", pictures.is_folder, pictures.read),
}
# Readable forms by name, with a description for messages.
FORMS = {
    "ssdd_jax": f"a folder with {distilled.DESCRIPTION}",
    **{name: form.words for name, form in _FOREIGN.items()},
}


def locate(path: str | os.PathLike[str]) -> pathlib.Path:
    """Return the folder or file of a set: an existing path, a ready-made set, or a download from the hub.

    Args:
        path: As for `read`.

    Raises:
        UserError: If there is nothing at the path, or the download fails.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{path!r} is not a path, a name or an address of a set")
    if hub.is_address(path):
        return hub.download(path)
    location = pathlib.Path(path).expanduser()
    if location.exists():
        return location
    # A path takes precedence over a name.
    folder = ready.find(str(path))
    if folder is None:
        raise UserError(f"there is nothing at {location}: check the path; ready-made sets are {', '.join(ready.SETS)}")
    return folder


def read(path: str | os.PathLike[str]) -> distilled.DistilledSet:
    """Read a distilled set in any form of `FORMS`, without unpickling.

    A set of any other form than this package's own stores its pairs unchanged. Its constants are read from a
    `constants.json` in the folder (`image_mean`, `image_std`, `target_mean`, `target_scale`, `learning_rate`,
    `class_names`, ...). Missing constants default to the identity, so that a network is trained on exactly the stored
    values. Only 8-bit images are always normalised: by the constants, or else by their own mean and standard deviation
    per channel.

    Args:
        path: A folder or a file; `hf://OWNER/NAME`, a data set repository of the Hugging Face hub; or the name of a
            ready-made set in `ssdd_jax.formats.ready`, such as `digits-n20`.

    Returns:
        The set. The entry `from` of its `about` is the form, and `method` is `imported` if the facts name no method.

    Raises:
        UserError: If no form is recognised, or the files are damaged, unsafe or inconsistent.
    """
    location = locate(path)
    if (location / distilled.DESCRIPTION).is_file():
        return distilled.load(location)
    for name, form in _FOREIGN.items():
        if form.recognises(location):
            return to_set(location, name, form.read(location))
    # A run's folder holds its result in `distilled`.
    inside = location / "distilled"
    hint = f"did you mean {inside}? " if (inside / distilled.DESCRIPTION).is_file() else ""
    raise UserError(f"{location} holds no distilled set: {hint}the supported forms are {'; '.join(FORMS.values())}")
