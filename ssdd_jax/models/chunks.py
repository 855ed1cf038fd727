"""A few images at a time, so that what is made of them on the way stays in a CPU's cache."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ssdd_jax.models.precision import at_least_float32

Array = jax.Array

# Made of one chunk, at most: about a third of a third-level cache of 32 MiB. Half and twice as much were within 10 %.
BYTES = 12 * 2**20


def images_per_chunk(count: int, bytes_of_one: int, *, least: int = 1) -> int:
    """How many of `count` images to take at a time; all of them on an accelerator, which has no such cache.

    Args:
        count: Number of images.
        bytes_of_one: What is made of one.
        least: As many at least, if there are.

    Returns:
        A divisor of `count` if there is one near: a chunk left over would be joined to the others by copying them all.
    """
    if jax.default_backend() != "cpu":
        return max(count, 1)
    most = max(1, min(count, max(BYTES // bytes_of_one, least)))
    even = [size for size in range(most, most // 2, -1) if count % size == 0]
    return even[0] if even else most


def mapped(function: Callable[[Array], Array], x: Array, size: int) -> Array:
    """`function` of images `(B,...)`, `size` at a time: the results `(B,...)`."""
    chunks, rest = _split(x, size)
    if len(chunks) < 2:
        return function(x)
    out = lax.map(function, chunks)
    out = out.reshape(-1, *out.shape[2:])
    return jnp.concatenate([out, function(rest)]) if len(rest) else out


def through(function: Callable[[Array], Array], x: Array, size: int) -> Array:
    """A network's forward pass over images `(B,...)`: `size` at a time on a CPU, all at once on an accelerator."""
    return mapped(function, x, size if jax.default_backend() == "cpu" else max(len(x), 1))


def summed(function: Callable[[Array, Array], Array], x: Array, y: Array, size: int) -> Array:
    """The sum of `function` over images of both, `(B,...)`, `size` at a time."""
    (xs, x_rest), (ys, y_rest) = _split(x, size), _split(y, size)
    if len(xs) < 2:
        return function(x, y)
    like = jax.eval_shape(function, xs[0], ys[0])
    # Of half precision the sum is kept in float32. The first chunk apart would copy all others.
    start = at_least_float32(jnp.zeros_like(like))

    def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        return total + function(*pair).astype(total.dtype), None

    total, _ = lax.scan(add, start, (xs, ys))
    total = add(total, (x_rest, y_rest))[0] if len(x_rest) else total
    return total.astype(like.dtype)


def _split(x: Array, size: int) -> tuple[Array, Array]:
    """The whole chunks `(count,size,...)`, and what is left over."""
    count = len(x) // size
    return x[: count * size].reshape(count, size, *x.shape[1:]), x[count * size :]
