"""Image sources that decode on demand, and the choice of the images to use from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssdd_jax.errors import UserError

# `RandomState` rather than `default_rng`: NumPy guarantees that its stream never changes, so the held-out
# images stay the same across versions.
_HOLD_OUT_SEED = 0
_LIMIT_SEED = 1


class Part(NamedTuple):
    """One part of a source, training or test, whose images are decoded on demand.

    Attributes:
        size: Number of images n.
        labels: `(n,)` int32, or None.
        read: Maps image indices `(k,)` to images `(k, H, W, C)` uint8.
        lengths: Maps image indices `(k,)` to the bytes of the files they are in, int64 `(k,)`, without reading these;
            None where images share files.
    """

    size: int
    labels: np.ndarray | None
    read: Callable[[np.ndarray], np.ndarray]
    lengths: Callable[[np.ndarray], np.ndarray] | None = None


class ImageSource(NamedTuple):
    """The training part and the test part of a source.

    Attributes:
        train: The training part.
        test: The test part, or None when the source has none.
        class_names: One name per class, empty without labels.
        notes: What a user should know about the source, such as images that are not read; one line each.
    """

    train: Part
    test: Part | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def hold_out(count: int, labels: np.ndarray | None, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Split image indices into training and held-out ones: deterministic, and stratified by class if labelled.

    Args:
        count: Number of images n.
        labels: `(n,)` integers, or None.
        fraction: Held-out share in `[0, 1)`; 0 holds out nothing, any other share at least one image.

    Returns:
        The training and the held-out indices, `(n - h,)` and `(h,)`, each in ascending order.

    Raises:
        UserError: If the share is not in `[0, 1)`, or leaves no image to train on.
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
        # Spread every class evenly over [0, 1), in shuffled order: any prefix then holds its share of each class.
        position = np.empty(count)
        by_class = order[np.argsort(labels[order], kind="stable")]
        _, first, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
        position[by_class] = (np.arange(count) - np.repeat(first, sizes) + 0.5) / np.repeat(sizes, sizes)
        order = order[np.argsort(position[order], kind="stable")]
    # Ascending, so that both parts keep the order of the source.
    return np.sort(order[held:]), np.sort(order[:held])


def limit(rows: np.ndarray, most: int) -> np.ndarray:
    """Select the first `most` indices after a fixed shuffle, so that smaller selections are nested in larger ones.

    Args:
        rows: Image indices `(n,)`.
        most: Number of indices to keep; 0 keeps all of them, in their order.

    Returns:
        The selected indices, `(n,)` or `(min(most, n),)`.

    Raises:
        UserError: If `most` is negative.
    """
    if most < 0:
        raise UserError(f"--config.data.train_limit must be 0 (all) or a number of images, not {most}")
    if most == 0:
        return rows
    # Another seed than that of `hold_out`: the two choices are independent.
    return np.random.RandomState(_LIMIT_SEED).permutation(rows)[:most]
