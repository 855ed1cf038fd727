"""Training of a network on a distilled set: `ssdd_jax.train`.

    import ssdd_jax
    student = ssdd_jax.train(distilled, "resnet18")
    features = student.features(images)  # for a linear classifier, a search, a plot

`ssdd_jax.evaluate` measures how good such networks are in comparison with baselines.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from ssdd_jax import config, inner, models
from ssdd_jax.data import conversion
from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.distilled import DistilledSet
from ssdd_jax.errors import UserError, whole
from ssdd_jax.evaluate import extraction, training


class Student(NamedTuple):
    """A trained network.

    Attributes:
        network: The architecture, a Flax module: `network.apply(variables, inputs, train=False)` gives features `(B,F)`
            and predicted targets `(B,D)`.
        variables: Its parameters and batch statistics.
        preprocessing: Maps uint8 images to network inputs, and predicted targets to the teacher's features.
        image_shape: `(H,W,C)` of the images that it was trained on.
    """

    network: nn.Module
    variables: Any
    preprocessing: Preprocessing
    image_shape: tuple[int, int, int]

    def features(self, images: Any) -> np.ndarray:
        """Extract features `(n,F)`, float32, of images `(n,H,W,C)`, batch by batch.

        Args:
            images: uint8 of the shape that it was trained on, or whatever `ssdd_jax.data.conversion.to_images` takes.

        Raises:
            UserError: If the images are of another form, or their features do not fit in memory.
        """
        images = conversion.to_images("images", images)
        if images.shape[1:] != self.image_shape:
            own, given = ("x".join(map(str, shape)) for shape in (self.image_shape, images.shape[1:]))
            raise UserError(f"images are {given}, and the network was trained on {own} (height x width x channels)")
        mean, std = np.asarray(self.preprocessing.image_mean), np.asarray(self.preprocessing.image_std)
        return extraction.extract(self.network, self.variables, images, mean=mean, std=std)


def train(
    distilled: DistilledSet,
    model: str = "convnet",
    *,
    seed: int = 0,
    epochs: int = 1000,
    batch_size: int = 256,
    learning_rate: float | None = None,
) -> Student:
    """Train a network on a set's pairs by mean squared error, with SGD, momentum 0.9 and weight decay 1e-3 (KRR-ST).

    Args:
        distilled: The set.
        model: An architecture of `ssdd_jax.models.architectures`, such as `convnet`, `resnet18` or, for a CPU,
            `convnet_32_64_128_bn`.
        seed: Seed of the initialization and of the order of the pairs, from 0 to 2**32 - 1.
        epochs: Passes over the pairs.
        batch_size: Pairs per step.
        learning_rate: Rate of SGD. Default: the rate stored in the set (MKDT), otherwise 0.1.

    Returns:
        The trained network.

    Raises:
        UserError: If there is no such architecture, it does not suit the images, a value is out of range, or the
            training diverges.
    """
    if not isinstance(distilled, DistilledSet):
        raise UserError(f"{distilled!r} is not a set: read one with ssdd_jax.load")
    epochs, batch_size = whole("epochs", epochs, 1), whole("batch_size", batch_size, 2)
    seed = whole("seed", seed, 0, config.LARGEST_SEED)
    inputs, targets = distilled.pairs()
    height, width, channels = inputs.shape[1:]
    try:
        network = models.make(str(model), targets.shape[-1], (height, width, channels))
    except ValueError as error:
        raise UserError(str(error)) from None
    if learning_rate is None:
        learning_rate = float(distilled.statics.get("learning_rate", inner.Settings().learning_rate))
    try:
        rate = float(learning_rate)
    except (TypeError, ValueError):
        rate = math.nan
    if not 0 < rate < math.inf:
        raise UserError(f"learning_rate={learning_rate!r} is out of range: it must be a number above 0")
    # `training.train` trains networks side by side: here one, whose leading axis is dropped below.
    stacked = training.train(
        jax.random.split(jax.random.key(seed), 1),
        network,
        (inputs, targets),
        preprocessing=distilled.preprocessing,
        settings=training.Settings(epochs=epochs, batch_size=batch_size, rates=(training.Rate(rate),)),
        name=model,
    )
    variables = jax.tree.map(lambda leaf: leaf[0], stacked)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)):
        raise UserError(f"{model} diverged at the learning_rate {rate:g}: try a smaller one")
    return Student(network, variables, distilled.preprocessing, (height, width, channels))
