"""What a distilled set teaches: networks trained on it from scratch, frozen, and probed, beside the baselines.

Nothing here knows which method made the set.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssdd_jax import epochs, inner, probes
from ssdd_jax.distilled import DistilledSet
from ssdd_jax.errors import UserError
from ssdd_jax.preprocess import Preprocessing

Array = jax.Array

# Images per forward pass when features are extracted.
EXTRACT = 256


class Settings(NamedTuple):
    """How networks are trained on pairs and probed.

    Attributes:
        seeds: Networks per entry.
        widths: Channels of each block of a network.
        norm: Its norm, `batch` or `instance`.
        epochs: Passes over a distilled set.
        full_epochs: Passes over the full data set.
        batch_size: Pairs per step.
        inner: Rate, momentum and weight decay of SGD.
        own_rate: Train on the distilled set at the rate that it came with, where it came with one.
        probe: How the linear classifier is trained.
    """

    seeds: int = 3
    widths: tuple[int, ...] = (128, 256, 512)
    norm: str = "batch"
    epochs: int = 1000
    full_epochs: int = 100
    batch_size: int = 256
    inner: inner.Settings = inner.Settings()
    own_rate: bool = False
    probe: probes.Settings = probes.Settings()


class Benchmark(NamedTuple):
    """The data that networks are probed on.

    Attributes:
        train_images: uint8 `(n,H,W,C)`.
        train_features: The teacher's features of them `(n,D)`.
        test_images: uint8 `(m,H,W,C)`.
        test_features: The teacher's features of them `(m,D)`, or None.
        train_labels: int32 `(n,)`, or None.
        test_labels: int32 `(m,)`, or None.
        classes: Number of classes; 0 without labels.
        preprocessing: Constants of the data set.
    """

    train_images: Array
    train_features: Array
    test_images: Array
    test_features: Array | None
    train_labels: Array | None
    test_labels: Array | None
    classes: int
    preprocessing: Preprocessing


def train(
    key: Array,
    images: Array,
    targets: Array,
    *,
    preprocessing: Preprocessing,
    passes: int,
    settings: Settings,
) -> inner.Variables:
    """Train one network on pairs by mean squared error in shuffled mini-batches.

    Args:
        key: PRNG key.
        images: Network inputs `(P,H,W,C)`, or uint8 images, which are normalised batch by batch.
        targets: Regression targets `(P,D)`.
        preprocessing: Constants of the data set.
        passes: Passes over the pairs.
        settings: Network, batch size and SGD.

    Returns:
        The network's variables.
    """
    chex.assert_equal_shape_prefix([images, targets], 1)
    key_init, key_order = jax.random.split(key)
    shape, dim = images.shape[1:], targets.shape[-1]
    state = inner.init(key_init, shape, dim, widths=settings.widths, norm=settings.norm, settings=settings.inner)

    def step(state: inner.State, rows: Array) -> inner.State:
        x = images[rows]
        x = preprocessing.images(x) if x.dtype == jnp.uint8 else x
        return inner.step(state, x, targets[rows], settings=settings.inner)[0]

    state = epochs.run(key_order, state, step, count=len(images), batch_size=settings.batch_size, epochs=passes)
    return state.variables


@functools.partial(jax.jit, static_argnames=("passes", "settings"))
def train_seeds(
    keys: Array,
    images: Array,
    targets: Array,
    *,
    preprocessing: Preprocessing,
    passes: int,
    settings: Settings,
) -> inner.Variables:
    """Train one network per key in one vmapped program.

    Args:
        keys: PRNG keys `(seeds,)`.
        images: `(P,H,W,C)` for all seeds, or `(seeds,P,H,W,C)`.
        targets: `(P,D)` for all seeds, or `(seeds,P,D)`.
        preprocessing: Constants of the data set.
        passes: Passes over the pairs.
        settings: Network, batch size and SGD.

    Returns:
        Variables with a leading axis of seeds.
    """
    own = 0 if images.ndim == 5 else None
    one = functools.partial(train, preprocessing=preprocessing, passes=passes, settings=settings)
    return jax.vmap(one, in_axes=(0, own, own))(keys, images, targets)


@jax.jit
def extract(variables: inner.Variables, images: Array, preprocessing: Preprocessing) -> Array:
    """Features `(n,F)` of uint8 images `(n,H,W,C)`, a batch at a time."""
    count = len(images)
    size = min(EXTRACT, count)
    padded = jnp.pad(images, ((0, -count % size), *((0, 0),) * 3))
    batches = padded.reshape(-1, size, *images.shape[1:])
    found = lax.map(lambda batch: inner.features(variables, preprocessing.images(batch)), batches)
    return found.reshape(len(padded), -1)[:count]


def measure(
    key: Array,
    train_x: Array,
    test_x: Array,
    benchmark: Benchmark,
    *,
    shots: Array | None,
    probe: probes.Settings,
) -> dict[str, float]:
    """Every measure that the benchmark allows of frozen features.

    Args:
        key: PRNG key.
        train_x: Features of the training images `(n,F)`.
        test_x: Features of the test images `(m,F)`.
        benchmark: Labels and the teacher's features.
        shots: From `probes.draw_shots`, or None.
        probe: How the linear classifier is trained.

    Returns:
        `linear` and `few_shot` in percent where there are labels, `feature_r2` where there are the teacher's features.
    """
    found: dict[str, float] = {}
    if benchmark.train_labels is not None and benchmark.test_labels is not None:
        train, test = (train_x, benchmark.train_labels), (test_x, benchmark.test_labels)
        found["linear"] = float(_linear(key, train, test, classes=benchmark.classes, settings=probe))
        if shots is not None:
            found["few_shot"] = float(_few_shot(train, test, shots, classes=benchmark.classes))
    if benchmark.test_features is not None:
        pairs = (train_x, benchmark.train_features), (test_x, benchmark.test_features)
        found["feature_r2"] = float(_feature_r2(*pairs))
    return found


_linear = jax.jit(probes.linear, static_argnames=("classes", "settings"))
_few_shot = jax.jit(probes.few_shot, static_argnames="classes")
_feature_r2 = jax.jit(probes.feature_r2)


class Entry(NamedTuple):
    """A row of the results: its name, and a function from keys `(seeds,)` to features of training and test images."""

    name: str
    features: Callable[[Array], Iterator[tuple[Array, Array]]]


def entries(distilled: DistilledSet, benchmark: Benchmark, count: int, settings: Settings) -> list[Entry]:
    """The distilled set and what it is compared with.

    Args:
        distilled: The set.
        benchmark: The data.
        count: Images of the random baseline, N.
        settings: How networks are trained.

    Returns:
        `distilled`, `random_real` (N random images with the teacher's features), `random_init` (an untrained network),
        `full_data` (trained on all images with the teacher's features) and `teacher`.
    """
    data = benchmark.preprocessing
    targets = data.targets(benchmark.train_features)
    options: dict[str, Any] = {"preprocessing": data, "settings": settings}
    # Together, so that one compiled program serves both.
    images, known = jnp.concatenate([benchmark.train_images, benchmark.test_images]), len(targets)

    def students(variables: inner.Variables) -> Iterator[tuple[Array, Array]]:
        for seed in range(settings.seeds):
            one = jax.tree.map(lambda leaf: leaf[seed], variables)  # noqa: B023, used at once
            features = extract(one, images, data)
            yield features[:known], features[known:]

    def of_distilled(keys: Array) -> Iterator[tuple[Array, Array]]:
        own = _with_own_rate(settings, distilled)
        return students(train_seeds(keys, *distilled.pairs(), preprocessing=data, passes=settings.epochs, settings=own))

    def of_random_real(keys: Array) -> Iterator[tuple[Array, Array]]:
        draw = jax.vmap(lambda key: jax.random.choice(key, len(targets), (count,), replace=False))
        rows = draw(jax.vmap(jax.random.fold_in, (0, None))(keys, 1))
        images = data.images(benchmark.train_images[rows])
        return students(train_seeds(keys, images, targets[rows], passes=settings.epochs, **options))

    def of_random_init(keys: Array) -> Iterator[tuple[Array, Array]]:
        shape, dim = benchmark.train_images.shape[1:], targets.shape[-1]
        sizes: dict[str, Any] = {"widths": settings.widths, "norm": settings.norm}
        fresh = jax.vmap(lambda key: inner.init(key, shape, dim, **sizes).variables)
        return students(fresh(keys))

    def of_full_data(keys: Array) -> Iterator[tuple[Array, Array]]:
        images = benchmark.train_images
        return students(train_seeds(keys, images, targets, passes=settings.full_epochs, **options))

    def of_teacher(keys: Array) -> Iterator[tuple[Array, Array]]:
        assert benchmark.test_features is not None
        for _ in keys:
            yield benchmark.train_features, benchmark.test_features

    found = [
        Entry("distilled", of_distilled),
        Entry("random_real", of_random_real),
        Entry("random_init", of_random_init),
        Entry("full_data", of_full_data),
    ]
    return found if benchmark.test_features is None else [*found, Entry("teacher", of_teacher)]


def _with_own_rate(settings: Settings, distilled: DistilledSet) -> Settings:
    rate = distilled.statics.get("learning_rate")
    if not settings.own_rate or rate is None:
        return settings
    return settings._replace(inner=settings.inner._replace(learning_rate=float(rate)))


def evaluate(entry: Entry, benchmark: Benchmark, *, seed: int, settings: Settings) -> dict[str, dict[str, Any]]:
    """Train, freeze and probe one entry.

    Args:
        entry: From `entries`.
        benchmark: The data.
        seed: Of the run; the same seed gives every entry the same initial networks and few labels.
        settings: How networks are trained and probed.

    Returns:
        For each measure `mean`, `std` (sample standard deviation), `seeds` (how many) and `values`.

    Raises:
        UserError: If a network's features are not finite numbers.
    """
    keys = jax.random.split(jax.random.key(seed), settings.seeds)
    shots = None
    if benchmark.train_labels is not None:
        drawn = probes.draw_shots(seed, np.asarray(benchmark.train_labels), benchmark.classes)
        shots = None if drawn is None else jnp.asarray(drawn)
    found = []
    for key, features in zip(keys, entry.features(keys), strict=True):
        if not all(jnp.isfinite(part).all() for part in features):
            raise UserError(
                f"evaluate: a network of the entry {entry.name} diverged: try a smaller config.evaluate.learning_rate"
            )
        found.append(measure(jax.random.fold_in(key, 2), *features, benchmark, shots=shots, probe=settings.probe))
    return {name: summary([row[name] for row in found]) for name in found[0]}


def summary(values: list[float]) -> dict[str, Any]:
    """`mean`, `std` (sample standard deviation, 0 for one value), `seeds` and `values`, rounded to 4 digits."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {
        "mean": round(float(np.mean(values)), 4),
        "std": round(deviation, 4),
        "seeds": len(values),
        "values": [round(value, 4) for value in values],
    }
