"""Precision of a network's layers; statistics, features, kernel and solve stay in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

NAMES = ("auto", "float32", "bfloat16")
"""`auto` is bfloat16 on an accelerator and float32 on a CPU, where bfloat16 gains nothing."""


def resolve(name: str, platform: str) -> str:
    """Return `float32` or `bfloat16` for one of `NAMES` on a platform, such as `cpu` or `cuda`."""
    if name != "auto":
        return name
    return "float32" if platform == "cpu" else "bfloat16"


def network_input(x: Array, precision: str) -> Array:
    """Cast images to the precision that a network computes in: layers adopt the precision of their input.

    Args:
        x: Images `(B,H,W,C)`.
        precision: `float32` or `bfloat16`. `float32` leaves the images unchanged, float64 included; products of float32
            then have the backend's default precision, which may be TF32 on an accelerator.

    Returns:
        The images `(B,H,W,C)`.

    Raises:
        ValueError: If the precision is neither of these.
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision={precision!r}: a network computes in float32 or bfloat16")
    x = jnp.asarray(x)
    return x.astype(jnp.bfloat16) if precision == "bfloat16" else x


def at_least_float32(x: Array) -> Array:
    """Cast an array `(...)` of half precision to float32; others are returned unchanged."""
    x = jnp.asarray(x)
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
