"""The figure of an evaluation: a panel per target, bars with error bars."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssdd_jax.evaluate import tables

COLORS = {"random_real": "0.45", "random_init": "0.8", "full_data": "0.65", "teacher": "tab:green"}
SET_COLORS = ("tab:blue", "tab:orange", "tab:purple", "tab:red", "tab:cyan", "tab:olive", "tab:pink", "tab:brown")


def draw(path: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Draw a result of `ssdd_jax.evaluate`: one panel per target, one group of bars per architecture and measure.

    Nothing is drawn, and an older figure is removed, if the result has no trained networks.

    Args:
        path: The image file.
        result: Return value of `ssdd_jax.evaluate`.
    """
    from matplotlib.figure import Figure

    from ssdd_jax.report import figures

    bars = [row for row in result["rows"] if row["model"] is not None]
    targets = list(dict.fromkeys(row["target"] for row in bars))
    if not bars:
        path.unlink(missing_ok=True)
        return
    groups = list(dict.fromkeys((row["model"], row["measure"]) for row in bars))
    entries = list(dict.fromkeys(row["entry"] for row in bars))
    colors = _colors(entries, [item["name"] for item in result["sets"]])
    # Width per bar, so that the values above neighbouring bars do not overlap.
    width = max(6.0, 0.32 * len(groups) * (len(entries) + 1.5))
    figure = Figure(figsize=(min(width, 22), 3.4 * len(targets) + 0.6), layout="constrained")
    panels = figure.subplots(len(targets), 1, squeeze=False)
    for axes, target in zip(panels[:, 0], targets, strict=True):
        _panel(axes, target, [row for row in result["rows"] if row["target"] == target], groups, colors)
    # One legend for the figure: panels may lack entries, so their handles are merged by name.
    handles: dict[str, Any] = {}
    for axes in panels[:, 0]:
        handles |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figures.save(figure, path)


def _colors(entries: list[str], sets: list[str]) -> dict[str, str]:
    set_colors = {name: SET_COLORS[i % len(SET_COLORS)] for i, name in enumerate(sets)}
    return {name: set_colors.get(name) or COLORS.get(name) or "0.45" for name in entries}


def _panel(axes: Any, target: str, rows: list[Any], groups: list[tuple[str, str]], colors: Mapping[str, str]) -> None:
    step = 0.8 / len(colors)
    highest = 0.0
    for i, (entry, color) in enumerate(colors.items()):
        by_group = {(row["model"], row["measure"]): row for row in rows if row["entry"] == entry}
        centres = [g + (i - (len(colors) - 1) / 2) * step for g, group in enumerate(groups) if group in by_group]
        measured = [by_group[group] for group in groups if group in by_group]
        means, errors = [_percent(row, "mean") for row in measured], [_percent(row, "std") for row in measured]
        axes.bar(centres, means, 0.92 * step, yerr=errors, color=color, capsize=2, label=tables.label(entry))
        for centre, mean, error in zip(centres, means, errors, strict=True):
            axes.annotate(f"{mean:.1f}", (centre, mean + error), xytext=(0, 2), textcoords="offset points",
                          ha="center", fontsize=7)  # fmt: skip
            highest = max(highest, mean + error)
    # The teacher and chance do not depend on the architecture: lines across each group of their measure.
    for entry, style in (("teacher", "-"), ("chance", ":")):
        for row in (row for row in rows if row["entry"] == entry):
            mean = _percent(row, "mean")
            highest = max(highest, mean)
            for g in (g for g, group in enumerate(groups) if group[1] == row["measure"]):
                color = COLORS["teacher"] if entry == "teacher" else "0.2"
                axes.hlines(mean, g - 0.45, g + 0.45, colors=color, linestyles=style, linewidth=1.2, label=entry)
    # Two rows of labels: the measure under each group, the architecture under the groups that share it.
    words = [tables.TITLES[measure].replace(" (%)", "").replace(", ", "\n") for _, measure in groups]
    axes.set_xticks(range(len(groups)), words, fontsize=8)
    models = [model for model, _ in groups]
    middles = {model: float(np.mean([g for g, other in enumerate(models) if other == model])) for model in models}
    below = axes.secondary_xaxis(-0.13)
    below.set_xticks(list(middles.values()), list(middles), fontsize=9)
    below.tick_params(length=0)
    below.spines["bottom"].set_visible(False)
    for g in range(1, len(groups)):
        if models[g] != models[g - 1]:
            axes.axvline(g - 0.5, color="0.7", linewidth=0.8)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylim(0, 1.12 * highest or 1.0)
    axes.set(title=target, ylabel="%")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _percent(row: Mapping[str, Any], name: str) -> float:
    # All measures share one axis in percent; R2 is the only kind in 0..1.
    return float(np.multiply(row[name], 100.0 if row["measure"].startswith("feature_r2") else 1.0))
