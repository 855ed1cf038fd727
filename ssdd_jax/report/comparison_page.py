"""The HTML page that compares several runs."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssdd_jax import config as configuration
from ssdd_jax.report import labels as words
from ssdd_jax.report import measures, render, storage, svg
from ssdd_jax.report.pictures import pictures
from ssdd_jax.report.records import Record
from ssdd_jax.runtime import inputs
from ssdd_jax.runtime.workdir import CHANGES_NOTHING

SHOWN = 30  # images of each side
REFERENCES = ("random_real", "random_init", "full_data", "teacher")
# Groups of config keys that the baselines depend on; random images depend on N as well.
GROUPS = ("data.", "teacher.", "student.", "evaluate.", "precision")


class Side(NamedTuple):
    """One side of a comparison: a run, or several runs that differ in their seed only.

    Attributes:
        label: Name on the page.
        values: Values of all networks trained on the side's sets, by measure.
        results: Content of `results.json` of the first run.
        seconds: Mean time over the runs in seconds, by stage.
        host: Largest host memory of any stage in bytes; None if unknown.
        images: Decoded images of the first run, uint8 `(M,H,W,C)`.
        config: Config of the first run.
    """

    label: str
    values: Mapping[str, Sequence[float]]
    results: Mapping[str, Any]
    seconds: Mapping[str, float]
    host: int | None
    images: np.ndarray
    config: Mapping[str, Any]


def side_of(label: str, records: Sequence[Record]) -> Side:
    """Combine runs that differ in their seed only into one side.

    Args:
        label: Name on the page.
        records: The runs, at least one.
    """
    first = records[0]
    values: dict[str, list[float]] = {}
    for record in records:
        for name, entries in measures.of_results(record.results).items():
            values.setdefault(name, []).extend(entries[0].values)  # the set itself is the first entry
    # A stage that is missing from a run counts as 0 seconds.
    times = [record.results["seconds"] for record in records]
    names = dict.fromkeys(name for seconds in times for name in seconds)
    peaks = [size["host"] for r in records for size in r.results.get("memory", {}).values() if "host" in size]
    return Side(
        label,
        values,
        first.results,
        {name: float(np.mean([seconds.get(name, 0.0) for seconds in times])) for name in names},
        max(peaks, default=None),
        first.images,
        first.config,
    )


def labels(records: Sequence[Record]) -> list[str]:
    """Return distinct names of runs: method and N, followed by the folder if several runs share these."""
    plain = [f"{words.method(r.results)}, {words.budget(r.results['storage'])}" for r in records]
    counts = Counter(plain)
    folders = Counter(record.folder.name for record in records)
    paths = [r.folder.name if folders[r.folder.name] == 1 else str(r.folder) for r in records]
    return [label if counts[label] == 1 else f"{label} ({path})" for label, path in zip(plain, paths, strict=True)]


def references(records: Sequence[Record]) -> dict[str, dict[str, list[float]]]:
    """Pool the values of the baselines of all runs, by entry and measure.

    A baseline is left out if the runs differ in what it depends on. Runs of one seed have equal baselines, which count
    once: those of the first run that has them.
    """
    if not _have_same_baselines(records):
        return {}
    pooled: dict[str, dict[str, list[float]]] = {}
    for name in REFERENCES:
        # With a budget in bytes N is what these hold, which the config of a run does not say.
        if name == "random_real" and len({record.results["storage"]["N"] for record in records}) > 1:
            continue
        seen: set[tuple[Any, str]] = set()
        for record in records:
            seed = record.results.get("seed")
            # Only the measures of `results.json` have rows with values.
            for measure, rows in record.results.items():
                found = rows.get(name) if isinstance(rows, Mapping) else None
                if isinstance(found, Mapping) and "values" in found and (seed, measure) not in seen:
                    seen.add((seed, measure))
                    pooled.setdefault(name, {}).setdefault(measure, []).extend(found["values"])
    return pooled


def _have_same_baselines(records: Sequence[Record]) -> bool:
    """Return whether nothing that the baselines depend on differs between the runs.

    Inputs count by their content where all runs have recorded it, else by their places.
    """
    keys = {key for key in differences([record.config for record in records]) if key.startswith(GROUPS)}
    marks: dict[str, list[str]] = {}
    for record in records:
        for name, mark in record.inputs.items():
            marks.setdefault(name, []).append(mark)
    if any(len(set(found)) > 1 for found in marks.values()):
        return False
    # A network may be gone once it has been converted, and a teacher that was trained was never a file.
    by_all = {name for name, found in marks.items() if len(found) == len(records)}
    keys -= {key for key, parts in inputs.CONTENT.items() if by_all.issuperset(parts)}
    return not keys - CHANGES_NOTHING - {"evaluate.entries"}


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the keys in which configs differ, with the value in each config; `devices.*` is ignored.

    Configs of older versions lack the keys that were added since, which have their default's value.
    """
    defaults = configuration.flatten(configuration.default())
    keys = sorted({key for config in configs for key in config if not key.startswith("devices.")})
    by_key = {key: [config.get(key, defaults.get(key, "")) for config in configs] for key in keys}
    return {key: values for key, values in by_key.items() if any(value != values[0] for value in values)}


