"""Multiple devices and hosts: the mesh, placement of arrays on it, and agreement between its processes.

The mesh has two axes: the models that a step draws are split over `pool`, real images over `data`. Without a mesh, that
is with one device of one process, these functions have no effect.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssdd_jax.config import HOSTS
from ssdd_jax.errors import Stopped, UserError

Array = jax.Array

POOL, DATA = "pool", "data"
# Seconds that a process waits at its end for the others to end too.
LEAVE_SECONDS = 30
# Seconds without a sign of a process after which JAX ends the others. JAX's default is 100; a process gives its signs
# from a thread of its own, however busy it is.
HEARTBEAT_SECONDS = 10
# Seconds between two looks for an error of another process, and the key under which it is stored.
LOOK_SECONDS, FAILED = 0.5, "ssdd_jax/failed"
# Seconds that a failed process waits for the others to read why, and the first one, which serves this, for that one.
FAILED_SECONDS, SERVE_SECONDS = 3.0, 5.0
# What collectives (Gloo, NCCL) and the coordination service say when a process that they wait for is gone.
LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|unavailable|heartbeat|coordination|socket closed", re.IGNORECASE
)


def join(hosts: str) -> None:
    """Connect this process to the others of a run; must be called before JAX initializes its devices.

    Args:
        hosts: Empty for a single process; `auto` if JAX can detect the cluster (SLURM, GKE, TPU pods, Open MPI); or
            `ADDRESS:PORT,COUNT,INDEX`: the address of the first process, the number of processes, and the index of
            this one.

    Raises:
        UserError: If the connection fails.
    """
    if not hosts or jax.distributed.is_initialized():
        return
    address = HOSTS.fullmatch(hosts)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            jax.distributed.initialize(
                shutdown_timeout_seconds=LEAVE_SECONDS, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
            )
        else:
            jax.distributed.initialize(
                address["address"],
                int(address["count"]),
                int(address["index"]),
                shutdown_timeout_seconds=LEAVE_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"config.devices.hosts={hosts!r}: {error}; outside SLURM, GKE and TPU pods it is ADDRESS:PORT,COUNT,INDEX"
        ) from None
    finally:  # JAX installs its own SIGTERM handler, which would end the run without saving
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, handler)
    threading.Thread(target=_look_for_failures, daemon=True).start()


def report_failure(line: str) -> None:
    """Tell the other processes of a run why this one fails; they print the line and end with status 2."""
    if jax.distributed.is_initialized():
        with contextlib.suppress(Exception):  # another process was first, or is gone
            _client().key_value_set(FAILED, f"{jax.process_index()} {line}")


def _look_for_failures() -> None:
    """End this process once another one has reported a failure, wherever it waits for that process."""
    while jax.distributed.is_initialized():
        time.sleep(LOOK_SECONDS)
        try:
            index, _, line = _client().key_value_try_get(FAILED).partition(" ")
        except Exception:  # there is none, or the run is over
            continue
        if int(index) == jax.process_index():
            return
        print(f"{line} (process {index})", file=sys.stderr)
        if is_first():
            time.sleep(SERVE_SECONDS)
        _exit(2)


def _client() -> Any:
    """Return the client of the processes' common store, which JAX has no public name for."""
    from jax._src import distributed

    return distributed.global_state.client


def check_backend() -> None:
    """Start JAX's backend.

    Raises:
        UserError: If it cannot be started, because `JAX_PLATFORMS` names one that is not installed or has no device.
    """
    try:
        jax.devices()
    except Exception as error:
        if words := backend_missing(error):
            raise UserError(words) from None
        raise


def lost(error: Exception) -> str:
    """Explain in one line an error of JAX that says another process is gone; empty for other errors."""
    if not jax.distributed.is_initialized() or not isinstance(error, jax.errors.JaxRuntimeError):
        return ""
    if not LOST.search(str(error)):
        return ""
    return (
        "another process of this run has ended, which its own output may explain; the same command continues from the "
        "last checkpoint, also with fewer processes"
    )


