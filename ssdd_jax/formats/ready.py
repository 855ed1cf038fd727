"""Ready-made sets, which come with the package and are loaded by name: `ssdd_jax.load("digits-n20")`."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

from ssdd_jax.errors import UserError


class Ready(NamedTuple):
    """A ready-made set.

    Attributes:
        folder: Folder in `experiments/results` that holds the set as `distilled`, with its `results.json`.
        words: Data, method and budget.
        command: The command that distilled it.
    """

    folder: str
    words: str
    command: str


# A line here needs one in `pyproject.toml`, which puts the set into the wheel as `ssdd_jax/sets/NAME`.
SETS = {
    "digits-n20": Ready("digits", "scikit-learn's digits, Boost-SSDD, N = 20", "python -m ssdd_jax.main"),
}
_PACKAGE = pathlib.Path(__file__).parents[1]


def find(name: str) -> pathlib.Path | None:
    """Return the folder of a ready-made set; None if no set has this name.

    Raises:
        UserError: If the set is missing from this installation; the message says where to get it.
    """
    if name not in SETS:
        return None
    stored = f"experiments/results/{SETS[name].folder}/distilled"
    # Next to the package in a checkout, inside it in a wheel.
    for folder in (_PACKAGE.parent / stored, _PACKAGE / "sets" / name):
        if folder.is_dir():
            return folder
    raise UserError(
        f"the set {name} is missing from this installation: it is {stored} of the project's repository, or is made "
        f"again by: {SETS[name].command}"
    )
