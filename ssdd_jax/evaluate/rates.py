"""Choice of learning rate and weight decay by the teacher's features of held-out training images, without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from ssdd_jax.evaluate import extraction, training
from ssdd_jax.evaluate.entries import SourceData
from ssdd_jax.evaluate.protocols.probes import compiled
from ssdd_jax.evaluate.protocols.probes.pieces import Placing
from ssdd_jax.evaluate.training import Rate


def usual(candidates: Sequence[Rate]) -> Rate:
    """Return the candidate with the published weight decay, or the first, for use where none can be chosen."""
    published = [rate for rate in candidates if rate.weight_decay == training.PUBLISHED.weight_decay]
    return (published or list(candidates))[0]


def explained(
    network: tuple[nn.Module, Any], source: SourceData, held: np.ndarray, *, placing: Placing, calibrated: int = 0
) -> float:
    """Compute how much of the teacher's features a network's features explain on images that it has not seen.

    Args:
        network: A module and its variables.
        source: Images and the teacher's features of them.
        held: Indices of the images, `(k,)`.
        placing: Places the features on the device.
        calibrated: Number of these that batch norm is calibrated on; 0 for none.

    Returns:
        R2 of ridge regression from one half of the images to the other; NaN if the network's features are not finite.
    """
    images, targets = source.dataset.train_images[held], source.features.train[held]
    mean, std = np.asarray(source.preprocessing.image_mean), np.asarray(source.preprocessing.image_std)
    if calibrated:
        network = network[0], extraction.calibrate(*network, images[:calibrated], mean=mean, std=std)
    features, half = extraction.extract(*network, images, mean=mean, std=std), len(images) // 2
    if not np.isfinite(features).all():
        return float("nan")
    placed = placing.place(
        train=features[:half], test=features[half:], teacher_train=targets[:half], teacher_test=targets[half:]
    )
    train, test = (placed["train"], placed["teacher_train"]), (placed["test"], placed["teacher_test"])
    return float(compiled.feature_r2(train, test).plain)


def best(candidates: Sequence[Rate], values: Mapping[str, float]) -> Rate:
    """Return the candidate with the largest value; `values` are by `words`, and lack those that diverged."""
    return max(candidates, key=lambda rate: values.get(words(rate), -np.inf))


def words(rate: Rate) -> str:
    """Name a rate for the user."""
    return f"rate {rate.learning_rate:g}, weight decay {rate.weight_decay:g}"
