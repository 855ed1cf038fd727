"""Training data that do not fit on the device: read on the host for the steps to come, while the device computes.

Which rows a step needs depends on a key and on the step's number alone, as it does where all data are on the device.
They are computed on the host's CPU; grain's threads gather them from arrays in memory or mapped from disk.
"""

from __future__ import annotations

import functools
import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files
from ssdd_jax.training import epochs

Array = jax.Array

# The share of the device's memory that images and features may take: the rest is for the networks.
SHARE = 0.5
# Threads that read: more than a small machine has cores, as they mostly wait for the disk.
THREADS = 8
# Bytes that are read ahead of what was asked for.
AHEAD = 2**29
# Bytes that are handed to the device at once, where no config says how many steps that is.
PIECE = 2**28


def memory_bytes() -> int:
    """Memory of the device, or of the machine where the device is its CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or files.machine_bytes()


def fits(size: int, gigabytes: float = 0.0) -> bool:
    """Whether images and features of `size` bytes together are kept on the device.

    Args:
        size: In bytes.
        gigabytes: The most that is kept there, in 1e9 bytes; 0: the share `SHARE` of `memory_bytes`.
    """
    return size <= (gigabytes * 1e9 or SHARE * memory_bytes())


class Pairs(NamedTuple):
    """Images and the teacher's features of them on the host.

    Attributes:
        images: uint8 `(n,H,W,C)`, in memory or mapped from disk.
        features: Float32 `(n,D)`, likewise.
        preprocessing: Constants of the data set.
    """

    images: np.ndarray
    features: np.ndarray
    preprocessing: Preprocessing

    @property
    def nbytes(self) -> int:
        """What the device would have to hold."""
        return self.images.nbytes + self.features.nbytes

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images `(...,H,W,C)` and regression targets `(...,D)` of rows `(...)`, as NumPy arrays.

        By XLA, which does not divide by a scalar as NumPy does, and not in the step, where it would fuse and round
        otherwise than in `on_device`.
        """
        found = gather(self.features, rows)
        targets = _targets()(self.preprocessing, found.reshape(-1, found.shape[-1]))
        return gather(self.images, rows), targets.reshape(found.shape)

    def on_device(self) -> tuple[Array, Array]:
        """All images `(n,H,W,C)` and regression targets `(n,D)`, on the device."""
        return jnp.asarray(self.images), self.preprocessing.targets(jnp.asarray(self.features))


