"""Stages of the methods for a frozen encoder: classes without labels, and the heads trained on the set."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from threadpoolctl import threadpool_limits

from ssdd_jax import distilled, teacher
from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.errors import UserError
from ssdd_jax.methods.base import Run, Stage, StandIns, Trial
from ssdd_jax.methods.frozen_encoder import distortions, heads
from ssdd_jax.models import frozen
from ssdd_jax.report import statistics
from ssdd_jax.runtime import files

Array = jax.Array
Accuracy = Callable[[Run, tuple[Array, Array]], Callable[[Array, Any], Array]]


class Prepared(NamedTuple):
    """Classes of the training images, int32 `(n,)`."""

    labels: Array


class Labels(NamedTuple):
    """Classes of the training and of the test images, int `(n,)` and `(m,)`."""

    train: np.ndarray
    test: np.ndarray


def labels_of(run: Run) -> Labels:
    """Return the labels of a run's data, or the clusters in their place; the stage `clusters` must be complete."""
    if run.config.encoder.clusters:
        folder = run.work.own("clusters", shared=True)
        return Labels(files.read_array(folder / "train.npy"), files.read_array(folder / "test.npy"))
    assert run.dataset.train_labels is not None and run.dataset.test_labels is not None
    return Labels(np.asarray(run.dataset.train_labels), np.asarray(run.dataset.test_labels))


def load(run: Run) -> Prepared:
    """Read the classes of the training images."""
    return Prepared(jnp.asarray(labels_of(run).train, jnp.int32))


def clusters() -> Stage:
    """Build the stage that finds clusters of the teacher's features, in place of labels."""
    return Stage(
        "clusters",
        _cluster,
        shared=("data", "teacher", "precision", "encoder.clusters"),
        output="clusters/test.npy",
    )


def _cluster(run: Run) -> None:
    folder = run.work.own("clusters", shared=True)
    if (folder / "test.npy").exists():
        return
    from sklearn.cluster import MiniBatchKMeans  # slow to load, and needed only here

    features = run.features()
    seed = int(jax.random.randint(run.key("clusters", shared=True), (), 0, np.iinfo(np.int32).max))
    with threadpool_limits(1):  # so that floating-point sums have the same order on every machine
        found = MiniBatchKMeans(run.config.encoder.clusters, n_init=3, random_state=seed).fit(features.train)
        train, test = found.predict(features.train), found.predict(features.test)
    empty = run.config.encoder.clusters - len(np.unique(train))
    if empty:
        raise UserError(
            f"clusters: {empty} of the {run.config.encoder.clusters} clusters have no training image: lower "
            "config.encoder.clusters"
        )
    files.write_array(folder / "train.npy", train.astype(np.int32))
    files.write_array(folder / "test.npy", test.astype(np.int32))


def encode(pixels: Array, network: frozen.Variables | frozen.Frozen, constants: Preprocessing) -> Array:
    """Compute the encoder's features `(B,D)` of pixels between 0 and 1 `(B,H,W,C)`. Differentiable."""
    return frozen.of(network).apply(constants.inputs(pixels))


def augmentation(config: ConfigDict, *, noise: bool) -> distortions.Settings:
    """Read the settings of the augmentation from a config."""
    low, high = config.encoder.crop_scale
    return distortions.Settings(config.encoder.flip, (low, high), noise)


def _head_settings(config: ConfigDict, epochs: int) -> heads.Settings:
    return heads.Settings(epochs, augmentation=augmentation(config, noise=False))


class Entry(NamedTuple):
    """Labelled images that a head is trained on: pixels `(P,H,W,C)`, features `(P,D)` and classes `(P,)`."""

    pixels: np.ndarray
    features: np.ndarray
    labels: np.ndarray


