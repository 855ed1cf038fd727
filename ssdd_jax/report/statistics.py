"""Means over seeds, and paired differences of entries that share their seeds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEVEL = 0.95


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Summarise the values of several seeds.

    Args:
        values: One value per seed.

    Returns:
        `mean`, `std` (sample standard deviation, 0 for one value), `seeds` and `values`, rounded to 4 digits.
    """
    # ddof=1 is undefined for one value.
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {
        "mean": round(float(np.mean(values)), 4),
        "std": round(deviation, 4),
        "seeds": len(values),
        "values": [round(float(value), 4) for value in values],
    }


def brief(one: Mapping[str, Any]) -> str:
    """Format a summary for a line of progress: the mean and, of several values, their standard deviation."""
    return f"{one['mean']:.4g}" + (f" ± {one['std']:.2g}" if one["seeds"] > 1 else "")


def over(count: int) -> str:
    """Say what the cells of a table are: mean and standard deviation over several networks, or values of one."""
    return f"mean ± standard deviation over {count} networks" if count != 1 else "one network"


def paired(first: Sequence[float], second: Sequence[float], *, level: float = LEVEL) -> dict[str, Any]:
    """Paired difference, first minus second, with a confidence interval of its mean (Student's t, by SciPy).

    Both entries of a seed start from the same initial network and use the same labels, so that this common variance
    cancels in the difference.

    Args:
        first: One value per seed.
        second: One value for each of the same seeds.
        level: Confidence level of the interval.

    Returns:
        `mean`, `low` and `high` (None for a single seed, whose variance is unknown), `level` and `seeds`.

    Raises:
        ValueError: If the lengths differ, or there are no values.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"paired values are needed, got {len(first)} and {len(second)}")
    sides = np.asarray(first, np.float64), np.asarray(second, np.float64)
    mean, count = float((sides[0] - sides[1]).mean()), len(first)
    low = high = None
    if count > 1:
        from scipy import stats  # slow to load, and needed only here

        # Equal differences have an interval of length 0; SciPy warns that their variance is imprecise.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            interval = stats.ttest_rel(*sides).confidence_interval(level)
        low, high = round(float(interval.low), 4), round(float(interval.high), 4)
    return {"mean": round(mean, 4), "low": low, "high": high, "level": level, "seeds": count}


def words(difference: Mapping[str, Any], digits: int) -> str:
    """Format a result of `paired` with so many decimal places: the mean, and its interval unless there is none."""
    mean, low, high = (difference[name] for name in ("mean", "low", "high"))
    interval = "" if low is None else f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"{mean:+.{digits}f}{interval}"
