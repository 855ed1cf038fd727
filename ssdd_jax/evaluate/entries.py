"""Entries of an evaluation: distilled sets and baselines, each with a function that trains networks on it."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax import data
from ssdd_jax.data import features
from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.distilled import DistilledSet
from ssdd_jax.evaluate import training
from ssdd_jax.evaluate.store import mark
from ssdd_jax.evaluate.training import Rate
from ssdd_jax.runtime.workdir import fingerprint
from ssdd_jax.training import streaming

Array = jax.Array

# Separates the draws from the training keys: `fold_in` with a small number could repeat a key that `split` returns.
DRAW = np.uint32(zlib.crc32(b"random_real"))

# Baselines reported alongside a distilled set. Chance has no networks; `suite` adds its rows.
REFERENCES = ("random_real", "random_init", "full_data", "teacher")

# Methods whose sets consist of images of the data, which KRR-ST's code trains on at a setting of their own.
REAL_IMAGES = ("subset", "rela")

# Training images that weight decay and learning rate are chosen on, at most; half of them if there are fewer.
HELD_OUT = 2000
# Fewer of them than this say nothing about a candidate.
ENOUGH = 20


class SourceData(NamedTuple):
    """The data that sets were distilled from and the teacher, from which the baselines are computed.

    Attributes:
        dataset: The images.
        features: The teacher's features of the images.
        preprocessing: Normalisation constants of the data set.
        teacher: The teacher as a network `(module, variables)`, or None if its features are precomputed.
        moments: Mean and std `(C,)` that normalise the teacher's inputs on every target; None for the moments of each
            target.
        whole: True for the complete data set of that name (all training images, default test split), False for a
            subset.
    """

    dataset: data.Dataset
    features: features.Features
    preprocessing: Preprocessing
    teacher: tuple[nn.Module, Any] | None = None
    moments: tuple[np.ndarray, np.ndarray] | None = None
    whole: bool = True


class Target(NamedTuple):
    """A labelled data set that networks are evaluated on.

    Attributes:
        name: Name in the results.
        dataset: Images and labels; images have the image shape of the sets.
        mean: Mean of each channel of the training images `(C,)`, which normalises both splits (KRR-ST).
        std: Standard deviation of each channel `(C,)`.
        mark: Hash of images and labels.
    """

    name: str
    dataset: data.Dataset
    mean: np.ndarray
    std: np.ndarray
    mark: str


class Images(NamedTuple):
    """Images of an entry for target data-free distillation.

    Attributes:
        inputs: Network inputs `(P,H,W,C)`, or `(seeds,P,H,W,C)`.
        noise: If True, Gaussian noise of that shape replaces the inputs.
    """

    inputs: Array
    noise: bool = False


class Trial(NamedTuple):
    """Networks that the rate of an entry is chosen with, one per candidate.

    Attributes:
        variables: Their variables, with a leading axis of candidates.
        held: Indices of training images of the source that they have not seen.
        final: Whether they are trained on all data of the entry, as its networks are.
    """

    variables: Any
    held: np.ndarray
    final: bool


class Entry(NamedTuple):
    """A distilled set or a baseline: one row of the results.

    Attributes:
        name: Name of the row, such as `distilled` or `random_real`.
        what: Cache key of its networks, besides the architecture, the seed and the rate; JSON values.
        dim: Length of the targets that its networks predict.
        train: Maps keys `(seeds,)`, an architecture and a rate per key to variables with a leading axis of seeds; None
            for the teacher.
        rates: Candidates for learning rate and weight decay; empty if nothing is trained.
        trial: Maps a key and an architecture to a network per candidate; None where there are no images to choose on.
        images: Maps keys `(seeds,)` to the images that `zero_shot_kd` learns from; None if there are none.
        offered: Number of those images.
    """

    name: str
    what: Mapping[str, Any]
    dim: int
    train: Callable[[Array, nn.Module, Sequence[Rate]], Any] | None
    images: Callable[[Array], Images] | None
    offered: int = 0
    rates: tuple[Rate, ...] = ()
    trial: Callable[[Array, nn.Module], Trial] | None = None


class Settings(NamedTuple):
    """Training settings for distilled sets and baselines.

    Attributes:
        pairs: Training on a distilled set, and on N random real images.
        full: Training on the full source set.
        own_rate: Use the learning rate stored with a set, if there is one (MKDT).
        together: Networks trained side by side; 0: chosen by the device and its memory.
        gigabytes: The source set is streamed if it needs more device memory than this; 0: the default limit of
            `streaming.fits`.
    """

    pairs: training.Settings
    full: training.Settings
    own_rate: bool = False
    together: int = 0
    gigabytes: float = 0.0


def of_set(name: str, distilled: DistilledSet, source: SourceData | None, settings: Settings) -> Entry:
    """Create the entry of a distilled set.

    Args:
        name: Name of the row.
        distilled: The set; its pairs are decoded once, here.
        source: Data and teacher that the sets were distilled from; None if unknown.
        settings: Training settings.
    """
    images, targets = distilled.pairs()
    rates = _rates_of(settings, distilled)
    pair_settings = settings.pairs._replace(rates=rates)
    # Subsets hold training images, and other methods start from some: of this source, if its images are the same.
    about, started = distilled.about, np.zeros(0, np.int64)
    if source and about.get("samples") and about.get("images") == fingerprint(source.dataset.train_images):
        started = np.asarray(about["samples"], np.int64)
    held = held_out(len(source.dataset.train_images), started) if source else started[:0]

    def train(keys: Array, network: nn.Module, rates: Sequence[Rate]) -> Any:
        return training.train(
            keys,
            network,
            (images, targets),
            preprocessing=distilled.preprocessing,
            settings=pair_settings,
            rates=rates,
            together=settings.together,
            name=name,
        )

    def trial(key: Array, network: nn.Module) -> Trial:
        return Trial(train(_repeat(key, len(rates)), network, rates), held, final=True)

    what = {"pairs": mark(np.asarray(images), np.asarray(targets)), "training": _plain(pair_settings)}
    if len(started):
        what["samples"] = mark(started)
    dim, offered = targets.shape[-1], lambda keys: Images(images)
    return Entry(name, what, dim, train, offered, len(images), rates, trial if len(held) >= ENOUGH else None)


def of_reference(
    name: str, source: SourceData | None, like: DistilledSet, count: int, settings: Settings
) -> Entry | None:
    """Create the entry of a baseline; None if the source data that it needs is unknown.

    Args:
        name: One of `REFERENCES`, or `random_real_N` where sets differ in size.
        source: Data and teacher that the sets were distilled from; None if unknown.
        like: A set, which determines the image shape and the target length of an untrained network.
        count: Images of the random baseline, N.
        settings: Training settings.
    """
    if name == "random_init":
        return _random_init(like)
    if source is None:
        return None
    if name == "teacher":
        what = {"teacher": mark(source.features.train), "images": content(source.dataset)}
        # Evaluating the teacher takes the network itself or precomputed features of the test images.
        available = source.teacher is not None or source.features.test is not None
        return Entry(name, what, source.features.train.shape[-1], None, None) if available else None
    entry = _random_real(source, count, settings) if name.startswith("random_real") else _full_data(source, settings)
    return entry._replace(name=name)


def _random_init(like: DistilledSet) -> Entry:
    images, targets = like.pairs()
    shape, dim = images.shape[1:], targets.shape[-1]
    return Entry(
        "random_init",
        {"untrained": [*shape, dim]},
        dim,
        lambda keys, network, rates: training.fresh(keys, network, shape),
        lambda keys: Images(images, noise=True),
        len(images),
    )


def _random_real(source: SourceData, count: int, settings: Settings) -> Entry:
    images = source.dataset.train_images
    count = min(count, len(images))
    pairs = streaming.Pairs(images, source.features.train, source.preprocessing)
    rates = with_published(settings.pairs.rates)

    def draw(keys: Array) -> np.ndarray:
        def one(key: Array) -> Array:
            return jax.random.choice(jax.random.fold_in(key, DRAW), len(images), (count,), replace=False)

        return np.asarray(jax.jit(jax.vmap(one))(keys))

    def subsets(keys: Array) -> tuple[Array, Array]:
        # The source set may be larger than the device memory, so only the drawn images are copied.
        drawn_images, targets = pairs.take(draw(keys))
        return source.preprocessing.images(jnp.asarray(drawn_images)), jnp.asarray(targets)

    def train(keys: Array, network: nn.Module, rates: Sequence[Rate]) -> Any:
        return training.train(
            keys,
            network,
            subsets(keys),
            preprocessing=source.preprocessing,
            settings=settings.pairs,
            rates=rates,
            together=settings.together,
            name="random_real",
        )

    def trial(key: Array, network: nn.Module) -> Trial:
        held = held_out(len(images), draw(key[None])[0])
        return Trial(train(_repeat(key, len(rates)), network, rates), held, final=True)

    what = {**of_source(source), "drawn": count, "training": _plain(settings.pairs)}
    dim = source.features.train.shape[-1]
    trial_of = trial if min(len(images) // 2, len(images) - count) >= ENOUGH else None
    return Entry("random_real", what, dim, train, lambda keys: Images(subsets(keys)[0]), count, rates, trial_of)


def _full_data(source: SourceData, settings: Settings) -> Entry:
    whole = streaming.Pairs(
        source.dataset.train_images, source.features.train, source.preprocessing, settings.gigabytes
    )
    rates = settings.full.rates

    def fit(pairs: streaming.Pairs, keys: Array, network: nn.Module, rates: Sequence[Rate]) -> Any:
        # Same networks either way; streaming is slower, but is not limited by the device memory.
        options: dict[str, Any] = {"settings": settings.full, "rates": rates, "together": settings.together}
        options["name"] = "full_data"
        if not streaming.fits(pairs.nbytes, settings.gigabytes):
            return training.train_streamed(keys, network, pairs, **options)
        return training.train(keys, network, pairs.on_device(), preprocessing=source.preprocessing, **options)

    def trial(key: Array, network: nn.Module) -> Trial:
        # These networks must not have seen the held-out images, so that they are trained on the others.
        held = held_out(whole.size)
        rest = whole._replace(indices=np.setdiff1d(np.arange(whole.size), held))
        return Trial(fit(rest, _repeat(key, len(rates)), network, rates), held, final=False)

    what = {**of_source(source), "training": _plain(settings.full)}
    train, trial_of = functools.partial(fit, whole), trial if whole.size // 2 >= ENOUGH else None
    return Entry("full_data", what, source.features.train.shape[-1], train, None, 0, rates, trial_of)


def held_out(count: int, drawn: np.ndarray | None = None) -> np.ndarray:
    """Choose the training images that weight decay and learning rate are chosen on.

    Args:
        count: Number of training images.
        drawn: Indices of images to exclude, because networks are trained on them.

    Returns:
        Indices, int64 `(min(HELD_OUT, count // 2),)`, the same for every network; fewer if too many are excluded.
    """
    order = np.random.default_rng(0).permutation(count)
    if drawn is not None:
        order = order[~np.isin(order, drawn)]
    return order[: min(HELD_OUT, count // 2)]


def _repeat(key: Array, count: int) -> Array:
    # One key for all candidates: they differ in the rate alone.
    return jnp.broadcast_to(key, (count,))


def of_source(source: SourceData) -> dict[str, str]:
    """Return the cache key of a source: hashes of its images and of the teacher's features."""
    return {"images": content(source.dataset), "features": mark(source.features.train)}


