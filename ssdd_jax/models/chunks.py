"""Chunked computation for CPUs: a few images at a time, so that intermediate results stay in the cache."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ssdd_jax.models.precision import at_least_float32

Array = jax.Array

# Upper limit for the intermediate results of a chunk: about a third of a third-level cache of 32 MiB. Half and twice
# this size were within 10 %.
BYTES = 12 * 2**20


def images_per_chunk(count: int, bytes_of_one: int, *, least: int = 1) -> int:
    """Choose the number of images per chunk.

    Args:
        count: Number of images.
        bytes_of_one: Size of the intermediate results of one image.
        least: Minimum number of images per chunk, if there are as many.

    Returns:
        A divisor of `count` if there is one nearby: joining an incomplete last chunk to the others would copy them all.
    """
    limit = max(1, min(count, max(BYTES // bytes_of_one, least)))
    divisors = [size for size in range(limit, limit // 2, -1) if count % size == 0]
    return divisors[0] if divisors else limit


def mapped(function: Callable[[Array], Array], x: Array, size: int) -> Array:
    """Apply `function` to images `(B,...)`, `size` at a time; returns the results `(B,...)`."""
    chunks, rest = _split(x, size)
    if len(chunks) < 2:
        return function(x)
    out = lax.map(function, chunks)
    out = out.reshape(-1, *out.shape[2:])
    return jnp.concatenate([out, function(rest)]) if len(rest) else out


def through(function: Callable[[Array], Array], x: Array, size: int) -> Array:
    """Run a forward pass over images `(B,...)`: `size` at a time on a CPU, all at once on an accelerator."""
    if len(x) < 2 * size:
        return function(x)
    return lax.platform_dependent(x, cpu=lambda x: mapped(function, x, size), default=function)


def summed(function: Callable[[Array, Array], Array], x: Array, y: Array, size: int) -> Array:
    """Sum `function` over chunks of `size` images of both arrays `(B,...)`."""
    (xs, x_rest), (ys, y_rest) = _split(x, size), _split(y, size)
    if len(xs) < 2:
        return function(x, y)
    like = jax.eval_shape(function, xs[0], ys[0])
    # Half precision accumulates in float32. Starting from the first chunk instead of zeros would copy all the others.
    start = at_least_float32(jnp.zeros_like(like))

    def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        return total + function(*pair).astype(total.dtype), None

    total, _ = lax.scan(add, start, (xs, ys))
    total = add(total, (x_rest, y_rest))[0] if len(x_rest) else total
    return total.astype(like.dtype)


def _split(x: Array, size: int) -> tuple[Array, Array]:
    """Split into complete chunks `(count,size,...)` and the remainder."""
    count = len(x) // size
    return x[: count * size].reshape(count, size, *x.shape[1:]), x[count * size :]
