"""Description of the machine, and its rate of matrix products."""

from __future__ import annotations

import os
import pathlib
import platform
from typing import Any

import jax
import jax.numpy as jnp

from experiments.measure import timing

DTYPES = ("float32", "bfloat16")
# Several products per call, so that an accelerator's queue does not run empty between them.
PRODUCTS = 3


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Return the processor, device, versions and load of the machine."""
    info = pathlib.Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": cores(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "busy": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def product(size: int, dtype: str) -> timing.Timed:
    """Prepare a product of square matrices at the backend's default precision: float32 may be TF32 on a GPU."""
    matrix = jax.random.normal(jax.random.key(1), (size, size)).astype(dtype)
    multiply = jax.jit(jnp.matmul)

    def call() -> None:
        jax.block_until_ready([multiply(matrix, matrix) for _ in range(PRODUCTS)])

    return timing.Timed(call, PRODUCTS)


def gflops(measured: timing.Measured, size: int) -> float:
    """Return the best measured rate of a product of square matrices, in GFLOP/s."""
    return 2e-9 * size**3 / min(measured.seconds)


def device_peak_bytes() -> int | None:
    """Return this process's peak memory on the accelerator; None if the backend does not report it, as on a CPU."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
