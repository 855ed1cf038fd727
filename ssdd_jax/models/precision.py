"""In which precision a network's layers are computed; statistics, features, kernel and solve stay in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

NAMES = ("auto", "float32", "bfloat16")
"""`auto` is bfloat16 on an accelerator and float32 on a CPU, where bfloat16 gains nothing."""


def network_input(x: Array, precision: str) -> Array:
    """Images in the precision that a network is to compute in: its layers take over that of their input.

    Args:
        x: Images `(B,H,W,C)`.
        precision: One of `NAMES`. `float32` leaves them as they are, float64 too; on an accelerator the products of
            float32 are then in its default precision, which may be TF32.

    Returns:
        The images.
    """
    half = precision == "bfloat16" or (precision == "auto" and jax.default_backend() != "cpu")
    return x.astype(jnp.bfloat16) if half else x


def at_least_float32(x: Array) -> Array:
    """An array `(...)` of half precision in float32, any other as it is."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
