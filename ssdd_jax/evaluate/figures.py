"""The figure of an evaluation: a panel per target, bars with error bars."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssdd_jax.evaluate import tables

COLORS = {"random_real": "0.45", "random_init": "0.8", "full_data": "0.65", "teacher": "tab:green"}
OWN = ("tab:blue", "tab:orange", "tab:purple", "tab:red", "tab:cyan", "tab:olive", "tab:pink", "tab:brown")


def draw(path: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Draw what `ssdd_jax.evaluate` returns: per target a panel, per architecture and measure a group of bars.

    Where nothing could be measured there is no figure.
    """
    from matplotlib.figure import Figure

    from ssdd_jax.report import figures

    bars = [row for row in result["rows"] if row["model"] is not None]
    targets = list(dict.fromkeys(row["target"] for row in bars))
    if not bars:
        path.unlink(missing_ok=True)
        return
    groups = list(dict.fromkeys((row["model"], row["measure"]) for row in bars))
    shown = list(dict.fromkeys(row["entry"] for row in bars))
    colors = _colors(shown, [one["name"] for one in result["sets"]])
    width = max(6.0, 0.32 * len(groups) * (len(shown) + 1.5))
    figure = Figure(figsize=(min(width, 22), 3.4 * len(targets) + 0.6), layout="constrained")
    panels = figure.subplots(len(targets), 1, squeeze=False)
    for axes, target in zip(panels[:, 0], targets, strict=True):
        _panel(axes, target, [row for row in result["rows"] if row["target"] == target], groups, colors)
    handles: dict[str, Any] = {}
    for axes in panels[:, 0]:
        handles |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figures.save(figure, path)


def _colors(shown: list[str], sets: list[str]) -> dict[str, str]:
    own = {name: OWN[i % len(OWN)] for i, name in enumerate(sets)}
    return {name: own.get(name) or COLORS.get(name) or "0.45" for name in shown}


def _panel(axes: Any, target: str, rows: list[Any], groups: list[tuple[str, str]], colors: Mapping[str, str]) -> None:
    step = 0.8 / len(colors)
    highest = 0.0
    for i, (entry, color) in enumerate(colors.items()):
        mine = {(row["model"], row["measure"]): row for row in rows if row["entry"] == entry}
        places = [g + (i - (len(colors) - 1) / 2) * step for g, group in enumerate(groups) if group in mine]
        found = [mine[group] for group in groups if group in mine]
        means, errors = [_percent(row, "mean") for row in found], [_percent(row, "std") for row in found]
        axes.bar(places, means, 0.92 * step, yerr=errors, color=color, capsize=2, label=tables.label(entry))
        for place, mean, error in zip(places, means, errors, strict=True):
            axes.annotate(f"{mean:.1f}", (place, mean + error), xytext=(0, 2), textcoords="offset points",
                          ha="center", fontsize=7)  # fmt: skip
            highest = max(highest, mean + error)
    for entry, style in (("teacher", "-"), ("chance", ":")):
        for row in (row for row in rows if row["entry"] == entry):
            mean = _percent(row, "mean")
            highest = max(highest, mean)
            for g in (g for g, group in enumerate(groups) if group[1] == row["measure"]):
                color = COLORS["teacher"] if entry == "teacher" else "0.2"
                axes.hlines(mean, g - 0.45, g + 0.45, colors=color, linestyles=style, linewidth=1.2, label=entry)
    words = [tables.TITLES[measure].replace(" (%)", "").replace(", ", "\n") for _, measure in groups]
    axes.set_xticks(range(len(groups)), words, fontsize=8)
    models = [model for model, _ in groups]
    centres = {model: float(np.mean([g for g, own in enumerate(models) if own == model])) for model in models}
    below = axes.secondary_xaxis(-0.13)
    below.set_xticks(list(centres.values()), list(centres), fontsize=9)
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
    return float(np.multiply(row[name], 100.0 if row["measure"] == "feature_r2" else 1.0))
