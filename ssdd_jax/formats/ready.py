"""Ready-made sets, which come with the package and are loaded by name: `ssdd_jax.load("digits-n20")`."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

from ssdd_jax.errors import UserError


class Ready(NamedTuple):
    """A ready-made set.

    Attributes:
        folder: Its folder below `experiments/results` of a checkout, or `ssdd_jax/sets` of an installation.
        words: Data, method and budget.
        command: The command that distilled it.
    """

    folder: str
    words: str
    command: str


_METHODS = {
    "krr_st": "KRR-ST",
    "mkdt": "MKDT",
    "scdd": "SC-DD",
    "random": "random subset",
    "kmeans": "k-means subset",
    "high_loss": "high-loss subset",
    "noise": "Gaussian noise",
}


def _compared(folder: str, name: str, words: str, command: str) -> dict[str, Ready]:
    """Sets of a comparison: of each method the first."""
    return {
        f"{name}-{method}": Ready(f"{folder}/sets/{method}", words.format(title), command)
        for method, title in _METHODS.items()
    }


# A folder here has a line in `pyproject.toml`, which puts it, or one above it, into the wheel.
SETS = {
    "digits-n20": Ready("digits/distilled", "scikit-learn's digits, Boost-SSDD, N = 20", "python -m ssdd_jax.main"),
    **_compared("compare-digits", "digits-n20", "scikit-learn's digits, {}, N = 20", "python -m experiments.compare"),
}
_PACKAGE = pathlib.Path(__file__).parents[1]


def find(name: str) -> pathlib.Path | None:
    """Return the folder of a ready-made set; None if no set has this name.

    Raises:
        UserError: If the set is missing from this installation; the message says where to get it.
    """
    if name not in SETS:
        return None
    stored = SETS[name].folder
    # Next to the package in a checkout, inside it in a wheel.
    for root in (_PACKAGE.parent / "experiments" / "results", _PACKAGE / "sets"):
        if (root / stored).is_dir():
            return root / stored
    raise UserError(
        f"the set {name} is missing from this installation: it is experiments/results/{stored} of the project's "
        f"repository, or is made again by: {SETS[name].command}"
    )
