"""Mini-batches in shuffled epochs, inside one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def batch_of(count: int, batch_size: int) -> tuple[int, int]:
    """Size of a batch and batches per epoch for `count` examples: no batch is larger than the set."""
    size = min(count, batch_size)
    return size, -(-count // size)


def run(key: Array, carry: Any, step: Callable[[Any, Array], Any], *, count: int, batch_size: int, epochs: int) -> Any:
    """Run `carry = step(carry, rows)` over shuffled epochs.

    Every example comes up once an epoch. Where the batches do not divide the set, the last one is filled up from the
    beginning of the epoch's order, so that all have one shape.

    Args:
        key: PRNG key; folded by epoch.
        carry: What `step` updates.
        step: `(carry, rows) -> carry`, rows int32 `(batch,)`.
        count: Number of examples.
        batch_size: Size of a batch; the whole set if that is smaller.
        epochs: Passes over the examples.

    Returns:
        The carry after the last step.
    """
    size, per_epoch = batch_of(count, batch_size)

    def epoch(carry: Any, number: Array) -> tuple[Any, None]:
        order = jax.random.permutation(jax.random.fold_in(key, number), count)
        rows = jnp.resize(order, (per_epoch, size))
        return lax.scan(lambda carry, row: (step(carry, row), None), carry, rows)[0], None

    return lax.scan(epoch, carry, jnp.arange(epochs))[0]
