"""What is compared: distilled sets, and the reference points beside them."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax import data, inner
from ssdd_jax.data import features
from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.distilled import DistilledSet
from ssdd_jax.evaluate import training
from ssdd_jax.evaluate.store import mark
from ssdd_jax.training import streaming

Array = jax.Array

# A stream apart from the keys that the networks are trained with: `fold_in` with a small number is a key of `split`.
DRAW = np.uint32(zlib.crc32(b"random_real"))

# The rows that a distilled set is read beside; chance has no networks and is added to the table.
REFERENCES = ("random_real", "random_init", "full_data", "teacher")


class SourceData(NamedTuple):
    """The data that sets were distilled from, and the teacher: what the reference points are made of.

    Attributes:
        dataset: The images.
        features: The teacher's features of them.
        preprocessing: Constants of the data set.
        teacher: The teacher as a network `(module, variables)`, or None if its features were brought.
        moments: Mean and std of the images that it takes, whatever the target; None for those of each target.
        whole: Whether the data set is what its name says, not a part of it: all training images, the usual test part.
    """

    dataset: data.Dataset
    features: features.Features
    preprocessing: Preprocessing
    teacher: tuple[nn.Module, Any] | None = None
    moments: tuple[np.ndarray, np.ndarray] | None = None
    whole: bool = True


class Target(NamedTuple):
    """A labelled data set that networks are probed on.

    Attributes:
        name: What it is called.
        dataset: Images and labels, of the sets' image shape.
        mean: Of each channel of the training images `(C,)`, which normalises both parts (KRR-ST).
        std: Of each channel `(C,)`.
        mark: A hash of images and labels.
    """

    name: str
    dataset: data.Dataset
    mean: np.ndarray
    std: np.ndarray
    mark: str


class Images(NamedTuple):
    """What an entry offers for target data-free distillation.

    Attributes:
        inputs: Network inputs `(P,H,W,C)`, or `(seeds,P,H,W,C)`.
        noise: Whether Gaussian noise of that shape is to stand in for them.
    """

    inputs: Array
    noise: bool = False


class Entry(NamedTuple):
    """A row of the results.

    Attributes:
        name: Such as `distilled` or `random_real`.
        what: What its networks depend on besides the architecture and the seed; JSON values.
        dim: Length of the targets that its networks predict.
        train: From keys `(seeds,)` and an architecture to variables with a leading axis of seeds; None for the teacher.
        images: From keys `(seeds,)` to what `zero_shot_kd` learns from; None if there is nothing.
        offered: How many images that is.
    """

    name: str
    what: Mapping[str, Any]
    dim: int
    train: Callable[[Array, nn.Module], Any] | None
    images: Callable[[Array], Images] | None
    offered: int = 0


class Settings(NamedTuple):
    """How networks are trained on distilled sets and on the reference points.

    Attributes:
        pairs: On a set, and on as many random real images.
        full: On the full source set.
        own_rate: Train on a set at the rate that it came with, where it came with one (MKDT).
        together: Networks side by side; 0: as many as the memory holds.
        gigabytes: The source set is streamed if it takes more of the device than this; 0: as `streaming.fits` says.
    """

    pairs: training.Settings
    full: training.Settings
    own_rate: bool = False
    together: int = 0
    gigabytes: float = 0.0


def of_set(name: str, distilled: DistilledSet, settings: Settings) -> Entry:
    """The entry of a distilled set."""
    images, targets = distilled.pairs()
    own = settings.pairs._replace(sgd=_own_rate(settings, distilled))
    train = functools.partial(
        training.train,
        pairs=(images, targets),
        preprocessing=distilled.preprocessing,
        settings=own,
        together=settings.together,
        name=name,
    )
    what = {"pairs": mark(np.asarray(images), np.asarray(targets)), "training": _plain(own)}
    return Entry(name, what, targets.shape[-1], train, lambda keys: Images(images), len(images))


def of_reference(
    name: str, source: SourceData | None, like: DistilledSet, count: int, settings: Settings
) -> Entry | None:
    """The entry of a reference point, or None if it cannot be had.

    Args:
        name: One of `REFERENCES`, or `random_real_N` where sets differ in size.
        source: What the sets were distilled from; None if it is not known.
        like: A set, whose image shape and number of targets an untrained network takes.
        count: Images of the random baseline, N.
        settings: How networks are trained.
    """
    if name == "random_init":
        return _random_init(like)
    if source is None:
        return None
    if name == "teacher":
        what = {"teacher": mark(source.features.train), "images": content(source.dataset)}
        known = source.teacher is not None or source.features.test is not None
        return Entry(name, what, source.features.train.shape[-1], None, None) if known else None
    made = _random_real(source, count, settings) if name.startswith("random_real") else _full_data(source, settings)
    return made._replace(name=name)


def _random_init(like: DistilledSet) -> Entry:
    images, targets = like.pairs()
    shape, dim = images.shape[1:], targets.shape[-1]
    return Entry(
        "random_init",
        {"untrained": [*shape, dim]},
        dim,
        lambda keys, network: training.fresh(keys, network, shape),
        lambda keys: Images(images, noise=True),
        len(images),
    )


def _random_real(source: SourceData, count: int, settings: Settings) -> Entry:
    images = source.dataset.train_images
    count = min(count, len(images))
    pairs = streaming.Pairs(images, source.features.train, source.preprocessing)

    def drawn(keys: Array) -> tuple[Array, Array]:
        def draw(key: Array) -> Array:
            return jax.random.choice(jax.random.fold_in(key, DRAW), len(images), (count,), replace=False)

        rows = np.asarray(jax.jit(jax.vmap(draw))(keys))
        drawn_images, targets = pairs.take(rows)
        return source.preprocessing.images(jnp.asarray(drawn_images)), jnp.asarray(targets)

    def train(keys: Array, network: nn.Module) -> Any:
        return training.train(
            keys,
            network,
            drawn(keys),
            preprocessing=source.preprocessing,
            settings=settings.pairs,
            together=settings.together,
            name="random_real",
        )

    what = {**_of_source(source), "drawn": count, "training": _plain(settings.pairs)}
    dim = source.features.train.shape[-1]
    return Entry("random_real", what, dim, train, lambda keys: Images(drawn(keys)[0]), count)


def _full_data(source: SourceData, settings: Settings) -> Entry:
    def train(keys: Array, network: nn.Module) -> Any:
        pairs = streaming.Pairs(source.dataset.train_images, source.features.train, source.preprocessing)
        options: dict[str, Any] = {"settings": settings.full, "together": settings.together, "name": "full_data"}
        if not streaming.fits(pairs.nbytes, settings.gigabytes):
            return training.train_streamed(keys, network, pairs, **options)
        return training.train(keys, network, pairs.on_device(), preprocessing=source.preprocessing, **options)

    what = {**_of_source(source), "training": _plain(settings.full)}
    return Entry("full_data", what, source.features.train.shape[-1], train, None)


def _of_source(source: SourceData) -> dict[str, str]:
    return {"images": content(source.dataset), "features": mark(source.features.train)}


@functools.lru_cache(maxsize=16)
def content(dataset: data.Dataset) -> str:
    """A hash of all images of a data set."""
    test = () if dataset.test_images is None else (dataset.test_images,)
    return mark(dataset.train_images, *test)


def _own_rate(settings: Settings, distilled: DistilledSet) -> inner.Settings:
    rate = distilled.statics.get("learning_rate")
    if not settings.own_rate or rate is None:
        return settings.pairs.sgd
    return settings.pairs.sgd._replace(learning_rate=float(rate))


def _plain(settings: training.Settings) -> list[Any]:
    sgd = settings.sgd
    return [settings.epochs, settings.batch_size, sgd.learning_rate, sgd.momentum, sgd.weight_decay]