def entries(run: Run, per_class: int, classes: int, *, fill: bool) -> Iterator[tuple[Array, dict[str, Entry]]]:
    """Yield the key of each seed, with the distilled images and the real ones that they are compared with.

    The features of the distilled images are those of the images as they are stored, which rounding has changed.

    Args:
        run: The run.
        per_class: Distilled images of each class.
        classes: Number of classes.
        fill: Whether a budget in bytes is filled with real images; otherwise there are as many as distilled ones.
    """
    labels, features, pixels = labels_of(run).train, run.features().train, run.dataset.train_images
    constants, distilled_set = run.preprocessing(), distilled.load(run.work.distilled)
    own = np.repeat(np.arange(classes), per_class)
    decoded = constants.pixels(distilled_set.pairs()[0])
    embedded = _embedded(run, decoded)
    real = per_class
    if fill and run.config.storage.bytes:
        real = max(per_class, distilled_set.about.get("random_images", 0) // classes)
    chosen = {
        "centroids": heads.centroids(features, labels, real, classes),
        "neighbours": heads.neighbours(embedded, own, features, labels),
    }
    for key in jax.random.split(run.key("linear_head"), run.config.evaluate.seeds):
        key_head, key_draw = jax.random.split(key)
        drawn = {"random_real": heads.random_images(key_draw, labels, real, classes), **chosen}
        yield (
            key_head,
            {"distilled": Entry(np.asarray(decoded), embedded, own)}
            | {
                name: Entry(pixels[rows].astype(np.float32) / 255, np.asarray(features[rows]), labels[rows])
                for name, rows in drawn.items()
            },
        )


def part(run: Run, name: str, seed: int, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return what a stage has measured for a seed; it is kept as soon as it is done, so that a stage resumes there."""
    return files.sealed_once(output(run, name).with_name(f"seed{seed}.json"), measure)


def _embedded(run: Run, pixels: Array) -> np.ndarray:
    """Compute the encoder's features `(P,D)` of pixels `(P,H,W,C)`, a batch at a time."""
    network, constants, embed = run.backbone(), run.preprocessing(), jax.jit(encode)
    size = teacher.batch_of(network, pixels.shape[1:])
    batches = [pixels[first : first + size] for first in range(0, len(pixels), size)]
    return np.concatenate([np.asarray(embed(batch, network, constants)) for batch in batches])


def output(run: Run, name: str) -> pathlib.Path:
    """Return the path of a stage's results."""
    return run.work.own(name, shared=False) / "results.json"


def write(
    run: Run,
    name: str,
    values: Mapping[str, Sequence[float]],
    *,
    measure: str = "top-1 ",
    images: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Write the results of a stage, the summary of each row's values with its number of images, and say them."""
    summaries = {row: statistics.summary(found) for row, found in values.items()}
    for row, count in images.items():
        summaries[row]["images"] = count
    words = ", ".join(f"{row} {statistics.brief(one)}" for row, one in summaries.items())
    run.say(f"{name}: {measure}{words}")
    files.write_sealed(output(run, name), summaries)


def _stage(
    name: str, accuracy: Accuracy, per_class: int, classes: int, *, drawn: bool = False, **options: Any
) -> Stage:
    """Build a stage that measures heads on the set and on its baselines, and writes their accuracies.

    Where only the random images depend on the seed (`drawn`), all others are measured once.
    """

    def measure(run: Run) -> None:
        if output(run, name).exists():
            return
        test = jnp.asarray(run.features().test), jnp.asarray(labels_of(run).test)
        of_entry = accuracy(run, test)
        values: dict[str, list[float]] = {}
        counts: dict[str, int] = {}
        for seed, (key, by_name) in enumerate(entries(run, per_class, classes, fill=True)):
            asked = [entry for entry in by_name if not (drawn and seed and entry != "random_real")]
            found = part(run, name, seed, lambda: {e: float(of_entry(key, by_name[e])) for e in asked})  # noqa: B023
            for entry in asked:
                values.setdefault(entry, []).append(found[entry])
                counts[entry] = len(by_name[entry].labels)
        write(run, name, values, images=counts)

    return Stage(name, measure, output=f"{name}/results.json", **options)


def ridge_head(per_class: int, classes: int) -> Stage:
    """Build the stage that fits heads by ridge regression to the features of the set and of its baselines.

    Args:
        per_class: Distilled images of each class.
        classes: Number of classes.
    """

    def accuracy(run: Run, test: tuple[Array, Array]) -> Callable[[Array, Entry], Array]:
        constants = run.preprocessing()

        @jax.jit
        def of_entry(features: Array, labels: Array, tested: Array, wanted: Array) -> Array:
            features, tested = constants.targets(features), constants.targets(tested)
            found = heads.ridge(features, labels, tested, classes=classes, ridge_scale=run.config.encoder.ridge_scale)
            return 100 * (found == wanted).mean()

        return lambda key, entry: of_entry(jnp.asarray(entry.features), jnp.asarray(entry.labels), *test)

    return _stage("ridge_head", accuracy, per_class, classes, drawn=True)


def linear_head(per_class: int, classes: int) -> Stage:
    """Build the stage that trains heads on the set and on its baselines as published, and tests them on real images.

    Args:
        per_class: Distilled images of each class.
        classes: Number of classes.
    """

    def accuracy(run: Run, test: tuple[Array, Array]) -> Callable[[Array, Entry], Array]:
        train = _train(classes, _head_settings(run.config, run.config.encoder.head_epochs))
        constants, network = run.preprocessing(), run.backbone()

        @jax.jit
        def of_entry(key: Array, pixels: Array, labels: Array, tested: Array, wanted: Array, network: Any) -> Array:
            head = train(key, pixels, labels, network, constants)
            return 100 * (head.scores(tested).argmax(-1) == wanted).mean()

        return lambda key, entry: of_entry(key, entry.pixels, entry.labels, *test, network)

    def trials(stand: StandIns) -> list[Trial]:
        """Trial of some epochs of one head, which stand for those of four of every seed."""
        config, tried = stand.run.config, 2
        train = jax.jit(_train(classes, _head_settings(config, tried)))
        labels = jnp.repeat(jnp.arange(classes), per_class)
        images = jnp.asarray(stand.normal(len(labels), *stand.run.problem.image_shape))
        count = 4 * config.evaluate.seeds * config.encoder.head_epochs
        arguments = jax.random.key(0), images, labels, stand.backbone, stand.preprocessing
        return [Trial("epochs", count, train, arguments, units=tried)]

    return _stage("linear_head", accuracy, per_class, classes, trials=trials, lower="config.encoder.head_epochs")


def _train(classes: int, settings: heads.Settings) -> Callable[..., heads.Head]:
    """Return `(key, pixels, labels, network, constants) -> head`."""

    def train(key: Array, pixels: Array, labels: Array, network: Any, constants: Preprocessing) -> heads.Head:
        return heads.train(
            key, pixels, labels, lambda x: encode(x, network, constants), classes=classes, settings=settings
        )

    return train
