"""Means over seeds, and differences between entries that share their seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LEVEL = 0.95


def summary(values: Sequence[float]) -> dict[str, Any]:
    """`mean`, `std` (sample standard deviation, 0 for one value), `seeds` and `values`, rounded to 4 digits."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {
        "mean": round(float(np.mean(values)), 4),
        "std": round(deviation, 4),
        "seeds": len(values),
        "values": [round(float(value), 4) for value in values],
    }


def paired(first: Sequence[float], second: Sequence[float], *, level: float = LEVEL) -> dict[str, Any]:
    """How far the first is above the second, seed by seed, with a confidence interval of the mean (Student's t).

    The same seed gives both the same initial network and the same labels, so that what they have in common cancels.

    Args:
        first: A value per seed.
        second: A value for each of the same seeds.
        level: Of the interval.

    Returns:
        `mean`, `low` and `high` (None for a single seed, which says nothing about the spread), `level` and `seeds`.

    Raises:
        ValueError: If the two are not of one length.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"paired values are needed, got {len(first)} and {len(second)}")
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    mean, count = float(difference.mean()), len(difference)
    low = high = None
    if count > 1:
        from scipy import stats  # slow to load, and needed only here

        half = float(stats.t.ppf(0.5 + level / 2, count - 1) * difference.std(ddof=1) / np.sqrt(count))
        low, high = round(mean - half, 4), round(mean + half, 4)
    return {"mean": round(mean, 4), "low": low, "high": high, "level": level, "seeds": count}
