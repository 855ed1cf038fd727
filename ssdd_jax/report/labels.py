"""Display names of a report, and formatting of values with their units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssdd_jax.teacher import description

TITLES = {
    "linear": "linear probe, all labels (%)",
    "linear_krr_st": "KRR-ST's linear probe (%)",
    "few_shot": "10 labels per class (%)",
    "feature_r2": "teacher's features (R2)",
    "feature_r2_whitened": "whitened features (R2)",
}
ENTRIES = {
    "distilled": "distilled set",
    "random_real": "random images",
    "random_init": "untrained",
    "full_data": "all images",
    "teacher": "teacher",
    "top1": "distilled set",
    "centroids": "images nearest to their class's mean",
    "neighbours": "real neighbours of the distilled images",
    "lrs": "label-robust score",
    "ars": "augmentation-robust score",
}
ENTRY_NOTES = {
    "distilled set": "a network trained on the saved set",
    "random images": "the same network trained on N random images with the teacher's features",
    "untrained": "the same network with its initial weights",
    "all images": "the same network trained on all images with the teacher's features",
    "teacher": "the network whose features the others are trained to predict",
}
MEASURES = {
    **TITLES,
    "post_training": "its own post-training, top-1 (%)",
    "ridge_head": "ridge regression on the frozen teacher, top-1 (%)",
    "linear_head": "linear head on the frozen teacher, top-1 (%)",
    "hard_labels": "trained on labels, top-1 (%)",
    "hard_labels_augmented": "trained on labels with crops and flips, top-1 (%)",
    "dd_ranking": "DD-Ranking's scores (0 to 1)",
}
CALIBRATED = {
    "none": "running statistics, as published",
    "untrained": "statistics of training images for the untrained network, running statistics for the others",
    "all": "statistics of training images for every network",
}
PARTS = {
    "images": "images",
    "image_bases": "image bases",
    "image_coefficients": "image coefficients",
    "image_mean": "image mean",
    "targets": "targets",
    "feature_bases": "feature bases",
    "feature_coefficients": "feature coefficients",
    "feature_mean": "feature mean",
    "networks": "approximation networks",
}


def entry(name: str) -> str:
    """Return the display name of a row of `results.json`."""
    return ENTRIES.get(name, name)


def digits(measure: str) -> int:
    """Return the number of decimal digits that a measure is shown with."""
    return 3 if measure.startswith(("feature_r2", "dd_ranking")) else 1


def method(results: Mapping[str, Any]) -> str:
    """Return the display name of the method in `results.json`; older results have only its config name."""
    return results.get("title", results["method"])


def budget(storage: Mapping[str, Any]) -> str:
    """Name the budget in the `storage` of `results.json`: `N = 20`, or bytes."""
    return f"{storage['budget']:,} bytes" if storage.get("unit") == "bytes" else f"N = {storage['N']}"


def teacher(about: Mapping[str, Any]) -> str:
    """Return what a title adds about the teacher of a set: `, supervised teacher` if it was one, else nothing.

    Args:
        about: Description of the distilled set, or `results.json`.
    """
    heading = description.heading(str(about.get("teacher", "")))
    return f", {heading}" if heading else ""


def sgd(row: Mapping[str, Any]) -> str:
    """Describe how a row's networks were trained, from the `training` of `results.json`."""
    falling = ", falling to 0 along a cosine" if row.get("cosine") else ""
    return f"{row['steps']:,} steps, rate {row['learning_rate']:g}{falling}, weight decay {row['weight_decay']:g}"


def parts(stored: Mapping[str, int]) -> dict[str, int]:
    """Return what is stored per part, in numbers or bytes, by display name; approximation networks are one part."""
    # Starting from PARTS gives all reports the same order of parts.
    totals = dict.fromkeys(PARTS.values(), 0)
    for name, count in stored.items():
        group = name.partition(".")[0]
        totals[PARTS.get(group, group)] = totals.get(PARTS.get(group, group), 0) + count
    return {name: count for name, count in totals.items() if count}


def value(measure: str, mean: float, std: float, count: int) -> str:
    """Format mean and standard deviation with the number of digits of the measure; one value has no deviation."""
    places = digits(measure)
    return f"{mean:.{places}f}" + (f" ± {std:.{places}f}" if count != 1 else "")


def seconds(spent: float) -> str:
    """Format a time as seconds, minutes or hours, depending on its length."""
    if spent < 100:
        return f"{spent:.1f} s"
    minutes = round(spent / 60)
    return f"{spent / 60:.1f} min" if minutes < 10 else f"{minutes} min" if minutes < 120 else f"{spent / 3600:.1f} h"


def size(count: float) -> str:
    """Format a number of bytes with decimal units."""
    for unit, large in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        # Three digits that would be 1000 of a unit are 1 of the next.
        if count >= 0.9995 * large:
            number = count / large
            return f"{number:,.0f} {unit}" if number >= 999.5 else f"{number:.3g} {unit}"
    return f"{count:.0f} bytes"


def percent(part: float, whole: float) -> str:
    """Format a share as a percentage."""
    return f"{100 * part / whole:.1f} %"