def gather(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`array[rows]` `(*rows.shape,...)` in memory, read in the order in which the rows lie on the disk."""
    flat = np.asarray(rows).reshape(-1)
    order = np.argsort(flat, kind="stable")
    found = np.empty((len(flat), *array.shape[1:]), array.dtype)
    # A part of a mapped array, which does not begin where its file does, is read through the map.
    if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.flags.c_contiguous:
        _read(array, flat[order], order, found)
    else:
        found[order] = array[flat[order]]
    return found.reshape(*np.shape(rows), *array.shape[1:])


def _read(array: np.memmap, rows: np.ndarray, places: np.ndarray, found: np.ndarray) -> None:
    """Read rows of a mapped file from the file itself: through the map each would bring ten times as much with it."""
    assert array.filename is not None
    file = os.open(array.filename, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            left, begin = memoryview(found[place]).cast("B"), array.offset + row * array.strides[0]
            while len(left):
                got = os.preadv(file, [left], begin)  # which may be less on a network's file system
                if not got:
                    raise UserError(f"{array.filename} ends before its row {row}: it was changed or cut short")
                left, begin = left[got:], begin + got
    finally:
        os.close(file)


def on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled for the host's CPU, with results in NumPy: on the device it would queue behind the steps."""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names the accelerator alone
        cpu = jax.local_devices()[0]
    compiled = jax.jit(function)

    def call(*arguments: Any) -> Any:
        with jax.default_device(cpu):
            return jax.device_get(compiled(*jax.device_put(arguments, cpu)))

    return call


@functools.cache
def _targets() -> Callable[[Preprocessing, np.ndarray], np.ndarray]:
    return on_host(Preprocessing.targets)


def feed(read: Callable[[int], Any], *, steps: int) -> Callable[[int, int], Any]:
    """A feed for `ssdd_jax.training.loop` that reads ahead in threads.

    Args:
        read: From a step's number to what it needs, a pytree of NumPy arrays; called by several threads, and a pure
            function, so that a resumed run is given the same.
        steps: Of the training; nothing beyond the call that holds the last one is read.

    Returns:
        `(done, count) -> items`, leaves with a leading axis `count`. Asked for one call after the other it goes on
        where it was; asked for anything else it starts there.
    """
    place, reader = -1, iter(())

    def items(done: int, count: int) -> Any:
        nonlocal place, reader
        if done != place:
            calls = max(1, -(-(steps - done) // count))
            reader = _ahead(read, done, done + calls * count)
        found = [next(reader) for _ in range(count)]
        place = done + count
        return jax.tree.map(lambda *leaves: np.stack(leaves), *found)

    return items


def _ahead(read: Callable[[int], Any], start: int, stop: int) -> Iterator[Any]:
    import grain  # slow, and needed only here

    each = sum(leaf.nbytes for leaf in jax.tree.leaves(read(start)))
    ahead = max(2, min(stop - start, AHEAD // max(each, 1)))
    options = grain.ReadOptions(num_threads=min(THREADS, ahead), prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.range(start, stop).map(read).to_iter_dataset(options))


def loop(step: Callable[[Any, Any], Any], carry: Any, items: Any, count: Array) -> Any:
    """Inside a compiled function: `carry = step(carry, item)` for the first `count` of the items, in turn."""
    return lax.fori_loop(0, count, lambda i, carry: step(carry, jax.tree.map(lambda leaf: leaf[i], items)), carry)


def run(
    advance: Callable[[Any, Any, Array], Any],
    carry: Any,
    read: Callable[[int], Any],
    *,
    steps: int,
    per_call: int,
    after: Callable[[int], None] | None = None,
) -> Any:
    """A short training without checkpoints, fed from the host.

    Args:
        advance: `(carry, items, count) -> carry`, compiled: the first `count` of the items, as `loop` does them.
        carry: What is trained.
        read: As for `feed`.
        steps: How many.
        per_call: How many of them are handed to the device at once.
        after: Told after each call how many steps it made.

    Returns:
        The carry after the last step.
    """
    reader = feed(read, steps=steps)
    items = jax.device_put(reader(0, per_call))
    for done in range(0, steps, per_call):
        count = min(per_call, steps - done)
        carry = advance(carry, items, jnp.int32(count))
        if done + count < steps:
            items = jax.device_put(reader(done + count, per_call))
        jax.block_until_ready(carry)  # or calls and their items would pile up
        if after is not None:
            after(count)
    return carry


def shuffled(keys: Array, pairs: Pairs, *, batch_size: int) -> tuple[Callable[[int], Any], int]:
    """Mini-batches of networks that are trained side by side, each in shuffled epochs of its own, as `epochs.run` does.

    Args:
        keys: PRNG keys `(k,)`, one per network.
        pairs: What they are trained on.
        batch_size: Of a network's mini-batch.

    Returns:
        What `run` reads: from a step's number to images `(k,batch,H,W,C)` and targets `(k,batch,D)`; and how many steps
        an epoch has.
    """
    count = len(pairs.images)

    def order(keys: Array, epoch: Array) -> Array:
        one = functools.partial(epochs.shuffled, count=count, batch_size=batch_size)
        return jax.vmap(lambda key: one(jax.random.fold_in(key, epoch)))(keys)

    compiled, (_, per_epoch) = on_host(order), epochs.batch_of(count, batch_size)
    order_of = functools.lru_cache(maxsize=2)(lambda epoch: compiled(keys, np.int32(epoch)))

    def read(step: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, place = divmod(step, per_epoch)
        return pairs.take(order_of(epoch)[:, place])

    return read, per_epoch


def steps_per_call(pairs: Pairs, batch: int, steps: int) -> int:
    """How many steps that look at `batch` pairs each are handed to the device at once: at least 1, at most `steps`."""
    return max(1, min(steps, PIECE * len(pairs.images) // (pairs.nbytes * batch)))
