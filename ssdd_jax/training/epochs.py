"""Mini-batches of shuffled epochs, inside one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def batch_of(count: int, batch_size: int) -> tuple[int, int]:
    """Return the batch size and the number of batches per epoch for `count` examples; a batch never exceeds the set."""
    size = min(count, batch_size)
    return size, -(-count // size)


def shuffled(key: Array, *, count: int, batch_size: int) -> Array:
    """Draw the mini-batches of one epoch.

    Every example occurs once. If the batch size does not divide the set, the last batch is filled up from the beginning
    of the epoch's order, so that all batches have the same shape.

    Args:
        key: PRNG key.
        count: Number of examples.
        batch_size: Size of a batch; the whole set if that is smaller.

    Returns:
        Indices, int `(batches,batch)`.
    """
    size, per_epoch = batch_of(count, batch_size)
    return jnp.resize(jax.random.permutation(key, count), (per_epoch, size))


def run(key: Array, carry: Any, step: Callable[[Any, Array], Any], *, count: int, batch_size: int, epochs: int) -> Any:
    """Run `carry = step(carry, rows)` over the mini-batches of shuffled epochs.

    Args:
        key: PRNG key; folded by epoch.
        carry: State that `step` updates.
        step: `(carry, rows) -> carry`, with `rows` the indices of a batch, int32 `(batch,)`.
        count: Number of examples.
        batch_size: Size of a batch; the whole set if that is smaller.
        epochs: Passes over the examples.

    Returns:
        The carry after the last step.
    """

    def epoch(carry: Any, number: Array) -> tuple[Any, None]:
        return one(key, carry, step, number, count=count, batch_size=batch_size), None

    return lax.scan(epoch, carry, jnp.arange(epochs))[0]


def one(
    key: Array, carry: Any, step: Callable[[Any, Array], Any], number: Array, *, count: int, batch_size: int
) -> Any:
    """Run a single epoch of `run`.

    Args:
        key: PRNG key; folded by `number`.
        carry: State that `step` updates.
        step: `(carry, rows) -> carry`, with `rows` the indices of a batch, int32 `(batch,)`.
        number: Number of the epoch, a scalar.
        count: Number of examples.
        batch_size: Size of a batch; the whole set if that is smaller.

    Returns:
        The carry after the last step of the epoch.
    """
    rows = shuffled(jax.random.fold_in(key, number), count=count, batch_size=batch_size)
    return lax.scan(lambda carry, row: (step(carry, row), None), carry, rows)[0]
