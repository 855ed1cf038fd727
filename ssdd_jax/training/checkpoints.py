"""Checkpoints of a state: asynchronous, atomic, and with a way back when the newest is damaged."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ssdd_jax.runtime import devices, files

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

KEEP = 2
# What a checkpoint takes beside its arrays, generously.
SPARE_BYTES = 2**20


class Checkpoints:
    """The checkpoints in one folder, the last two of which are kept.

    Of several processes, which see the same folder, all do the same with it at the same time.
    """

    def __init__(self, folder: pathlib.Path, *, say: Callable[[str], None]):
        """Open or make the folder; `say` is told what a user should know."""
        # Orbax logs its errors with tracebacks and raises them as well, which is enough.
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
        """Start to write the state after `step`; waits only for a write that is still under way.

        Raises:
            UserError: If this or the last write found the disk full.
        """
        if step in self._manager.all_steps():
            return
        with files.saving(self.folder / str(step)):
            with devices.agreed():  # before any of them writes, which would change what the next one finds
                self._check_room(state)
            self._manager.save(step, args=_orbax().args.StandardSave(_raw(state)))

    def _check_room(self, state: Any) -> None:
        """Find the disk full before a write begins: one that fails midway also prints its threads' tracebacks."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(_raw(state)))
        if shutil.disk_usage(self.folder).free < 1.1 * size + SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def wait(self) -> None:
        """Return when all is written.

        Raises:
            UserError: If the disk was full.
        """
        with files.saving(self.folder):
            self._manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[Any, int] | None:
        """The newest readable state.

        Args:
            like: A state, or its abstract values, of the same structure: abstract leaves with a sharding are restored
                to it, from whatever devices they were saved, all else to this process's first device.

        Returns:
            The state and its step, or None if there is none. Unreadable ones are moved aside.
        """
        template = jax.tree.map(_abstract, _raw(like))
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                raw = self._manager.restore(step, args=_orbax().args.StandardRestore(template))
            except Exception as error:
                self._set_aside(step, error)
                continue
            return _typed(raw, like), step
        return None

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of."""
        return sorted(self._manager.all_steps())

    def _set_aside(self, step: int, error: Exception) -> None:
        aside = self.folder.with_name(f"{self.folder.name}-damaged") / str(step)
        self._say(
            f"checkpoint of step {step} cannot be read ({type(error).__name__}): "
            f"moved to {aside}, going back to the one before it"
        )
        self._manager.close()
        with devices.agreed():
            if devices.is_first():
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(self.folder / str(step), aside)
        self._manager = self._open()

    def close(self) -> None:
        """Finish writing and let go of the folder."""
        with files.saving(self.folder):
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        """Use as a context, closed at its end."""
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Close; an error on its way out is not covered by one of closing."""
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.close()


def _orbax() -> Any:
    """The module `orbax.checkpoint`, which takes half as long to load as JAX."""
    import orbax.checkpoint

    return orbax.checkpoint


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(state: Any) -> Any:
    """PRNG keys as plain integers, so that the files can be read by any version."""

    def plain(leaf: Any) -> Any:
        if not _is_key(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raw = jax.eval_shape(jax.random.key_data, leaf)
            return jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=leaf.sharding)
        return jax.random.key_data(leaf)

    return jax.tree.map(plain, state)


def _typed(raw: Any, like: Any) -> Any:
    return jax.tree.map(lambda value, leaf: jax.random.wrap_key_data(value) if _is_key(leaf) else value, raw, like)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    found = leaf.sharding if isinstance(leaf, jax.ShapeDtypeStruct) else None
    sharding = found or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)
