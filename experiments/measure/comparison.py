"""Results of `experiments.compare`: the rows, their table in Markdown, and their figure."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ssdd_jax import methods, report
from ssdd_jax.report import labels as words
from ssdd_jax.report import statistics
from ssdd_jax.runtime import files
from ssdd_jax.teacher import description

REFERENCES = ("random_init", "full_data", "teacher")
MEASURES = ("linear", "linear_krr_st", "few_shot", "feature_r2", "feature_r2_whitened")
# Sets of each kind from which on the interval of a difference says something about another distillation.
SETS = 5


class Row(NamedTuple):
    """Results of one method at one size.

    `N` is the size asked for: images, or bytes if that is the `unit`, and then also of `numbers` and `budget`. `images`
    are decoded. `values` are the metrics of the networks trained on its sets, over all networks and seeds; `own` are
    those of the method's own post-training. `seconds` is the time to make one set; `preparation` is spent once for all
    sets.
    """

    method: str
    N: int
    numbers: int
    budget: int
    values: dict[str, list[float]]
    own: list[float]
    seconds: float
    preparation: float
    unit: str = "numbers"
    images: int = 0


class Comparison(NamedTuple):
    """Rows, values of the reference entries by measure, reasons of methods that cannot run, the teacher's time, its
    summary, the checksum of its weights where there are any, the methods in the order in which they were given, and the
    hashes of the inputs by name."""

    rows: list[Row]
    references: dict[str, dict[str, list[float]]]
    refused: list[str]
    seeds: int
    teacher_seconds: float
    teacher: str = ""
    checksum: str = ""
    order: tuple[str, ...] = ()
    inputs: Mapping[str, str] = MappingProxyType({})


def values(results: Sequence[Mapping[str, Any]], entry: str) -> dict[str, list[float]]:
    """Collect the values of an entry over the results of several runs, by measure."""
    return {
        measure: [value for one in results for value in one[measure][entry]["values"]]
        for measure in MEASURES
        if entry in results[0].get(measure, {})
    }


def label(name: str) -> str:
    """Return the display name of a method's edition, or of a reference entry."""
    return labels().get(name, name)


def labels() -> dict[str, str]:
    """Return the display names of all editions and reference entries, in an order independent of the comparison."""
    return methods.titles() | {name: words.ENTRIES[name] for name in REFERENCES}


def differences(found: Comparison) -> list[dict[str, Any]]:
    """Compare methods at equal size, paired by the seed of the distillation.

    The networks on one set are not independent samples of a method: their mean is one value. Sets of one seed share
    the initial networks of the evaluation and the few labels.

    Returns:
        A row per size, measure and pair: `N`, `measure`, `first`, `second`, and the result of `statistics.paired` for
        first - second with `sets` in place of its `seeds`. Every method is compared with the first method and with
        random images.
    """
    lines = []
    by_key = {(row.N, row.method): row for row in found.rows}
    order = _order(found)
    pairs = [(order[0], method) for method in order[1:]]
    if "random" in order[1:]:
        pairs += [(method, "random") for method in order[1:] if method != "random"]
    for N in dict.fromkeys(row.N for row in found.rows):
        for first, second in pairs:
            for measure in _measured(found):
                values = [by_key[N, name].values.get(measure) if (N, name) in by_key else None
                          for name in (first, second)]  # fmt: skip
                if all(values):
                    paired = statistics.paired(*(_by_set(one, found.seeds) for one in values if one))
                    names = {_heading(found): N, "measure": measure, "first": first, "second": second}
                    lines.append(names | {"sets" if key == "seeds" else key: value for key, value in paired.items()})
    return lines


def _order(found: Comparison) -> list[str]:
    """Return the methods that have rows, as they were given, also where one cannot run at the first size."""
    present = dict.fromkeys(row.method for row in found.rows)
    return [*(method for method in found.order if method in present), *(m for m in present if m not in found.order)]


def _by_set(values: Sequence[float], sets: int) -> list[float]:
    """Mean over the networks on each set; `values` lists the networks set by set."""
    return np.reshape(np.asarray(values, np.float64), (sets, -1)).mean(1).tolist()


