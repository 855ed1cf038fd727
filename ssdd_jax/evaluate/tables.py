"""Tables of an evaluation: Markdown, and paired differences with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssdd_jax.evaluate.entries import REFERENCES
from ssdd_jax.evaluate.protocols.table import PROTOCOLS
from ssdd_jax.report import labels, statistics
from ssdd_jax.teacher import description

Rows = Sequence[Mapping[str, Any]]

TITLES = {measure: title for protocol in PROTOCOLS.values() for measure, title in protocol.columns.items()}


def label(entry: str) -> str:
    """Return the display name of a row: a set has its own name."""
    if entry.startswith("random_real_"):
        return f"{entry.rpartition('_')[2]} random images"
    return labels.entry(entry) if entry in REFERENCES else entry


def differences(rows: Rows, sets: Sequence[str]) -> list[dict[str, Any]]:
    """Compare every set with the sets after it and with the baselines that were trained, paired by seed.

    Args:
        rows: Rows from `suite.run`.
        sets: Names of the sets' rows.

    Returns:
        A row per target, architecture, measure and pair: `first`, `second`, and the result of `statistics.paired` for
        first - second.
    """
    # Only entries of one target, architecture and measure share their seeds; the teacher and chance have model None.
    by_group: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_group.setdefault((row["target"], row["model"], row["measure"]), {})[row["entry"]] = row
    pairs = []
    for (target, model, measure), by_entry in by_group.items():
        for i, first in enumerate(sets):
            for second in by_entry:
                if first not in by_entry or second in sets[: i + 1]:
                    continue
                pair = statistics.paired(by_entry[first]["values"], by_entry[second]["values"])
                names = {"target": target, "model": model, "measure": measure, "first": first, "second": second}
                pairs.append(names | pair)
    return pairs


def markdown(result: Mapping[str, Any]) -> str:
    """Format a result as Markdown: one table of values per target, followed by one of differences.

    Args:
        result: Return value of `ssdd_jax.evaluate`.
    """
    parts = []
    # Sets of one teacher have its heading; others are told apart by their names.
    kinds = {description.heading(item.get("teacher", "")) for item in result["sets"]}
    kind = kinds.pop() if len(kinds) == 1 else ""
    heading = f", {kind}" if kind else ""
    for target in dict.fromkeys(row["target"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["target"] == target]
        parts.append(f"**{target}{heading}**\n\n{_values(rows)}")
        # Differences of a single seed have no interval and are left out.
        compared = [row for row in result["differences"] if row["target"] == target and row["low"] is not None]
        if compared:
            parts.append(
                f"Differences, with {100 * compared[0]['level']:g} % confidence intervals over "
                f"{compared[0]['seeds']} paired seeds:\n\n{_differences(compared)}"
            )
    return "\n\n".join([*parts, _caption(result)])


def _values(rows: Rows) -> str:
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cells.setdefault((row["model"] or "", label(row["entry"])), {})[row["measure"]] = labels.value(
            row["measure"], row["mean"], row["std"], row["seeds"]
        )
    return _table(["architecture", "trained on"], measures, cells)


def _differences(rows: Rows) -> str:
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        text = statistics.words(row, labels.digits(row["measure"]))
        names = f"{label(row['first'])} − {label(row['second'])}"
        cells.setdefault((row["model"], names), {})[row["measure"]] = text
    return _table(["architecture", "difference"], measures, cells)


def _table(heads: list[str], measures: list[str], cells: Mapping[tuple[str, str], Mapping[str, str]]) -> str:
    lines = [
        f"| {' | '.join([*heads, *(TITLES[measure] for measure in measures)])} |",
        "|" + "---|" * len(heads) + "---:|" * len(measures),
    ]
    lines += [f"| {' | '.join([*names, *(row.get(m, '') for m in measures)])} |" for names, row in cells.items()]
    return "\n".join(lines)


def _caption(result: Mapping[str, Any]) -> str:
    sets = "; ".join(f"{item['name']}: {item['pairs']} pairs, {item['numbers']:,} numbers" for item in result["sets"])
    sizes = ", ".join(f"{item['name']} {item['parameters']:,} parameters" for item in result["models"])
    return f"{statistics.over(result['seeds']).capitalize()}. {sets}. {sizes}. {_trained(result)}"


def _trained(result: Mapping[str, Any]) -> str:
    """The rates that were chosen, and the networks whose batch norm was calibrated."""
    rates = {
        f"{row['model']} on {label(row['entry'])}": f"{row['learning_rate']:g} and {row['weight_decay']:g}"
        for row in result["rows"]
        if "weight_decay" in row
    }
    words = f"Learning rate and weight decay: {', '.join(f'{name} {rate}' for name, rate in rates.items())}. "
    return (words if rates else "") + {
        "none": "Batch norm is not recalibrated.",
        "untrained": "Untrained networks have batch-norm statistics of training images of the target.",
        "all": "All networks have batch-norm statistics of training images of the target.",
    }[result["settings"]["calibrate"]]
