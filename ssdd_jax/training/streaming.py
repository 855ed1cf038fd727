"""Streaming of training data that do not fit on the device: the host reads ahead while the device computes.

The indices of a step depend only on a key and on the step's number, exactly as with data on the device. They are
computed on the host's CPU; Grain's threads gather the examples from arrays in memory or mapped from disk.
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
from ssdd_jax.runtime.devices import Rows
from ssdd_jax.training import epochs

Array = jax.Array

# Share of the device's memory available for images and features: the rest is for the networks.
SHARE = 0.5
# Number of reader threads: more than a small machine has cores, as they mostly wait for the disk.
THREADS = 8
# Bytes that are prefetched beyond the current request.
AHEAD = 2**29
# Bytes that are transferred to the device at once, unless the config sets the number of steps per call.
PIECE = 2**28


def memory_bytes() -> int:
    """Return the memory of the device in bytes, or that of the machine if the device is a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or files.machine_bytes()


def fits(size: int, gigabytes: float = 0.0) -> bool:
    """Return whether images and features of `size` bytes are kept on the device.

    Args:
        size: Size of both together in bytes.
        gigabytes: Limit in 1e9 bytes; 0 for the share `SHARE` of `memory_bytes`.
    """
    return size <= limit(gigabytes)


def limit(gigabytes: float = 0.0) -> int:
    """Return the device memory in bytes that is available for images and features; `gigabytes` as in `fits`."""
    return int(gigabytes * 1e9 or SHARE * memory_bytes())


class Pairs(NamedTuple):
    """Images on the host with the teacher's features.

    Attributes:
        images: uint8 `(n,H,W,C)`, in memory or mapped from disk.
        features: Float32 `(n,D)`, likewise.
        preprocessing: Constants of the data set.
        gigabytes: Limit of the device memory for them, as in `fits`.
        indices: The pairs that are used, int `(k,)`, without a copy; None for all n.
    """

    images: np.ndarray
    features: np.ndarray
    preprocessing: Preprocessing
    gigabytes: float = 0.0
    indices: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Number of pairs."""
        return len(self.images) if self.indices is None else len(self.indices)

    @property
    def nbytes(self) -> int:
        """Size of images and features in bytes."""
        return (self.images.nbytes + self.features.nbytes) // len(self.images) * self.size

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gather images `(...,H,W,C)` and regression targets `(...,D)` at indices `(...)`, as NumPy arrays.

        The targets are computed by XLA, whose division by a scalar differs from NumPy's, and outside the training
        step, where fusion would round differently than in `on_device`: both paths give the same bits.
        """
        rows = rows if self.indices is None else self.indices[rows]
        features = gather(self.features, rows)
        targets = _targets()(self.preprocessing, features.reshape(-1, features.shape[-1]))
        return gather(self.images, rows), targets.reshape(features.shape)

    def on_device(self) -> tuple[Array, Array]:
        """Transfer all images `(n,H,W,C)` and compute all regression targets `(n,D)` on the device."""
        images, features = self.images, self.features
        if self.indices is not None:
            images, features = gather(images, self.indices), gather(features, self.indices)
        return jnp.asarray(images), self.preprocessing.targets(jnp.asarray(features))


