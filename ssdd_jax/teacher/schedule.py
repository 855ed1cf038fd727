"""Learning-rate schedule of self-supervised training: linear warm-up, then half a cosine.

The warm-up reaches the peak with its last step, as in Lightning Bolts' `LinearWarmupCosineAnnealingLR`, which
solo-learn uses.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def warmup_cosine(
    *, peak: float, steps: int, warmup_steps: int, start: float = 3e-5, end: float = 0.0
) -> optax.Schedule:
    """Create a schedule for the steps 0 to `steps - 1`.

    Args:
        peak: Highest rate.
        steps: Number of steps of the training.
        warmup_steps: Number of steps of the warm-up; with 0 the first rate is `peak`.
        start: Rate of the first step of a warm-up.
        end: Rate that the cosine would reach at step `steps`.

    Returns:
        A schedule that maps an int32 step to a float32 rate.

    Raises:
        ValueError: If the warm-up is not shorter than the training.
    """
    if warmup_steps >= steps:
        raise ValueError(f"a warm-up of {warmup_steps} steps does not fit into {steps} steps")

    def schedule(step: Array | int) -> Array:
        step = jnp.asarray(step, jnp.float32)
        # `warmup_steps - 1` intervals: the last step of the warm-up has the peak rate, and so has the next one.
        warm = start + (peak - start) * step / max(warmup_steps - 1, 1)
        turn = jnp.pi * (step - warmup_steps) / (steps - warmup_steps)
        cosine = end + 0.5 * (peak - end) * (1.0 + jnp.cos(turn))
        return jnp.where(step < warmup_steps, warm, cosine)

    return schedule