@functools.lru_cache(maxsize=16)
def content(dataset: data.Dataset) -> str:
    """Return a hash of all images of a data set, uint8 `(n,H,W,C)` each."""
    test = () if dataset.test_images is None else (dataset.test_images,)
    return mark(dataset.train_images, *test)


def _rates_of(settings: Settings, distilled: DistilledSet) -> tuple[Rate, ...]:
    rates, stored = settings.pairs.rates, distilled.statics.get("learning_rate")
    if settings.own_rate and stored is not None:
        rates = tuple(rate._replace(learning_rate=float(stored)) for rate in rates)
    return with_published(rates) if distilled.about.get("method") in REAL_IMAGES else rates


def with_published(rates: tuple[Rate, ...]) -> tuple[Rate, ...]:
    """Add KRR-ST's settings for sets and for real images to candidates for real images.

    A single setting is final, as in MKDT's protocol, unless it is KRR-ST's for sets: real images have one of their own.
    """
    if len(rates) == 1 and rates[0] != training.PUBLISHED:
        return rates
    return tuple(dict.fromkeys((*rates, training.PUBLISHED, training.PUBLISHED_SUBSET)))


def _plain(settings: training.Settings) -> list[Any]:
    # Written out, since these values are part of cache keys that must not change with the order of the fields.
    plain = [settings.steps, settings.epochs, settings.batch_size, settings.momentum, settings.cosine]
    return plain if settings.precision == "float32" else [*plain, settings.precision]