def backend_missing(error: Exception) -> str:
    """Explain in one line an error of JAX that could not start a backend; empty for other errors."""
    place = traceback.extract_tb(error.__traceback__)
    if not place or os.path.basename(place[-1].filename) != "xla_bridge.py":
        return ""
    # For a plugin that is missing it is a bare AssertionError. Advice in parentheses is what the line gives itself.
    reason = str(error).partition(" (")[0].rstrip(".") or "its plugin is not installed, or finds no device"
    if named := os.environ.get("JAX_PLATFORMS"):
        return (
            f"JAX_PLATFORMS={named} names a backend that JAX cannot start here ({reason}): unset it, or install the "
            "backend, for example with pip install 'ssdd_jax[cuda]'"
        )
    return f"JAX cannot start a backend ({reason}): check the driver, or set JAX_PLATFORMS=cpu"


def leave(status: int) -> None:
    """End a failed process of several, even if others still wait for it in the middle of a computation."""
    if not status or not jax.distributed.is_initialized():
        return
    # The others read why before they notice that this process is gone.
    time.sleep(FAILED_SECONDS)
    _exit(status)


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # background computations may never end


def is_first() -> bool:
    """Return whether this process writes and prints: it is the only one, or the first of several."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process. All processes must call this at the same point."""
    return bool(_of_all(int(flag)).any())


def from_first(number: int | np.integer) -> int:
    """Return the first process's number. All processes must call this at the same point."""
    return int(_of_all(int(number))[0])


