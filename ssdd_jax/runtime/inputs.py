"""Inputs of a run: its images, labels, features and weights, recognised by their content wherever they lie."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ssdd_jax.errors import StoredError
from ssdd_jax.runtime import marks

# Inputs by name, and the groups of config keys that say where they are.
PARTS = {
    "training images": "data",
    "test images": "data",
    "labels": "data",
    "features": "teacher",
    "weights": "teacher",
}
# Config keys that name places. A run does not depend on them but on what lies there, which is compared itself.
PLACES = ("data.name", "data.data_dir", "data.cache_dir", "teacher.features", "teacher.source")
# The inputs by which a place is known, if they have been recorded.
_IMAGES = ("training images", "test images")
CONTENT = {
    "data.name": _IMAGES,
    "data.data_dir": _IMAGES,
    "data.cache_dir": _IMAGES,
    "teacher.features": ("features",),
    "teacher.source": ("weights",),
}
# Names of data that are paths begin with one of these.
PATHS = ("folder:", "npz:", "npy:")


def hashes(**inputs: Any) -> dict[str, str]:
    """Hash the inputs of a run; those that are None are left out.

    Args:
        **inputs: By a name of `PARTS`, with underscores: an array `(n,...)`, a tuple of arrays or None, or a hash.

    Returns:
        Hashes by name.
    """
    found: dict[str, str] = {}
    for name, value in inputs.items():
        if isinstance(value, tuple):
            value = hashlib.sha256(
                repr([None if part is None else marks.mark(part) for part in value]).encode()
            ).hexdigest()
        if value is not None:
            found[name.replace("_", " ")] = value if isinstance(value, str) else marks.mark(value)
    return found


def compare(folder: pathlib.Path, new: Mapping[str, str], stored: Mapping[str, str], advice: str) -> None:
    """Check that a folder was made with the inputs that there are now.

    Args:
        folder: The folder, for the message.
        new: Hashes of the inputs by name; inputs that are not among the stored ones are not compared.
        stored: Hashes of the inputs that the folder was made with.
        advice: What to do if they differ.

    Raises:
        StoredError: If they differ; the message names them.
    """
    different = [name for name, value in new.items() if name in stored and stored[name] != value]
    if different:
        raise StoredError(
            f"{folder} was made with other {' and '.join(different)} than there are now: {advice}, or restore them"
        )


def without_places(new: dict[str, Any], stored: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Leave out of two flat configs the places that both name, wherever they are."""
    same = {key for key in PLACES if _beside(key, new.get(key)) == _beside(key, stored.get(key))}
    # A network may be gone once it has been converted, but another place of it has to exist.
    source = new.get("teacher.source")
    if source and source != stored.get("teacher.source") and not os.path.exists(os.path.expanduser(source)):
        same.discard("teacher.source")
    pair = [{key: value for key, value in flat.items() if key not in same} for flat in (new, stored)]
    return pair[0], pair[1]


def without_folders(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Shorten the places in a flat config to the last part of their paths: a set is given to others."""
    short = {key: pathlib.PurePath(flat[key]).name for key in PLACES if key in flat and key != "data.name"}
    return {**flat, **short, "data.name": name_of_data(flat["data.name"])}


def name_of_data(name: str) -> str:
    """Return the name of a data set without folders, as `folder:photos` of `folder:/home/me/photos`."""
    kind = next((kind for kind in PATHS if name.startswith(kind)), None)
    return name if kind is None else kind + pathlib.PurePath(name.removeprefix(kind)).name


def _beside(key: str, value: Any) -> Any:
    """Return what a config key's value says besides a path."""
    if key == "data.name":
        return "" if str(value).startswith(PATHS) else value
    return bool(value) if key.startswith("teacher.") else ""
