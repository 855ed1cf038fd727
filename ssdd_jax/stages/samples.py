"""Which images a method starts from, or a subset consists of."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from ssdd_jax.data.preprocess import parts
from ssdd_jax.methods import Problem, Stage
from ssdd_jax.methods.mkdt import stage
from ssdd_jax.methods.run import Run

Array = jax.Array


def stages(config: ConfigDict, problem: Problem) -> tuple[Stage, ...]:
    """The stages that the choice needs."""
    return (stage.stage(config, problem, keep=False),) if config.distill.samples == "high_loss" else ()


def choose(run: Run, count: int) -> np.ndarray:
    """The images that `config.distill.samples` chooses.

    Args:
        run: A run whose features, and the stages that the choice needs, are there.
        count: How many, M; 0 for none.

    Returns:
        int32 `(M,)`, no repetition.
    """
    if not count:
        return np.zeros(0, np.int32)
    rows = SELECTIONS[run.config.distill.samples](run, run.key("samples"), count)
    return np.asarray(rows, np.int32)


def _random(run: Run, key: Array, count: int) -> Array:
    return jax.random.choice(key, run.problem.images, (count,), replace=False)


def _kmeans(run: Run, key: Array, count: int) -> np.ndarray:
    seed = int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max))
    return nearest_to_centres(run.features().train, count, seed)


def _high_loss(run: Run, key: Array, count: int) -> np.ndarray:
    return np.argsort(-stage.store(run).losses(), kind="stable")[:count]


def nearest_to_centres(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The images nearest to the centres of k-means in feature space, a different one for each centre.

    Args:
        features: Float32 `(n,D)`.
        count: Number of centres k.
        seed: Of k-means++.

    Returns:
        Rows, int64 `(k,)`; the largest cluster's comes first.
    """
    with threadpool_limits(1):  # so that sums are always made in the same order
        found = KMeans(count, n_init=1, random_state=seed).fit(features)
        sizes = np.bincount(found.labels_, minlength=count)
        taken = np.zeros(len(features), bool)
        squares = np.concatenate([np.square(features[part]).sum(1) for part in parts(len(features))])
        rows = []
        for centre in found.cluster_centers_[np.argsort(-sizes, kind="stable")]:
            distances = squares - 2 * (features @ centre)  # but for a constant
            distances[taken] = np.inf
            rows.append(int(distances.argmin()))
            taken[rows[-1]] = True
    return np.array(rows)


SELECTIONS: dict[str, Callable[[Run, Array, int], np.ndarray | Array]] = {
    "random": _random,
    "kmeans": _kmeans,
    "high_loss": _high_loss,
}