def _of_all(code: int) -> np.ndarray:
    """Gather one number from every process."""
    if not jax.distributed.is_initialized():
        return np.array([code])
    return np.asarray(multihost_utils.process_allgather(np.int32(code)))


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Make a failure in one process a failure in all; for work that one process does, or each does separately.

    Raises:
        UserError: If the work failed in another process, which reports the reason.
        Stopped: If a stop of another process was requested.
    """
    # 0: success, 1: stopped, 2: failed. The largest code of all processes decides.
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
    """Create the mesh of a run.

    Virtual CPU devices share the same cores: they are used only if `pool` or `data` is set.

    Args:
        pool: Devices along the axis `pool`; 0 for the greatest common divisor of `models` and the number of devices.
        data: Devices along the axis `data`; 0 for as many of the remaining devices as divide the batches.
        models: Number of models that a step draws.
        batches: Sizes of the batches that are split, by the config key that sets each of them.

    Returns:
        The mesh, or None for one device.

    Raises:
        UserError: If there are too few devices, or they do not divide the models or batches split over them.
    """
    batches, processes = batches or {}, jax.process_count()
    available = jax.devices()
    if available[0].platform == "cpu" and not pool and not data:
        # One CPU device per process, the first of each.
        available = list({device.process_index: device for device in reversed(available)}.values())[::-1]
    pool = pool or math.gcd(models, len(available))
    if models % pool:
        raise UserError(
            f"config.devices.pool={pool} does not divide the {models} models of a step: change it, or "
            "config.pool.models_per_step"
        )
    remaining = len(available) // pool
    data = data or max(
        (n for n in range(1, remaining + 1) if not any(size % n for size in batches.values())), default=1
    )
    for key, size in batches.items():
        if size % data:
            raise UserError(f"config.devices.data={data} does not divide config.{key}={size}: change one of them")
    # With several processes, every device must take part: a process without one would wait forever.
    if pool * data > len(available) or (processes > 1 and pool * data < len(available)):
        raise UserError(
            f"config.devices: pool={pool} times data={data} is {pool * data} devices, and there are {len(available)}"
            f"{f' in {processes} processes, all of which must be used' if processes > 1 else ''}: set both to fit"
        )
    if pool * data == 1:
        return None
    return jax.make_mesh((pool, data), (POOL, DATA), axis_types=(AxisType.Auto,) * 2, devices=available[: pool * data])


def words(mesh: Mesh) -> str:
    """Describe the mesh in one line for the user."""
    kind, processes = mesh.devices.flat[0].device_kind, jax.process_count()
    suffix = f" in {processes} processes" if processes > 1 else ""
    return f"devices: {mesh.size} x {kind}{suffix}, models over {mesh.shape[POOL]}, real images over {mesh.shape[DATA]}"


def sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """Return the sharding with leading axes split over the named mesh axes; replicated if none is named."""
    return NamedSharding(mesh, PartitionSpec(*axes))


def shardings(mesh: Mesh | None, like: Any) -> Any:
    """Return a replicated sharding for each leaf of a pytree; None without a mesh."""
    return None if mesh is None else jax.tree.map(lambda _: sharding(mesh), like)


def over_data(mesh: Mesh | None, batch: Any) -> Any:
    """Split the leading axes of a pytree over the axis `data`, inside a compiled function."""
    return batch if mesh is None else lax.with_sharding_constraint(batch, sharding(mesh, DATA))


def over_all(mesh: Mesh | None, batch: Any) -> Any:
    """Split the leading axes over all devices inside a compiled function; over `data` if only that divides them."""
    if mesh is None:
        return batch
    count = math.gcd(*(len(leaf) for leaf in jax.tree.leaves(batch)))
    return lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(_all_axes(mesh, count))))


def _all_axes(mesh: Mesh, count: int) -> tuple[str, ...]:
    return (POOL, DATA) if count % mesh.size == 0 else (DATA,)


class Rows(NamedTuple):
    """The rows of a batch that the devices of this process hold, so that it reads only those.

    Attributes:
        mesh: The mesh; None for one device, which holds all rows.
        axes: The mesh axes over which the batch is split.
        size: Rows of the whole batch B.
        own: The rows of this process.
    """

    mesh: Mesh | None
    axes: tuple[str, ...]
    size: int
    own: slice

    def place(self, items: Any) -> Any:
        """Place rows that were read on the devices.

        Args:
            items: A pytree of NumPy arrays `(k,b,...)`: k batches, of which this process has read the rows `own`.

        Returns:
            The same pytree of arrays `(k,B,...)`, split over the devices of all processes.
        """
        if self.mesh is None:
            return jax.device_put(items)
        split = NamedSharding(self.mesh, PartitionSpec(None, self.axes))

        def one(leaf: np.ndarray) -> Array:
            def part(index: Any) -> np.ndarray:
                first, last, _ = index[1].indices(self.size)
                return leaf[index[0], first - self.own.start : last - self.own.start]

            return jax.make_array_from_callback((len(leaf), self.size, *leaf.shape[2:]), split, part)

        return jax.tree.map(one, items)


def rows(mesh: Mesh | None, count: int, *, everywhere: bool = False) -> Rows:
    """Find the rows of a batch that this process has to read.

    Args:
        mesh: The mesh of the run; None for one device.
        count: Rows of the batch, which the number of devices that it is split over divides.
        everywhere: Whether the batch is split as by `over_all`; otherwise as by `over_data`.

    Returns:
        The rows.
    """
    if mesh is None:
        return Rows(None, (), count, slice(0, count))
    axes = _all_axes(mesh, count) if everywhere else (DATA,)
    split = NamedSharding(mesh, PartitionSpec(axes))
    indices = split.addressable_devices_indices_map((count,)).values()
    places = [index[0].indices(count) for index in indices if index]
    return Rows(mesh, axes, count, slice(min(place[0] for place in places), max(place[1] for place in places)))


def replicated(mesh: Mesh | None, tree: Any) -> Any:
    """Replicate a pytree on every device, inside a compiled function."""
    return tree if mesh is None else lax.with_sharding_constraint(tree, sharding(mesh))


def place(mesh: Mesh | None, tree: Any) -> Any:
    """Place a pytree of arrays, which must be equal in every process, on every device of the mesh."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: _place(leaf, sharding(mesh)), tree)


def _place(leaf: Any, target: NamedSharding) -> Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(leaf), target), impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, target, lambda index: host[index])


def local(mesh: Mesh | None, tree: Any) -> Any:
    """Gather a pytree from the mesh into whole arrays on this process's first device."""
    if mesh is None:
        return tree
    whole = jax.jit(lambda tree: tree, out_shardings=sharding(mesh))(tree)
    return jax.tree.map(_first, whole)


def _first(leaf: Array) -> Array:
    """Return the copy of a replicated array on this process's first device."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_first(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    return leaf.addressable_data(0)
