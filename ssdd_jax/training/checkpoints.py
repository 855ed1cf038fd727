"""Checkpoints of a state: asynchronous, atomic, and with a fallback when the newest one is damaged."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ssdd_jax.errors import StoredError
from ssdd_jax.runtime import devices, files, memory

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

KEEP = 2
# Generous upper limit for the size of a checkpoint besides its arrays.
SPARE_BYTES = 2**20
# Name of the checksums in a checkpoint's metadata.
CHECKSUMS = "crc32"


class Checkpoints:
    """Checkpoints in one folder, of which the last two are kept.

    With several processes, all must share the folder and call the same methods at the same time.
    """

    def __init__(self, folder: pathlib.Path, *, say: Callable[[str], None]):
        """Open or create the folder; `say` is called with each message for the user."""
        # Orbax both logs errors with tracebacks and raises them; the exception is enough.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.folder = folder.absolute()
        self._say = say
        with files.saving(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        ocp = _orbax()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEEP, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: Any) -> None:
        """Start writing the state after `step`; blocks only while an earlier write is in progress.

        Raises:
            UserError: If the disk was full during this write or the previous one.
        """
        if step in self._manager.all_steps():
            return
        with files.saving(self.folder / str(step)):
            with devices.agreed():  # all check before any process writes, which would change the free space
                self._check_room(state)
            raw = _raw(state)
            self._manager.save(step, args=_orbax().args.StandardSave(raw), custom_metadata={CHECKSUMS: checksums(raw)})

    def _check_room(self, state: Any) -> None:
        """Raise if the disk is full, before a write begins: one that fails midway also prints tracebacks of threads."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(_raw(state)))
        if shutil.disk_usage(self.folder).free < 1.1 * size + SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if files.longest_file() < size + SPARE_BYTES // 16:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    def wait(self) -> None:
        """Wait until all writes have finished.

        Raises:
            UserError: If the disk was full.
        """
        with files.saving(self.folder):
            self._manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[Any, int] | None:
        """Restore the newest readable state.

        Args:
            like: A state of the same structure, or its abstract values. Abstract leaves with a sharding are restored
                to that sharding, regardless of the devices that saved them; all others to this process's first device.

        Returns:
            The state and its step, or None if there is no readable checkpoint. Damaged checkpoints are moved to another
            folder.

        Raises:
            StoredError: If a checkpoint cannot be read for another reason, such as a full memory; all stay in place.
        """
        template = jax.tree.map(_abstract, _raw(like))
        for step in sorted(self._manager.all_steps(), reverse=True):
            with devices.agreed():
                raw, error = self._read(step, template)
            # A checkpoint that is damaged for one process is so for all.
            if not devices.any_process(error is not None):
                return _typed(raw, like), step
            self._set_aside(step, error or ValueError())
        return None

    def _read(self, step: int, template: Any) -> tuple[Any, Exception | None]:
        """Read a checkpoint: its arrays, or the error that says that it is damaged.

        Raises:
            StoredError: For an error that says nothing about its files.
        """
        try:
            raw = self._manager.restore(step, args=_orbax().args.StandardRestore(template))
            self._check(step, raw)
        # Orbax raises many kinds of errors for damaged files: each means that an older checkpoint is tried.
        except Exception as error:
            passing = isinstance(error, OSError) and not isinstance(error, FileNotFoundError) and error.errno
            if passing or isinstance(error, MemoryError) or memory.is_full(error):
                reason = " ".join(str(error).split())[:120] or type(error).__name__
                raise StoredError(
                    f"checkpoint of step {step} in {self.folder} cannot be read now ({reason}): nothing was changed, "
                    "free memory or repair the disk, and give the same command again"
                ) from None
            return None, error
        return raw, None

    def _check(self, step: int, raw: Any) -> None:
        """Raise a ValueError if arrays are not those that were saved, as far as this process had and has them.

        Orbax notices a damaged file, but not every damaged number.
        """
        stored = (self._manager.metadata(step).custom_metadata or {}).get(CHECKSUMS)  # None in those of older versions
        pairs = [] if stored is None else list(zip(stored, checksums(raw), strict=True))
        if any(one is not None and other is not None and one != other for one, other in pairs):
            raise ValueError("its numbers are not those that were saved")

    def steps(self) -> list[int]:
        """List the steps that have a checkpoint, in ascending order."""
        return sorted(self._manager.all_steps())

    def _set_aside(self, step: int, error: Exception) -> None:
        """Move a damaged checkpoint to a sibling folder, and report it."""
        target = self.folder.with_name(f"{self.folder.name}-damaged") / str(step)
        before = "going back to the one before it" if step > self.steps()[0] else "starting anew, as there is no other"
        self._say(f"checkpoint of step {step} cannot be read ({type(error).__name__}): moved to {target}, {before}")
        # The manager caches the list of steps: it is reopened after the move.
        self._manager.close()
        with devices.agreed():
            if devices.is_first():
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(self.folder / str(step), target)
        self._manager = self._open()

    def close(self) -> None:
        """Finish writing and close the folder."""
        with files.saving(self.folder):
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        """Return self; the context closes the checkpoints."""
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Close. An exception raised within the context is not replaced by an error while closing."""
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.close()


def _orbax() -> Any:
    """Import `orbax.checkpoint` on first use: loading it takes half as long as loading JAX."""
    import orbax.checkpoint

    return orbax.checkpoint


def checksums(state: Any) -> list[int | None]:
    """Return the CRC-32 of every leaf of a state; None for those of which this process has a part only."""

    def one(leaf: Any) -> int | None:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return None
        return zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)

    return [one(leaf) for leaf in jax.tree.leaves(state)]


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(state: Any) -> Any:
    """Replace PRNG keys by plain integers, so that any version can read the files."""

    def key_data(leaf: Any) -> Any:
        if not _is_key(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raw = jax.eval_shape(jax.random.key_data, leaf)
            return jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=leaf.sharding)
        return jax.random.key_data(leaf)

    return jax.tree.map(key_data, state)


def _typed(raw: Any, like: Any) -> Any:
    """Restore the PRNG keys of a state: the inverse of `_raw`."""
    return jax.tree.map(lambda value, leaf: jax.random.wrap_key_data(value) if _is_key(leaf) else value, raw, like)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    requested = leaf.sharding if isinstance(leaf, jax.ShapeDtypeStruct) else None
    sharding = requested or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)
