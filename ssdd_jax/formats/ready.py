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


_TITLES = {
    "boost": "Boost-SSDD",
    "krr_st": "KRR-ST",
    "mkdt": "MKDT",
    "scdd": "SC-DD",
    "random": "random subset",
    "kmeans": "k-means subset",
    "high_loss": "high-loss subset",
    "noise": "Gaussian noise",
}


def _compared(name: str, data: str, command: str, *, others: tuple[str, ...]) -> dict[str, Ready]:
    """Sets of a comparison, of each method the first: Boost-SSDD's as `name`, the others as `name-METHOD`.

    The name ends in `-nN`, or in `-bBYTES` for a budget in bytes.
    """
    size = name.rpartition("-")[2]
    budget = f"N = {size[1:]}" if size[0] == "n" else f"{int(size[1:]):,} bytes"
    return {
        name if method == "boost" else f"{name}-{method}": Ready(
            f"compare-{name}/sets/{method}", f"{data}, {_TITLES[method]}, {budget}", command
        )
        for method in ("boost", *others)
    }


_DIGITS = (
    "python -m experiments.compare --methods=boost,krr_st,mkdt,scdd,random,kmeans,high_loss,noise --N=20 "
    "--config.evaluate.seeds=1"
)
_CIFAR10 = "python -m experiments.compare --config=configs/cifar10.py:cpu"
_CHANGES = '--config.evaluate.seeds=1 "--config.evaluate.weight_decays=(1e-3,)" --config.data.data_dir=DIR'
_BESIDE = "--beside=experiments/results/compare-{}/comparison.json"

# A folder here has a line in `pyproject.toml`, which puts it, or one above it, into the wheel.
SETS = {
    **_compared("digits-n20", "scikit-learn's digits", _DIGITS, others=tuple(_TITLES)[1:]),
    # The set of the first command is that of the comparison.
    "digits-n20": Ready("digits/distilled", "scikit-learn's digits, Boost-SSDD, N = 20", "python -m ssdd_jax.main"),
    **_compared(
        "cifar10-n20",
        "CIFAR-10",
        f"{_CIFAR10} --methods=boost,krr_st,mkdt,random,kmeans --N=20 --references=1 {_CHANGES}",
        others=("krr_st", "mkdt", "random", "kmeans"),
    ),
    "cifar10-n20-boost_plus": Ready(
        "compare-cifar10-n20-plus/sets/boost_plus",
        "CIFAR-10, Boost-SSDD+, N = 20",
        f"{_CIFAR10} --methods=boost_plus --N=20 {_BESIDE.format('cifar10-n20')} {_CHANGES}",
    ),
    **_compared(
        "cifar10-b65536",
        "CIFAR-10",
        f"{_CIFAR10} --methods=boost,random --bytes=65536 --seeds=1 --references=1 {_CHANGES}",
        others=("random",),
    ),
    "cifar10-b65536-boost_plus": Ready(
        "compare-cifar10-b65536-plus/sets/boost_plus",
        "CIFAR-10, Boost-SSDD+, 65,536 bytes",
        f"{_CIFAR10} --methods=boost_plus --bytes=65536 --seeds=1 {_BESIDE.format('cifar10-b65536')} {_CHANGES}",
    ),
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
