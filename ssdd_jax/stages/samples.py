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
from ssdd_jax.runtime import files
from ssdd_jax.stages import features as teacher_features
from ssdd_jax.training import loop, streaming

Array = jax.Array

# Images whose views a method's data-dependent settings are chosen by.
PILOT = 1000
# Copies of the features that scikit-learn's k-means makes, and arrays of the size of a piece.
COPIES = 3
# Largest number of passes of k-means over features that are read in pieces; fewer once the centres move by less than
# the share `SHIFT` of their variance.
PASSES, SHIFT = 30, 1e-4
# Images nearest to each centre that are kept in one pass.
CANDIDATES = 16


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
        source = pilot(run).start()
        with loop.working("samples: choosing sizes"):
            changes = run.method.settle(source)
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
    return methods.changed(run, changes) if changes else run


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


def nearest_to_centres(features: np.ndarray, count: int, seed: int, *, limit: int = 0) -> np.ndarray:
    """Find the image nearest to each centre of k-means in feature space, without repetition.

    Args:
        features: Features, float32 `(n,D)`, in memory or mapped from disk.
        count: Number k of centres.
        seed: Seed of k-means++.
        limit: Bytes of the host's memory; 0 for the share `streaming.SHARE` of the machine's. Features whose copies
            exceed it are read in pieces.

    Returns:
        Indices, int64 `(k,)`, in the order of decreasing cluster size.
    """
    from sklearn.cluster import KMeans  # imported here because it loads more slowly than the rest of the package

    limit = limit or int(streaming.SHARE * files.machine_bytes())
    with threadpool_limits(1):  # so that floating-point sums have the same order on every machine
        if COPIES * features.nbytes > limit:
            return _nearest_streamed(features, count, seed, limit)
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


def _nearest_streamed(features: np.ndarray, count: int, seed: int, limit: int) -> np.ndarray:
    """Compute `nearest_to_centres` in pieces: k-means of a random part, then Lloyd's iterations on all features."""
    from sklearn.cluster import KMeans

    total, width = features.shape
    # A part that k-means may copy, and pieces whose distances to all centres fit.
    part = min(total, max(count, limit // (COPIES * 4 * width)))
    drawn = np.sort(np.random.default_rng(seed).permutation(total)[:part])
    centres = KMeans(count, n_init=1, random_state=seed).fit(streaming.gather(features, drawn)).cluster_centers_
    rows = max(1, limit // (COPIES * 8 * (width + count)))
    for _ in range(PASSES):
        sums, sizes = np.zeros((count, width)), np.zeros(count, np.int64)
        for begin in range(0, total, rows):
            piece = np.asarray(features[begin : begin + rows])
            labels = _distances(piece, centres).argmin(1)
            np.add.at(sums, labels, piece)
            sizes += np.bincount(labels, minlength=count)
        # A centre without images stays where it is.
        moved = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres).astype(np.float32)
        shift, centres = np.square(moved - centres).sum(), moved
        if shift <= SHIFT * np.square(centres - centres.mean(0)).mean():
            break
    candidates = _candidates(features, centres, rows)
    taken: set[int] = set()
    nearest = []
    for centre in np.argsort(-sizes, kind="stable"):
        free = [index for index in candidates[centre].tolist() if index not in taken]
        # All candidates may have been taken by larger clusters, which takes another pass.
        nearest.append(free[0] if free else _nearest_free(features, centres[centre], taken, rows))
        taken.add(nearest[-1])
    return np.array(nearest)


def _distances(piece: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances `(rows,k)` of features `(rows,D)` to centres `(k,D)`."""
    return np.square(piece).sum(1)[:, None] - 2 * (piece @ centres.T) + np.square(centres).sum(1)[None]


def _candidates(features: np.ndarray, centres: np.ndarray, rows: int) -> np.ndarray:
    """Indices `(k,c)` of the images nearest to each centre, the nearest first, in one pass."""
    most = min(CANDIDATES, len(features))
    distances = np.full((len(centres), most), np.inf, np.float32)
    indices = np.zeros((len(centres), most), np.int64)
    for begin in range(0, len(features), rows):
        piece = np.asarray(features[begin : begin + rows])
        new = np.concatenate([distances, _distances(piece, centres).T], 1)
        positions = np.broadcast_to(np.arange(begin, begin + len(piece)), (len(centres), len(piece)))
        order = np.argsort(new, 1, kind="stable")[:, :most]
        distances = np.take_along_axis(new, order, 1)
        indices = np.take_along_axis(np.concatenate([indices, positions], 1), order, 1)
    return indices


def _nearest_free(features: np.ndarray, centre: np.ndarray, taken: set[int], rows: int) -> int:
    """Index of the image nearest to a centre that is not taken."""
    best = (np.inf, -1)
    for begin in range(0, len(features), rows):
        distances = _distances(np.asarray(features[begin : begin + rows]), centre[None])[:, 0]
        distances[[index - begin for index in taken if begin <= index < begin + len(distances)]] = np.inf
        best = min(best, (float(distances.min()), begin + int(distances.argmin())))
    return best[1]


SELECTIONS: dict[str, Callable[[Run, Array, int], np.ndarray | Array]] = {
    "random": _random,
    "kmeans": _kmeans,
    "high_loss": _high_loss,
}
