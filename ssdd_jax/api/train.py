"""A network trained from scratch on a distilled set, and its features of any images: `ssdd_jax.train`.

    import ssdd_jax
    student = ssdd_jax.train(distilled, "resnet18")
    found = student.features(images)  # for a linear classifier, a search, a plot

How good such networks are, beside others, is what `ssdd_jax.evaluate` measures.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from ssdd_jax import inner, models
from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.distilled import DistilledSet
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate import training


class Student(NamedTuple):
    """A trained network.

    Attributes:
        network: The architecture, a Flax module: `network.apply(variables, inputs, train=False)` gives features `(B,F)`
            and predicted targets `(B,D)`.
        variables: Its parameters and batch statistics.
        preprocessing: From uint8 images to its inputs, and from the targets that it predicts to the teacher's features.
    """

    network: nn.Module
    variables: Any
    preprocessing: Preprocessing

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features `(n,F)`, float32, of uint8 images `(n,H,W,C)`, a batch at a time.

        Raises:
            UserError: If they are not uint8, or there is not the memory for their features.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UserError(f"images must be uint8 (n, height, width, channels), not {images.dtype} {images.shape}")
        mean, std = np.asarray(self.preprocessing.image_mean), np.asarray(self.preprocessing.image_std)
        return training.extract(self.network, self.variables, images, mean=mean, std=std)


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
        seed: Of the network's start and of the order of the pairs.
        epochs: Passes over the pairs.
        batch_size: Pairs per step.
        learning_rate: Of SGD; if left out the one that the set came with (MKDT), else 0.1.

    Returns:
        The trained network.

    Raises:
        UserError: If there is no such architecture, it does not suit the images, a number is out of range, or the
            weights are no numbers any more.
    """
    inputs, targets = distilled.pairs()
    height, width, channels = inputs.shape[1:]
    try:
        network = models.make(model, targets.shape[-1], (height, width, channels))
    except ValueError as error:
        raise UserError(str(error)) from None
    if epochs < 1 or batch_size < 2:
        raise UserError(f"epochs={epochs}, batch_size={batch_size}: train for at least one epoch, two pairs at a time")
    if learning_rate is None:
        learning_rate = float(distilled.statics.get("learning_rate", inner.Settings().learning_rate))
    rate = float(learning_rate)
    if rate <= 0:
        raise UserError(f"learning_rate={rate:g} must be above 0")
    stacked = training.train(
        jax.random.split(jax.random.key(seed), 1),
        network,
        (inputs, targets),
        preprocessing=distilled.preprocessing,
        settings=training.Settings(epochs, batch_size, inner.Settings(rate)),
        name=model,
    )
    variables = jax.tree.map(lambda leaf: leaf[0], stacked)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)):
        raise UserError(f"{model} diverged at the learning_rate {rate:g}: try a smaller one")
    return Student(network, variables, distilled.preprocessing)
