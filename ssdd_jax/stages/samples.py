"""Choice of the training images that a method starts from, with the features of their views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from threadpoolctl import threadpool_limits

from ssdd_jax import augment, methods
from ssdd_jax.data import features
from ssdd_jax.data.preprocess import parts
from ssdd_jax.methods.base import Method, Problem, Run, Stage
from ssdd_jax.methods.mkdt import stage as expert_stage
from ssdd_jax.stages import features as teacher_features

Array = jax.Array

# Images whose views a method's data-dependent settings are chosen by.
PILOT = 1000


def preparations(config: ConfigDict, problem: Problem, method: Method) -> list[Stage]:
    """Return the stages between the features and the choice of samples: those of the method and of the choice.

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
    # Later stages replace earlier ones of the same name: MKDT's experts also provide the losses that the choice needs.
    return list({stage.name: stage for stage in (*choice, *method.stages)}.values())


def choose(run: Run) -> None:
    """Choose the images that the method starts from, and store them with their features; skipped if they exist."""
    if not (run.work.samples / "rows.npy").exists():
        features.save_samples(run.work.samples, samples_of(run))


def samples_of(run: Run) -> features.Samples:
    """Choose the images that the method starts from, and compute the teacher's features of their views.

    Args:
        run: A run with complete features and `preparations`.

    Returns:
        Indices `(M,)`, features `(views,M,D)`, and the changes to the config that the data decide.

    Raises:
        UserError: If the features of a view are not finite.
    """
    changes: Mapping[str, Any] = {}
    if run.method.settle is not None:
        changes = run.method.settle(pilot(run).start())
        run.say(f"samples: chosen by the data: {', '.join(f'{key}={value}' for key, value in changes.items())}")
        run = _changed(run, changes)
    return _with_views(run, indices_of(run, run.method.samples))._replace(changes=changes)


def pilot(run: Run) -> Run:
    """Return a run whose samples are up to `PILOT` random images, with the features of their views."""
    key = jax.random.fold_in(run.key("samples"), PILOT)
    indices = _random(run, key, min(PILOT, run.problem.images))
    return run._replace(chosen=_with_views(run, np.asarray(indices, np.int32)))


def settled(run: Run) -> Run:
    """Apply the changes to the config that the data decide; the stage `samples` must be complete."""
    return _changed(run, run.samples().changes)


def _changed(run: Run, changes: Mapping[str, Any]) -> Run:
    if not changes:
        return run
    config = run.config.copy_and_resolve_references()
    config.update_from_flattened_dict(dict(changes))
    return run._replace(config=config, method=methods.make(config, run.problem)._replace(advice=run.method.advice))


def _with_views(run: Run, indices: np.ndarray) -> features.Samples:
    views = run.method.views
    if len(views) == 1:
        return features.Samples(indices, run.features().train[indices][None])
    precomputed = teacher_features.brought_of(run)
    if precomputed is not None:
        return features.Samples(indices, features.of_samples(precomputed, indices, views))
    # The teacher is run on every view but the first, whose features the previous stage has computed.
    images = run.dataset.train_images[indices]
    rotated = augment.apply(augment.table(views[1:], *images.shape[1:3]), jnp.asarray(images))
    batches = list(teacher_features.of_images(run, np.asarray(rotated).reshape(-1, *images.shape[1:])))
    by_view = np.concatenate(batches).reshape(len(views) - 1, len(indices), -1)
    return features.Samples(indices, np.concatenate([run.features().train[indices][None], by_view]))


def indices_of(run: Run, count: int) -> np.ndarray:
    """Choose training images as `config.distill.samples` selects them.

    Args:
        run: A run with complete features and `preparations`.
        count: Number M of images; 0 for none.

    Returns:
        Indices, int32 `(M,)`, without repetition.
    """
    if not count:
        return np.zeros(0, np.int32)
    indices = SELECTIONS[run.config.distill.samples](run, run.key("samples"), count)
    return np.asarray(indices, np.int32)


def _random(run: Run, key: Array, count: int) -> Array:
    return jax.random.choice(key, run.problem.images, (count,), replace=False)


def _kmeans(run: Run, key: Array, count: int) -> np.ndarray:
    # Scikit-learn takes an integer seed; it is drawn from the stage's key.
    seed = int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max))
    return nearest_to_centres(run.features().train, count, seed)


def _high_loss(run: Run, key: Array, count: int) -> np.ndarray:
    return np.argsort(-expert_stage.store(run).losses(), kind="stable")[:count]


def nearest_to_centres(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Find the image nearest to each centre of k-means in feature space, without repetition.

    Args:
        features: Features, float32 `(n,D)`.
        count: Number k of centres.
        seed: Seed of k-means++.

    Returns:
        Indices, int64 `(k,)`, in the order of decreasing cluster size.
    """
    from sklearn.cluster import KMeans  # imported here because it loads more slowly than the rest of the package

    with threadpool_limits(1):  # so that floating-point sums have the same order on every machine
        clusters = KMeans(count, n_init=1, random_state=seed).fit(features)
        sizes = np.bincount(clusters.labels_, minlength=count)
        taken = np.zeros(len(features), bool)
        squares = np.concatenate([np.square(features[part]).sum(1) for part in parts(len(features))])
        nearest = []
        for centre in clusters.cluster_centers_[np.argsort(-sizes, kind="stable")]:
            # Squared distances up to a constant; images of earlier centres are excluded.
            distances = squares - 2 * (features @ centre)
            distances[taken] = np.inf
            nearest.append(int(distances.argmin()))
            taken[nearest[-1]] = True
    return np.array(nearest)


SELECTIONS: dict[str, Callable[[Run, Array, int], np.ndarray | Array]] = {
    "random": _random,
    "kmeans": _kmeans,
    "high_loss": _high_loss,
}
