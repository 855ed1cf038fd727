"""The measures of a page: for each a table whose rows are entries, with the error bars drawn beside the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from ssdd_jax.report import labels, svg


class Entry(NamedTuple):
    """What was measured of one thing: its name, single values, mean and standard deviation, and if it is the page's own
    (or only something to compare it with)."""

    label: str
    values: Sequence[float]
    mean: float
    std: float
    own: bool


class Row(NamedTuple):
    """A row of a measure's table: name, numbers, their drawing, and whether it is the page's own."""

    label: str
    text: str
    drawing: Markup
    own: bool


class Measure(NamedTuple):
    """A measure: its title, rows, the axis under the drawings, and what lies beyond it."""

    title: str
    rows: list[Row]
    axis: Markup
    beyond: list[str]


def entry(label: str, values: Sequence[float], *, own: bool) -> Entry:
    """An entry out of its single values, with their sample standard deviation."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Entry(label, values, float(np.mean(values)), std, own)


def of_results(results: Mapping[str, Any]) -> dict[str, list[Entry]]:
    """The measures of a `results.json`, those of the method's own stages too, by name."""
    found = {}
    for name, rows in results.items():
        if isinstance(rows, Mapping) and rows and all(isinstance(r, Mapping) and "mean" in r for r in rows.values()):
            found[name] = [
                Entry(labels.ENTRIES.get(key, str(key)), row.get("values", ()), row["mean"], row["std"], _is_own(key))
                for key, row in rows.items()
            ]
    return found


def _is_own(key: str) -> bool:
    return key in ("distilled", "top1")


def table(name: str, entries: Sequence[Entry], *, near: Sequence[str] = ()) -> Measure:
    """The table of a measure.

    Args:
        name: The measure's name in `results.json`.
        entries: Its rows.
        near: Labels of the entries, besides the page's own, that the drawings must show; others may lie beyond.
    """
    shown: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for one in entries:
        shown[one.own or one.label in near].append((one.mean - one.std, one.mean + one.std))
    scale = svg.scale_of(shown[True] or shown[False], shown[False])
    rows = []
    for one in entries:
        text = labels.value(name, one.mean, one.std)
        drawing = svg.interval(one.mean, one.std, one.values, scale, strong=one.own, words=f"{one.label}: {text}")
        rows.append(Row(one.label, text, drawing, one.own))
    beyond = [one.label for one in entries if not scale.low <= one.mean <= scale.high]
    return Measure(labels.MEASURES.get(name, name), rows, svg.axis(scale), beyond)
