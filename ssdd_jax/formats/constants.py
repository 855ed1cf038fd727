"""`constants.json`: the constants and metadata that an exported set needs besides its pairs, readable by people."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from ssdd_jax.distilled import DistilledSet
from ssdd_jax.errors import UserError
from ssdd_jax.formats.content import ABOUT
from ssdd_jax.runtime import files
from ssdd_jax.runtime.version import __version__

NAME = "constants.json"


def describe(distilled: DistilledSet, form: str, undo: str) -> dict[str, Any]:
    """Collect the facts of a set.

    Args:
        distilled: The set.
        form: Name of the form that the set is written in.
        undo: A sentence that explains how to recover pixels and features from the written values.

    Returns:
        JSON values. Float32 values are written with all their digits, so that they are restored exactly.
    """
    images, targets = distilled.pairs()
    # Every float32 is exactly a float64, which JSON stores without loss.
    constants = {
        name: np.asarray(value, np.float32).astype(np.float64).tolist()
        for name, value in distilled.preprocessing._asdict().items()
    }
    shapes = {"pairs": len(images), "image_shape": list(images.shape[1:]), "target_length": targets.shape[1]}
    config = distilled.about.get("config", {})
    # The N of a budget in bytes is what fits it, not a budget.
    budget = None if config.get("storage.bytes") else config.get("storage.N")
    available = {"N": budget, **distilled.about}
    about = {name: available[name] for name in ABOUT if available.get(name)}
    training = {name: distilled.statics[name] for name in ("learning_rate", "soft_labels") if name in distilled.statics}
    # The set's own version, if it has one, replaces that of this package.
    return {"form": form, **shapes, "undo": undo, **constants, **training, "version": __version__, **about}


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Read the facts in a folder; they are empty without a `constants.json`.

    Raises:
        UserError: If the file is not a JSON object.
    """
    path = folder / NAME
    if not path.is_file():
        return {}
    facts = files.read_json(path)
    if not isinstance(facts, dict):
        raise UserError(f"{path} is not a JSON object of constants: restore it or delete it")
    return facts
