"""The report of several runs side by side."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssdd_jax.report import labels as words
from ssdd_jax.report import measures, render, storage, svg
from ssdd_jax.report.pictures import pictures
from ssdd_jax.report.records import Record

SHOWN = 30  # images of each side
REFERENCES = ("random_real", "random_init", "full_data", "teacher")
# What the entries that a set is compared with depend on; random real images on `storage.N` too.
GROUPS = ("data.", "teacher.", "student.", "evaluate.")


class Side(NamedTuple):
    """What is compared: one run, or runs that differ in their seed only.

    Attributes:
        label: Its name on the page.
        values: By measure, the single values of all networks trained on its sets.
        results: `results.json` of the first run.
        seconds: By stage, means over the runs.
        host: The most bytes that a stage held on the host; None where that is not known.
        images: Decoded images of the first run, uint8 `(M,H,W,C)`.
        config: The config of the first run.
    """

    label: str
    values: Mapping[str, Sequence[float]]
    results: Mapping[str, Any]
    seconds: Mapping[str, float]
    host: int | None
    images: np.ndarray
    config: Mapping[str, Any]


def side_of(label: str, records: Sequence[Record]) -> Side:
    """A side out of runs that differ in their seed only, one or more."""
    first = records[0]
    values: dict[str, list[float]] = {}
    for record in records:
        for name, entries in measures.of_results(record.results).items():
            values.setdefault(name, []).extend(entries[0].values)
    spent = [record.results["seconds"] for record in records]
    names = dict.fromkeys(name for one in spent for name in one)
    held = [size["host"] for r in records for size in r.results.get("memory", {}).values() if "host" in size]
    return Side(
        label,
        values,
        first.results,
        {name: float(np.mean([one.get(name, 0.0) for one in spent])) for name in names},
        max(held, default=None),
        first.images,
        first.config,
    )


def labels(records: Sequence[Record]) -> list[str]:
    """Names that tell runs apart: method and N, and the folder's name where that is not enough."""
    plain = [f"{words.method(r.results)}, N = {r.results['storage']['N']}" for r in records]
    counts = Counter(plain)
    folders = Counter(record.folder.name for record in records)
    places = [r.folder.name if folders[r.folder.name] == 1 else str(r.folder) for r in records]
    return [label if counts[label] == 1 else f"{label} ({place})" for label, place in zip(plain, places, strict=True)]


def references(records: Sequence[Record]) -> dict[str, dict[str, list[float]]]:
    """Values of the entries that sets are compared with, by entry and measure, of all runs together.

    They are left out where the runs differ in what they depend on. Runs of one seed have the same of them: they count
    once.
    """
    if _differ(records, lambda key: key.startswith(GROUPS) and key != "evaluate.entries"):
        return {}
    found: dict[str, dict[str, list[float]]] = {}
    for name in REFERENCES:
        if name == "random_real" and _differ(records, lambda key: key == "storage.N"):
            continue
        for record in {record.results.get("seed"): record for record in records}.values():
            for measure, rows in record.results.items():
                if isinstance(rows, Mapping) and isinstance(rows.get(name), Mapping) and "values" in rows[name]:
                    found.setdefault(name, {}).setdefault(measure, []).extend(rows[name]["values"])
    return found


def _differ(records: Sequence[Record], chosen: Any) -> bool:
    return any(chosen(key) for key in differences([record.config for record in records]))


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The keys in which configs differ, each with its values; what devices they use does not count."""
    keys = sorted({key for config in configs for key in config if not key.startswith("devices.")})
    found = {key: [config.get(key, "") for config in configs] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def compare(
    path: pathlib.Path,
    sides: Sequence[Side],
    *,
    beside: Mapping[str, Mapping[str, Sequence[float]]],
    title: str = "Runs side by side",
    command: str = "",
    notes: Sequence[str] = (),
) -> None:
    """Write the report of a comparison.

    Args:
        path: The HTML file.
        sides: What is compared, at least one.
        beside: What stands beside them: values by entry and measure, see `references`.
        title: The page's title.
        command: What makes the page again.
        notes: Sentences that a reader must know, such as what could not be measured.

    Raises:
        UserError: If it cannot be written.
    """
    render.write(path, "comparison.html", content(sides, beside, title, command, notes))


def content(
    sides: Sequence[Side],
    beside: Mapping[str, Mapping[str, Sequence[float]]],
    title: str,
    command: str,
    notes: Sequence[str],
) -> dict[str, Any]:
    """What the page of a comparison says."""
    budget = max(max(side.results["storage"][key] for key in ("budget", "numbers")) for side in sides)
    stages = list(dict.fromkeys(name for side in sides for name in side.seconds))
    totals = [sum(side.seconds.values()) for side in sides]
    return {
        "title": title,
        "notes": list(notes),
        "command": command,
        "sides": [
            {
                "label": side.label,
                "storage": storage.of_results(side.results, whole=budget),
                "images": pictures(side.images[:SHOWN], f"{side.label}, image"),
                "images_count": len(side.images),
                "seconds": [side.seconds.get(name) for name in stages],
                "total": total,
                "bar": svg.bar(total, max(totals)),
                "host": side.host,
            }
            for side, total in zip(sides, totals, strict=True)
        ],
        "stages": stages,
        "machines": list(dict.fromkeys(str(side.results["machine"]) for side in sides)),
        "has_memory": any(side.host is not None for side in sides),
        "measures": _measures(sides, beside),
        "left_out": not beside,
        "different": differences([side.config for side in sides]),
        "colours": _legend(sides),
        "datasets": list(dict.fromkeys(str(side.results["dataset"]) for side in sides)),
    }


def _measures(sides: Sequence[Side], beside: Mapping[str, Mapping[str, Sequence[float]]]) -> list[measures.Measure]:
    found = []
    for name in dict.fromkeys(name for side in sides for name in side.values):
        rows = [measures.entry(s.label, s.values[name], own=True) for s in sides if s.values.get(name)]
        rows += [
            measures.entry(words.ENTRIES.get(entry, entry), values[name], own=False)
            for entry, values in beside.items()
            if values.get(name)
        ]
        found.append(measures.table(name, rows))
    return found


def _legend(sides: Sequence[Side]) -> dict[str, int]:
    """The parts that any side stores, with their colours."""
    return {part.name: part.colour for side in sides for part in storage.of_results(side.results).parts}
