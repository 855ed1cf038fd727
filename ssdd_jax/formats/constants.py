"""`constants.json`: what an exported set must be told besides its pairs, in words and numbers that last."""

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
    """The facts of a set.

    Args:
        distilled: The set.
        form: The form that it is written in.
        undo: One sentence that says how pixels and features come from what is written.

    Returns:
        JSON values. A float32 number comes back bit by bit from its decimal digits.
    """
    images, targets = distilled.pairs()
    constants = {
        name: np.asarray(value, np.float32).astype(np.float64).tolist()
        for name, value in distilled.preprocessing._asdict().items()
    }
    shapes = {"pairs": len(images), "image_shape": list(images.shape[1:]), "target_length": targets.shape[1]}
    known = {"N": distilled.about.get("config", {}).get("storage.N"), **distilled.about}
    about = {name: known[name] for name in ABOUT if known.get(name)}
    own = {name: distilled.statics[name] for name in ("learning_rate", "soft_labels") if name in distilled.statics}
    return {"form": form, **shapes, "undo": undo, **constants, **own, "version": __version__, **about}


def read(folder: pathlib.Path) -> dict[str, Any]:
    """The facts in a folder, none where there is no `constants.json`.

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
