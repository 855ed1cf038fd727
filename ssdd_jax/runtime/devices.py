"""Several devices and several hosts: the mesh, what lies where on it, and what its processes agree on.

The mesh has two axes: the models that a step draws are split over `pool`, real images over `data`. Without a mesh,
which is one device of one process, nothing here does anything.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssdd_jax.config import HOSTS
from ssdd_jax.errors import Stopped, UserError

Array = jax.Array

POOL, DATA = "pool", "data"
# How long a process that ends waits for the others to end too.
LEAVE_SECONDS = 30


def join(hosts: str) -> None:
    """Make this process one of several, before JAX looks for devices.

    Args:
        hosts: Nothing, for a process alone; `auto`, where JAX knows the cluster (SLURM, GKE, TPU pods, Open MPI); or
            `ADDRESS:PORT,COUNT,INDEX`: where the first process listens, how many there are, and which this is.

    Raises:
        UserError: If it cannot be one of them.
    """
    if not hosts or jax.distributed.is_initialized():
        return
    found = HOSTS.fullmatch(hosts)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if found is None:
            jax.distributed.initialize(shutdown_timeout_seconds=LEAVE_SECONDS)
        else:
            jax.distributed.initialize(
                found["address"], int(found["count"]), int(found["index"]), shutdown_timeout_seconds=LEAVE_SECONDS
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"config.devices.hosts={hosts!r}: {error}; outside SLURM, GKE and TPU pods it is ADDRESS:PORT,COUNT,INDEX"
        ) from None
    finally:  # JAX has one of its own for SIGTERM, which saves nothing
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, handler)


def leave(status: int) -> None:
    """End a process of several that has failed, also where others still wait for it in the middle of a computation.

    Those that fail alike leave together. Others are ended by JAX once this one is gone, within `LEAVE_SECONDS` and what
    its heartbeats take.
    """
    if not status or not jax.distributed.is_initialized():
        return
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # what computes in the background may never end


def is_first() -> bool:
    """Whether this is the process that writes and prints: the only one, or the first of several."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process. All must ask, at the same point."""
    return bool(_of_all(int(flag)).any())


def _of_all(code: int) -> np.ndarray:
    if not jax.distributed.is_initialized():
        return np.array([code])
    return np.asarray(multihost_utils.process_allgather(np.array([code], np.int32)))


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Around work that one process does, or each on its own: where it fails in one, it fails in all, and ends in all.

    Raises:
        UserError: If it failed in another process, which tells why.
        Stopped: If another process was asked to stop.
    """
    code, failed = 0, 2
    try:
        yield
    except BaseException as error:
        code = 1 if isinstance(error, Stopped | KeyboardInterrupt) else failed
        raise
    finally:
        worst = int(_of_all(code).max())
        if not code and worst == failed:
            raise UserError("another process could not go on, and says why")
        if not code and worst:
            raise Stopped("stopped with another process")


def make(pool: int, data: int, *, models: int = 1, batches: Mapping[str, int] | None = None) -> Mesh | None:
    """The mesh of a run.

    Virtual CPU devices share the same cores: they are used where a number above 0 asks for them.

    Args:
        pool: Devices along the axis `pool`; 0: as many as divide both `models` and the devices.
        data: Devices along the axis `data`; 0: what is left, as far as it divides the batches.
        models: How many models a step draws.
        batches: Images in each batch that is split, by the config key that says so.

    Returns:
        The mesh, or None for one device.

    Raises:
        UserError: If there are not so many devices, or they do not divide what is split over them.
    """
    batches, processes = batches or {}, jax.process_count()
    found = jax.devices()
    if found[0].platform == "cpu" and not pool and not data:
        found = list({device.process_index: device for device in reversed(found)}.values())[::-1]
    pool = pool or math.gcd(models, len(found))
    if models % pool:
        raise UserError(
            f"config.devices.pool={pool} does not divide the {models} models of a step: change it, or "
            "config.pool.models_per_step"
        )
    left = len(found) // pool
    data = data or max((n for n in range(1, left + 1) if not any(size % n for size in batches.values())), default=1)
    for key, size in batches.items():
        if size % data:
            raise UserError(f"config.devices.data={data} does not divide config.{key}={size}: change one of them")
    if pool * data > len(found) or (processes > 1 and pool * data < len(found)):
        raise UserError(
            f"config.devices: pool={pool} times data={data} is {pool * data} devices, and there are {len(found)}"
            f"{f' in {processes} processes, all of which must be used' if processes > 1 else ''}: set both to fit"
        )
    if pool * data == 1:
        return None
    return jax.make_mesh((pool, data), (POOL, DATA), axis_types=(AxisType.Auto,) * 2, devices=found[: pool * data])


def words(mesh: Mesh) -> str:
    """The mesh in a line for the user."""
    kind, processes = mesh.devices.flat[0].device_kind, jax.process_count()
    where = f" in {processes} processes" if processes > 1 else ""
    return f"devices: {mesh.size} x {kind}{where}, models over {mesh.shape[POOL]}, real images over {mesh.shape[DATA]}"


def sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """Leading axes over the mesh's axes of these names; without any, the same on every device."""
    return NamedSharding(mesh, PartitionSpec(*axes))


def shardings(mesh: Mesh | None, like: Any) -> Any:
    """For each leaf of a pytree: the same on every device; None without a mesh."""
    return None if mesh is None else jax.tree.map(lambda _: sharding(mesh), like)


def over_data(mesh: Mesh | None, batch: Any) -> Any:
    """Inside a compiled function: a pytree whose leading axes are split over the axis `data`."""
    return batch if mesh is None else lax.with_sharding_constraint(batch, sharding(mesh, DATA))


def over_all(mesh: Mesh | None, batch: Any) -> Any:
    """Inside a compiled function: split over all devices, or over `data` where only that divides the leading axes."""
    if mesh is None:
        return batch
    whole = all(len(leaf) % mesh.size == 0 for leaf in jax.tree.leaves(batch))
    axes = (POOL, DATA) if whole else (DATA,)
    return lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(axes)))


def replicated(mesh: Mesh | None, tree: Any) -> Any:
    """Inside a compiled function: the same on every device."""
    return tree if mesh is None else lax.with_sharding_constraint(tree, sharding(mesh))


def place(mesh: Mesh | None, tree: Any) -> Any:
    """A pytree of arrays, equal in every process, as it lies on every device of the mesh."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: _place(leaf, sharding(mesh)), tree)


def _place(leaf: Any, where: NamedSharding) -> Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(leaf), where), impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def local(mesh: Mesh | None, tree: Any) -> Any:
    """What lies on the mesh, whole, as arrays of this process's first device."""
    if mesh is None:
        return tree
    whole = jax.jit(lambda tree: tree, out_shardings=sharding(mesh))(tree)
    return jax.tree.map(_first, whole)


def _first(leaf: Array) -> Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_first(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    return leaf.addressable_data(0)
