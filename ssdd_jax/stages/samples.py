"""The training images that a method starts from, or that a subset consists of, with the features of their views."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from threadpoolctl import threadpool_limits

from ssdd_jax import augment
from ssdd_jax.data import features
from ssdd_jax.data.preprocess import parts
from ssdd_jax.methods.base import Method, Problem, Run, Stage
from ssdd_jax.methods.mkdt import stage as expert_stage
from ssdd_jax.stages import features as teacher_features

Array = jax.Array


def preparations(config: ConfigDict, problem: Problem, method: Method) -> list[Stage]:
    """The stages between the features and the choice of samples: the method's own, and those that the choice needs.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.
        method: The method.

    Returns:
        The stages in order.
    """
    choice: tuple[Stage, ...] = ()
    if method.samples and config.distill.samples == "high_loss":
        choice = (expert_stage.stage(config, problem, keep=False),)
    # One of each name: MKDT's experts, whose trajectories are kept, also provide the losses that the choice needs.
    return list({stage.name: stage for stage in (*choice, *method.stages)}.values())


def choose(run: Run) -> None:
    """Choose the images that the method starts from, with the features of their views, unless they are there."""
    if not (run.work.samples / "rows.npy").exists():
        features.save_samples(run.work.samples, samples_of(run))


def samples_of(run: Run) -> features.Samples:
    """The images that the method starts from, and the teacher's features of their views.

    Args:
        run: A run whose features, and the stages that the choice needs, are there.

    Returns:
        Indices `(M,)` and features `(views,M,D)`.

    Raises:
        UserError: If the features of a view are not finite.
    """
    indices, views = indices_of(run, run.method.samples), run.method.views
    if len(views) == 1:
        return features.Samples(indices, run.features().train[indices][None])
    brought = teacher_features.brought_of(run)
    if brought is not None:
        missing = [name for name in views[1:] if name not in brought.views]
        if missing:
            run.say(f"features: none are given for the views {', '.join(missing)}: they start as the images themselves")
        return features.Samples(indices, features.of_samples(brought, indices, views))
    # The teacher can be run: on every view but the first, whose features are known.
    images = run.dataset.train_images[indices]
    turned = augment.apply(augment.table(views[1:], *images.shape[1:3]), jnp.asarray(images))
    batches = list(teacher_features.of_images(run, np.asarray(turned).reshape(-1, *images.shape[1:])))
    by_view = np.concatenate(batches).reshape(len(views) - 1, len(indices), -1)
    return features.Samples(indices, np.concatenate([run.features().train[indices][None], by_view]))


def indices_of(run: Run, count: int) -> np.ndarray:
    """Indices of the training images that `config.distill.samples` chooses.

    Args:
        run: A run whose features, and the stages that the choice needs, are there.
        count: How many, M; 0 for none.

    Returns:
        int32 `(M,)`, no repetition.
    """
    if not count:
        return np.zeros(0, np.int32)
    indices = SELECTIONS[run.config.distill.samples](run, run.key("samples"), count)
    return np.asarray(indices, np.int32)


def _random(run: Run, key: Array, count: int) -> Array:
    return jax.random.choice(key, run.problem.images, (count,), replace=False)


def _kmeans(run: Run, key: Array, count: int) -> np.ndarray:
    seed = int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max))
    return nearest_to_centres(run.features().train, count, seed)


def _high_loss(run: Run, key: Array, count: int) -> np.ndarray:
    return np.argsort(-expert_stage.store(run).losses(), kind="stable")[:count]


def nearest_to_centres(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The images nearest to the centres of k-means in feature space, a different one for each centre.

    Args:
        features: Float32 `(n,D)`.
        count: Number of centres k.
        seed: Of k-means++.

    Returns:
        Rows, int64 `(k,)`; the largest cluster's comes first.
    """
    from sklearn.cluster import KMeans  # takes longer to load than the rest of the package

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
