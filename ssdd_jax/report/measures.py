"""Tables of the measures of a page: one row per entry, with a drawing of its error bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from ssdd_jax.report import labels, svg


class Entry(NamedTuple):
    """Values of a measure for a distilled set or a baseline.

    Attributes:
        label: Display name.
        values: One value per network.
        mean: Mean of the values.
        std: Sample standard deviation of the values.
        own: True for the sets that the page is about, False for baselines.
    """

    label: str
    values: Sequence[float]
    mean: float
    std: float
    own: bool


class Row(NamedTuple):
    """A row of a measure's table.

    Attributes:
        label: Display name of the entry.
        text: Formatted mean and standard deviation.
        drawing: Drawing of the error bar.
        own: See `Entry`.
    """

    label: str
    text: str
    drawing: Markup
    own: bool


class Measure(NamedTuple):
    """The table of a measure.

    Attributes:
        title: Title of the table.
        rows: Rows in the order of the entries.
        axis: Drawing of the axis that is shared by all rows.
        beyond: Labels of the entries whose mean is outside of the axis.
    """

    title: str
    rows: list[Row]
    axis: Markup
    beyond: list[str]


def entry(label: str, values: Sequence[float], *, own: bool) -> Entry:
    """Create an entry from its values, with their mean and sample standard deviation."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Entry(label, values, float(np.mean(values)), std, own)


def of_results(results: Mapping[str, Any]) -> dict[str, list[Entry]]:
    """Collect the entries of all measures in `results.json`, including those of method-specific stages, by name."""
    by_measure = {}
    for name, rows in results.items():
        # Measures are recognised by their structure, since methods may add measures of any name.
        if isinstance(rows, Mapping) and rows and all(isinstance(r, Mapping) and "mean" in r for r in rows.values()):
            by_measure[name] = [
                Entry(labels.entry(str(key)), row.get("values", ()), row["mean"], row["std"], _is_own(key))
                for key, row in rows.items()
            ]
    return by_measure


def _is_own(key: str) -> bool:
    return key in ("distilled", "top1", "lrs", "ars")


def table(name: str, entries: Sequence[Entry], *, near: Sequence[str] = ()) -> Measure:
    """Create the table of a measure.

    Args:
        name: Name of the measure in `results.json`.
        entries: Entries of the rows.
        near: Labels of baselines that must be inside of the axis; other baselines may be outside.
    """
    # An entry far away, such as an untrained network, would compress the differences between all others.
    intervals: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for item in entries:
        intervals[item.own or item.label in near].append((item.mean - item.std, item.mean + item.std))
    scale = svg.scale_of(intervals[True] or intervals[False], intervals[False])
    rows = []
    for item in entries:
        text = labels.value(name, item.mean, item.std, len(item.values))
        drawing = svg.interval(item.mean, item.std, item.values, scale, strong=item.own, words=f"{item.label}: {text}")
        rows.append(Row(item.label, text, drawing, item.own))
    beyond = [item.label for item in entries if not scale.low <= item.mean <= scale.high]
    return Measure(labels.MEASURES.get(name, name), rows, svg.axis(scale), beyond)
