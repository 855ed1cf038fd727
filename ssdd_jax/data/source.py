"""What a source of images offers before any image is decoded, and the choice of its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssdd_jax.errors import UserError

# `RandomState` and not `default_rng`: NumPy promises that its numbers never change, so that neither does
# the choice of the held-out images.
_HOLD_OUT_SEED = 0
_LIMIT_SEED = 1


class Part(NamedTuple):
    """One part of a source, training or test, whose images are decoded on demand.

    Attributes:
        size: The number of images n.
        labels: `(n,)` int32, or None.
        read: Maps k row numbers `(k,)` to images `(k, H, W, C)` uint8.
    """

    size: int
    labels: np.ndarray | None
    read: Callable[[np.ndarray], np.ndarray]


class ImageSource(NamedTuple):
    """Both parts of a source.

    Attributes:
        train: The training part.
        test: The test part, or None when the source has none.
        class_names: One name per class, empty without labels.
    """

    train: Part
    test: Part | None
    class_names: tuple[str, ...]


def hold_out(count: int, labels: np.ndarray | None, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows into kept and held-out ones, always in the same way, and by class when there are labels.

    Args:
        count: The number of rows n.
        labels: `(n,)` integers, or None.
        fraction: The share held out, in `[0, 1)`; 0 holds out nothing, any other share at least one row.

    Returns:
        The kept and the held-out row numbers, each in ascending order.

    Raises:
        UserError: If the share is not in `[0, 1)`, or leaves no row to train on.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"--config.data.test_fraction must be at least 0 and below 1, not {fraction}")
    held = max(1, round(count * fraction)) if fraction > 0 else 0
    if held >= count:
        raise UserError(
            f"cannot hold out {held} of {count} image(s) for the test: add images, or lower --config.data.test_fraction"
        )
    order = np.random.RandomState(_HOLD_OUT_SEED).permutation(count)
    if labels is not None:
        # Spread every class evenly over [0, 1), in shuffled order: any prefix then holds its share of each.
        position = np.empty(count)
        for label in np.unique(labels):
            rows = order[labels[order] == label]
            position[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
        order = order[np.argsort(position[order], kind="stable")]
    return np.sort(order[held:]), np.sort(order[:held])


def limit(rows: np.ndarray, most: int) -> np.ndarray:
    """The first `most` rows after a shuffle that is always the same: a smaller choice lies in a larger.

    Args:
        rows: `(n,)` row numbers.
        most: How many to keep; 0 keeps all of them, in their order.

    Returns:
        The kept row numbers, `(n,)` or `(min(most, n),)`.

    Raises:
        UserError: If `most` is negative.
    """
    if most < 0:
        raise UserError(f"--config.data.train_limit must be 0 (all) or a number of images, not {most}")
    if most == 0:
        return rows
    return np.random.RandomState(_LIMIT_SEED).permutation(rows)[:most]