def compare(
    path: pathlib.Path,
    sides: Sequence[Side],
    *,
    beside: Mapping[str, Mapping[str, Sequence[float]]],
    title: str = "Runs side by side",
    command: str = "",
    notes: Sequence[str] = (),
    table: tuple[Sequence[str], Sequence[Sequence[str]]] = ((), ()),
) -> None:
    """Write the page of a comparison.

    Args:
        path: The HTML file.
        sides: The sides to compare, at least one.
        beside: Baselines: values by entry and measure, see `references`.
        title: Title of the page.
        command: Command that reproduces the page.
        notes: Notes at the top of the page, such as measures that are missing.
        table: Differences between the sides: headings, and the cells of each row.

    Raises:
        UserError: If the file cannot be written.
    """
    render.write(path, "comparison.html", content(sides, beside, title, command, notes) | {"differences": table})


def content(
    sides: Sequence[Side],
    beside: Mapping[str, Mapping[str, Sequence[float]]],
    title: str,
    command: str,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Collect the variables of the template `comparison.html`; see `compare` for the arguments."""
    # Bars of one unit share a scale, so that their lengths compare.
    scales: dict[str, int] = {}
    for size in [storage.of_results(side.results) for side in sides]:
        scales[size.unit] = max(scales.get(size.unit, 0), size.budget, size.used)
    stages = list(dict.fromkeys(name for side in sides for name in side.seconds))
    totals = [sum(side.seconds.values()) for side in sides]
    return {
        "title": title + _teachers(sides),
        "notes": list(notes),
        "command": command,
        "sides": [
            {
                "label": side.label,
                "storage": storage.of_results(side.results, whole=scales[storage.used(side.results["storage"])[1]]),
                "images": pictures(side.images[:SHOWN], f"{side.label}, image"),
                "images_count": len(side.images),
                "seconds": [side.seconds.get(name) for name in stages],
                "total": total,
                "bar": svg.bar(total, max(totals)),
                "host": side.host,
            }
            for side, total in zip(sides, totals, strict=True)
        ],
        "units": list(scales),
        "stages": stages,
        "machines": list(dict.fromkeys(str(side.results["machine"]) for side in sides)),
        "has_memory": any(side.host is not None for side in sides),
        "measures": _measures(sides, beside),
        "left_out": not beside,
        "different": differences([side.config for side in sides]),
        "colours": _legend(sides),
        "datasets": list(dict.fromkeys(str(side.results["dataset"]) for side in sides)),
    }


def _teachers(sides: Sequence[Side]) -> str:
    """Return the addition to the title if all sides had a supervised teacher."""
    added = {words.teacher(side.results) for side in sides}
    return added.pop() if len(added) == 1 else ""


def _measures(sides: Sequence[Side], beside: Mapping[str, Mapping[str, Sequence[float]]]) -> list[measures.Measure]:
    tables = []
    for name in dict.fromkeys(name for side in sides for name in side.values):
        # A side may lack a measure, for example one of a single method.
        rows = [measures.entry(s.label, s.values[name], own=True) for s in sides if s.values.get(name)]
        rows += [
            measures.entry(words.entry(entry), values[name], own=False)
            for entry, values in beside.items()
            if values.get(name)
        ]
        tables.append(measures.table(name, rows))
    return tables


def _legend(sides: Sequence[Side]) -> dict[str, int]:
    """Colours of the stored parts of all sides, by name."""
    return {part.name: part.colour for side in sides for part in storage.of_results(side.results).parts}