def differences_table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Format the differences: the headings, and a row of cells for each pair and size; empty for a single set."""
    measures = _measured(found)
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for line in differences(found):
        if line["low"] is None:
            continue
        text = statistics.words(line, report.digits(line["measure"]))
        names = f"{label(line['first'])} − {label(line['second'])}", str(line[_heading(found)])
        rows.setdefault(names, {})[line["measure"]] = text
    cells = [[*names, *(by_measure.get(measure, "") for measure in measures)] for names, by_measure in rows.items()]
    return ["difference", _heading(found), *(report.TITLES[measure] for measure in measures)], cells


def differences_note(found: Comparison) -> str:
    """Explain the intervals of the differences."""
    few = "" if found.seeds >= SETS else f" {found.seeds} sets are few for them: --seeds={SETS} distils more."
    return (
        f"Differences are paired by the seed of the distillation, with 95 % confidence intervals (Student's t) over "
        f"{found.seeds} sets of each kind.{few}"
    )


def table(found: Comparison) -> str:
    """Format the comparison as Markdown: mean and sample standard deviation over the networks of all seeds.

    The heading says so where the teacher was supervised.
    """
    measures = _measured(found)
    heading = description.heading(found.teacher)
    lines = [
        f"| {heading}{' ' if heading else ''}| {_heading(found)} | {found.rows[0].unit} stored | "
        + "".join(f"{report.TITLES[m]} | " for m in measures)
        + "seconds |",
        "|---|---:|---:|" + "---:|" * (len(measures) + 1),
    ]
    for row in found.rows:
        cells = "".join(f"{cell(measure, row.values.get(measure))} | " for measure in measures)
        stored = f"{row.numbers:,} of {row.budget:,}"
        stored += f", {row.images:,} images" if row.unit == "bytes" else ""
        lines.append(f"| {label(row.method)} | {row.N} | {stored} | {cells}{_seconds(row)} |")
    for name, values in found.references.items():
        if values:
            cells = "".join(f"{cell(measure, values.get(measure))} | " for measure in measures)
            lines.append(f"| {label(name)} | | | {cells}|")
    lines.append(
        f"\nMean ± standard deviation over all networks trained on {found.seeds} set{'s' * (found.seeds > 1)} of each "
        f"kind{_reference_words(found)}. "
        "Seconds: to make a set, and after the plus what is made once for all sets (MKDT's experts, whose first "
        "epoch is all that the high-loss subset needs, and SC-DD's probe). The teacher and its features, which all "
        f"share, took {found.teacher_seconds:.0f} seconds."
    )
    heads, differing = differences_table(found)
    if differing:
        lines.append(f"\n{differences_note(found)}\n")
        lines += [f"| {' | '.join(heads)} |", "|---|---:|" + "---:|" * (len(heads) - 2)]
        lines += [f"| {' | '.join(row)} |" for row in differing]
    for row in found.rows:
        if row.own:
            lines.append(
                f"\n{label(row.method)} at {_heading(found)} = {row.N} reaches a top-1 accuracy of "
                f"{cell('top1', row.own)} % "
                "in its own post-training, in which networks of the teacher's kind learn from the teacher itself."
            )
    return "\n".join([*lines, *(f"\nNot measured: {line}" for line in found.refused)])


def _reference_words(found: Comparison) -> str:
    """Say over how many networks the rows without a set are, if these are fewer than those of a method."""
    counts = {len(one) for values in found.references.values() for one in values.values()}
    networks = max((len(one) for row in found.rows for one in row.values.values()), default=0)
    if not counts or max(counts) >= networks:
        return ""
    return f"; the rows without a set: {max(counts)} network{'s' * (max(counts) > 1)}"


def _heading(found: Comparison) -> str:
    """Return the heading of the sizes that were asked for."""
    return "N" if found.rows[0].unit == "numbers" else "bytes"


def _measured(found: Comparison) -> list[str]:
    return [measure for measure in MEASURES if any(row.values.get(measure) for row in found.rows)]


def _seconds(row: Row) -> str:
    digits = 0 if row.seconds >= 10 else 1
    return f"{row.seconds:.{digits}f}" + (f" + {row.preparation:.0f}" if row.preparation >= 1 else "")


def cell(measure: str, values: list[float] | None) -> str:
    """Format the mean and the sample standard deviation of a measure: one value alone, and nothing without values."""
    if not values:
        return ""
    return words.value(measure, float(np.mean(values)), _deviation(values), len(values))


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def draw(path: pathlib.Path, found: Comparison) -> None:
    """Draw every measure over the numbers or bytes stored, and the seconds per set."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    measures = _measured(found)
    shown_methods = _order(found)
    columns = min(3, len(measures) + 1)
    lines = -(-(len(measures) + 1) // columns)
    figure = Figure(figsize=(4.6 * columns, 4.2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(measures) + 1 :]:
        axes.set_axis_off()
    # Nine colors without grey, which is that of the references, and eight darker ones.
    palette = [color for i, color in enumerate(colormaps["tab10"].colors) if i != 7]  # type: ignore[attr-defined]
    palette += colormaps["Dark2"].colors  # type: ignore[attr-defined]
    # A method's color does not depend on the other methods of the comparison.
    order = list(dict.fromkeys([*labels(), *shown_methods]))
    colors = {name: palette[order.index(name) % len(palette)] for name in shown_methods}
    handles: dict[str, Any] = {}
    for axes, measure in zip(panels, measures, strict=False):
        _draw_measure(axes, measure, found, colors)
        handles |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    largest = max(row.N for row in found.rows)
    _draw_seconds(panels[len(measures)], [row for row in found.rows if row.N == largest], colors)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=5, frameon=False)
    with files.saving(path):
        figure.savefig(path, dpi=130, metadata={"Software": None})


def _draw_measure(axes: Any, measure: str, found: Comparison, colors: dict[str, Any]) -> None:
    rows = [row for row in found.rows if row.values.get(measure)]
    # The axis spans a factor of two at least: few numbers more or less are no distance.
    most, least = max(row.budget for row in rows), min(row.numbers for row in rows)
    span, middle = max(np.log(most / least), np.log(2)), np.sqrt(most * least)
    apart = 0.015 if len({row.N for row in rows}) > 1 else 0.08
    shown = {}
    for i, method in enumerate(colors):
        method_rows = [row for row in rows if row.method == method]
        means = [float(np.mean(row.values[measure])) for row in method_rows]
        errors = [_deviation(row.values[measure]) for row in method_rows]
        # Methods that store the same amount are shifted apart.
        positions = [row.numbers * np.exp(apart * span * (i - (len(colors) - 1) / 2)) for row in method_rows]
        style = {"color": colors[method], "marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1}
        axes.errorbar(positions, means, errors, label=label(method), **style)
        shown[method] = [m + e for m, error in zip(means, errors, strict=True) for e in (-error, error)]
    for name, line in zip(REFERENCES, (":", "--", "-."), strict=True):
        if found.references[name].get(measure):
            shown[name] = [float(np.mean(found.references[name][measure]))]
            axes.axhline(shown[name][0], color="0.5", linewidth=1, linestyle=line, label=label(name))
    _limit(axes, shown)
    budgets, unit = {row.budget: row.N for row in rows}, rows[0].unit
    words = [f"{budget:,}" + (f"\nN = {N}" if unit == "numbers" else "") for budget, N in budgets.items()]
    axes.set(xscale="log", xlabel=f"{unit} stored", title=report.TITLES[measure])
    axes.set_xticks(list(budgets), words, minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlim(middle * np.exp(-0.55 * span), middle * np.exp(0.55 * span))
    axes.grid(alpha=0.3)


def _limit(axes: Any, shown: dict[str, list[float]]) -> None:
    """Limit the axis to the range in which the methods differ; values far outside are named at the edge."""
    floors = [edition for one in methods.METHODS.values() if one.floor for edition in one.editions]
    method_values = [value for name, values in shown.items() if name not in (*floors, *REFERENCES) for value in values]
    method_values = method_values or [value for values in shown.values() for value in values]
    margin = 0.6 * (max(method_values) - min(method_values)) or 0.05 * abs(max(method_values)) or 1.0
    low, high = min(method_values) - margin, max(method_values) + margin
    inside = [value for values in shown.values() for value in values if low <= value <= high]
    bottom, top = min(inside) - 0.2 * margin, max(inside) + 0.2 * margin
    axes.set_ylim(bottom, top)
    means = {label(name): float(np.mean(values)) for name, values in shown.items() if values}
    for edge, arrow, names in (
        (0.02, "↓", [f"{name} {mean:.3g}" for name, mean in means.items() if mean < bottom]),
        (0.98, "↑", [f"{name} {mean:.3g}" for name, mean in means.items() if mean > top]),
    ):
        if names:
            words, side = f"{arrow} {', '.join(names)}", "bottom" if arrow == "↓" else "top"
            axes.text(0.02, edge, words, transform=axes.transAxes, fontsize=7, color="0.4", va=side)


def _draw_seconds(axes: Any, rows: list[Row], colors: dict[str, Any]) -> None:
    names = [label(row.method) for row in rows]
    size = f"N = {rows[0].N}" if rows[0].unit == "numbers" else f"{rows[0].N:,} bytes"
    axes.barh(names, [row.seconds for row in rows], color=[colors[row.method] for row in rows])
    bars = axes.barh(names, [row.preparation for row in rows], left=[row.seconds for row in rows], color="0.8")
    axes.bar_label(bars, [_seconds(row) for row in rows], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(row.seconds + row.preparation for row in rows) or 1.0)
    axes.set(xlabel="seconds per set, grey: once for all sets", title=f"distillation at {size}")
    axes.grid(axis="x", alpha=0.3)