def gather(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Gather `array[rows]` `(*rows.shape,...)` into memory, reading in the order on the disk."""
    flat = np.asarray(rows).reshape(-1)
    order = np.argsort(flat, kind="stable")
    gathered = np.empty((len(flat), *array.shape[1:]), array.dtype)
    # A slice of a mapped array does not start at its file's offset, so it is read through the map.
    if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.flags.c_contiguous:
        _read(array, flat[order], order, gathered)
    else:
        gathered[order] = array[flat[order]]
    return gathered.reshape(*np.shape(rows), *array.shape[1:])


def _read(array: np.memmap, rows: np.ndarray, positions: np.ndarray, output: np.ndarray) -> None:
    """Read rows of a mapped array from its file into `output[positions]`.

    Reading through the map would fetch ten times as many bytes, because of the kernel's read-ahead.
    """
    assert array.filename is not None
    file = os.open(array.filename, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
            buffer, begin = memoryview(output[position]).cast("B"), array.offset + row * array.strides[0]
            while len(buffer):
                count = os.preadv(file, [buffer], begin)  # may be a partial read on a network file system
                if not count:
                    raise UserError(f"{array.filename} ends before its row {row}: it was changed or truncated")
                buffer, begin = buffer[count:], begin + count
    finally:
        os.close(file)


def on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for the host's CPU, with NumPy results: on the device it would queue behind the steps."""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS excludes the CPU
        cpu = jax.local_devices()[0]
    compiled = jax.jit(function)

    def call(*arguments: Any) -> Any:
        with jax.default_device(cpu):
            return jax.device_get(compiled(*jax.device_put(arguments, cpu)))

    return call


@functools.cache
def _targets() -> Callable[[Preprocessing, np.ndarray], np.ndarray]:
    return on_host(Preprocessing.targets)


def feed(read: Callable[[int], Any], *, steps: int, rows: Rows | None = None) -> Callable[[int, int], Any]:
    """Create a feed for `ssdd_jax.training.loop` that reads ahead in threads.

    Args:
        read: Maps a step's number to its inputs, a pytree of NumPy arrays. It is called by several threads and must be
            a pure function, so that a resumed run gets the same inputs.
        steps: Number of steps of the training; nothing is read beyond the call that contains the last step.
        rows: The rows of a batch that `read` returns, of several processes; None for all of them.

    Returns:
        `(done, count) -> items`, leaves with a leading axis `count`; with `rows` they are on the devices. Sequential
        requests continue the prefetch; any other request restarts it.
    """
    position, reader = -1, iter(())

    def items(done: int, count: int) -> Any:
        nonlocal position, reader
        if done != position:
            # Whole calls only: the steps beyond the last one are padding that `loop` skips.
            calls = max(1, -(-(steps - done) // count))
            reader = _ahead(read, done, done + calls * count)
        per_step = [next(reader) for _ in range(count)]
        position = done + count
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *per_step)
        return rows.place(stacked) if rows else stacked

    return items


def _ahead(read: Callable[[int], Any], start: int, stop: int) -> Iterator[Any]:
    """Iterate over the inputs of steps `start` to `stop - 1`, with prefetching limited by `AHEAD` bytes."""
    import grain  # slow to import, and needed only here

    step_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(read(start)))
    ahead = max(2, min(stop - start, AHEAD // max(step_bytes, 1)))
    options = grain.ReadOptions(num_threads=min(THREADS, ahead), prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.range(start, stop).map(read).to_iter_dataset(options))


def loop(step: Callable[[Any, Any], Any], carry: Any, items: Any, count: Array) -> Any:
    """Apply `carry = step(carry, item)` to the first `count` items in turn, inside a compiled function.

    Args:
        step: `(carry, item) -> carry`.
        carry: State that `step` updates.
        items: A pytree whose leaves have a leading axis over the items.
        count: Number of items to use, a scalar. It is traced, so that a shorter last call needs no recompilation.

    Returns:
        The carry after `count` items.
    """
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
    """Run a short training without checkpoints, fed from the host.

    Args:
        advance: `(carry, items, count) -> carry`, a compiled function that applies the first `count` items; see `loop`.
        carry: State of the training.
        read: Maps a step's number to its inputs; see `feed`.
        steps: Number of steps.
        per_call: Number of steps whose inputs are transferred to the device at once.
        after: Callback with the number of steps of each call.

    Returns:
        The carry after the last step.
    """
    reader = feed(read, steps=steps)
    items = jax.device_put(reader(0, per_call))
    for done in range(0, steps, per_call):
        count = min(per_call, steps - done)
        # Dispatch is asynchronous: the next inputs are read and transferred while the device computes.
        carry = advance(carry, items, jnp.int32(count))
        if done + count < steps:
            items = jax.device_put(reader(done + count, per_call))
        jax.block_until_ready(carry)  # otherwise calls and their inputs would accumulate
        if after is not None:
            after(count)
    return carry


def shuffled(keys: Array, pairs: Pairs, *, batch_size: int) -> tuple[Callable[[int], Any], int]:
    """Create the mini-batches of networks trained in parallel, each with its own shuffled epochs, as in `epochs.run`.

    Args:
        keys: PRNG keys `(k,)`, one per network.
        pairs: Training data.
        batch_size: Size of a network's mini-batch.

    Returns:
        The function `read` for `run`, from a step's number to images `(k,batch,H,W,C)` and targets `(k,batch,D)`, and
        the number of steps per epoch.
    """
    count = pairs.size
    rows = orders(keys, count=count, batch_size=batch_size)
    return lambda step: pairs.take(rows(step)), epochs.batch_of(count, batch_size)[1]


def orders(keys: Array, *, count: int, batch_size: int) -> Callable[[int], np.ndarray]:
    """Draw the mini-batches of shuffled epochs on the host, as `epochs.run` draws them.

    Args:
        keys: PRNG keys `(k,)`, one per order, or a single key `()`.
        count: Number of examples.
        batch_size: Size of a mini-batch; all examples if there are fewer.

    Returns:
        A function from a step's number to the indices of its examples, int32 `(k,batch)` or `(batch,)`.
    """

    def order(keys: Array, epoch: Array) -> Array:
        def one(key: Array) -> Array:
            return epochs.shuffled(jax.random.fold_in(key, epoch), count=count, batch_size=batch_size)

        return jax.vmap(one)(keys) if keys.ndim else one(keys)

    compiled, (_, per_epoch) = on_host(order), epochs.batch_of(count, batch_size)
    # Two epochs are cached: threads that read ahead cross the border between them.
    order_of = functools.lru_cache(maxsize=2)(lambda epoch: compiled(keys, np.int32(epoch)))

    def rows(step: int) -> np.ndarray:
        epoch, batch = divmod(step, per_epoch)
        return order_of(epoch)[..., batch, :]

    return rows


def steps_per_call(pairs: Pairs, batch: int, steps: int) -> int:
    """Choose the number of steps per call for steps of `batch` pairs: those of a piece, between 1 and `steps`."""
    return max(1, min(steps, rows_per_piece(pairs) // batch))


def rows_per_piece(pairs: Pairs) -> int:
    """Choose the number of pairs that are transferred at once: `PIECE` bytes, or a quarter of the limit if less."""
    return min(PIECE, limit(pairs.gigabytes) // 4) * pairs.size // pairs.nbytes
