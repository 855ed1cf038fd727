"""Figures of a run, drawn from a distilled set and its metrics; they do not depend on the method."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ssdd_jax.distilled import DistilledSet
from ssdd_jax.report import labels, statistics
from ssdd_jax.report.labels import TITLES, digits
from ssdd_jax.runtime import files
from ssdd_jax.teacher import description

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 100  # images in a grid at most
COMPARED = ("distilled", "random_real")  # the rows whose difference a table states
COLUMNS = 3  # panels of a figure side by side at most


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Arrange images in a grid.

    Args:
        images: Images `(n,H,W,C)` in 0..1, C 1 or 3.
        columns: Images per row.

    Returns:
        One image `(rows*(H+1)-1, columns*(W+1)-1, 3)` with white lines between neighbours.
    """
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, 3))
    for i, image in enumerate(np.broadcast_to(images, (count, height, width, 3)) if channels == 1 else images):
        top, left = divmod(i, columns)
        sheet[top * (height + 1) :, left * (width + 1) :][:height, :width] = image
    return sheet


def stretch(images: np.ndarray) -> np.ndarray:
    """Scale each image of `(n,H,W,C)` so that zero becomes mid-grey and its largest magnitude black or white."""
    largest = np.abs(images).max(axis=(1, 2, 3), keepdims=True)
    return 0.5 + 0.5 * images / np.where(largest > 0, largest, 1)


def images_figure(path: pathlib.Path, images: np.ndarray, title: str) -> None:
    """Draw images `(n,H,W,C)` in 0..1 as a grid, enlarged without smoothing."""
    # A set may hold thousands of images: the first ones, in at most ten or twenty columns, stay legible.
    shown = images[:SHOWN]
    columns = min(len(shown), 10 if len(shown) <= 60 else 20)
    sheet = grid(shown, columns)
    width = 8.0
    figure = _figure(figsize=(width, width * sheet.shape[0] / sheet.shape[1] + 0.4), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title if len(images) <= SHOWN else f"{title}, the first {SHOWN}", fontsize=10)
    save(figure, path)


def loss_figure(path: pathlib.Path, steps: Sequence[int], losses: Sequence[float]) -> None:
    """Draw the outer loss over the steps."""
    figure = _figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, linewidth=1.2, marker="." if len(steps) < 40 else None)
    axes.set_yscale("log")  # losses fall by orders of magnitude
    axes.set_xlabel("outer step")
    axes.set_ylabel("outer loss, mean per call")
    axes.grid(alpha=0.3, which="both")
    save(figure, path)


def results_figure(path: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Draw every measure of `results.json` as bars with the standard deviation over seeds."""
    measures = [name for name in TITLES if results.get(name)]
    if not measures:
        return
    columns = min(COLUMNS, len(measures))
    lines = -(-len(measures) // columns)
    figure = _figure(figsize=(3.6 * columns, 3.2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(measures) :]:
        axes.set_axis_off()
    for axes, measure in zip(panels, measures, strict=False):
        rows = results[measure]
        colors = ["tab:blue" if name == "distilled" else "0.7" for name in rows]
        means, errors = [row["mean"] for row in rows.values()], [row["std"] for row in rows.values()]
        axes.barh([labels.entry(name) for name in rows], means, xerr=errors, color=colors, capsize=3)
        axes.invert_yaxis()
        # The range covers the differences between entries instead of starting at 0, where bars would look alike.
        low = min(mean - error for mean, error in zip(means, errors, strict=True))
        high = max(mean + error for mean, error in zip(means, errors, strict=True))
        axes.set_xlim(low - 0.2 * (high - low or 1), high + 0.1 * (high - low or 1))
        axes.set_title(TITLES[measure], fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    save(figure, path)


def draw(folder: pathlib.Path, distilled: DistilledSet, lines: Sequence[Mapping[str, Any]], results: Any) -> None:
    """Draw everything there is to see of a run.

    Args:
        folder: Folder of the figures.
        distilled: The set.
        lines: Lines of `metrics.jsonl` of the distillation.
        results: Content of `results.json`.
    """
    images = np.asarray(distilled.images())
    images_figure(folder / "distilled.png", images, f"{len(images)} distilled images")
    if "image_bases" in distilled.arrays:
        bases = np.asarray(jax.device_get(distilled.arrays["image_bases"]))
        images_figure(folder / "bases.png", stretch(bases), f"{len(bases)} image bases")
    stored = distilled.stored_images()
    if stored is not None:
        images_figure(folder / "stored.png", np.asarray(stored), f"{len(stored)} stored images")
    if lines:
        loss_figure(folder / "loss.png", [x["step"] for x in lines], [x["loss"] for x in lines])
    results_figure(folder / "results.png", results)


def table(results: Mapping[str, Any]) -> str:
    """Format `results.json` as a Markdown table: a row per entry, mean and standard deviation per measure.

    The last row is the difference between the set and random images, paired by the seed of the network, with a 95 %
    confidence interval over the networks of this one set.

    The heading says so where the teacher was supervised.
    """
    measures = [name for name in TITLES if results.get(name)]
    names = list(dict.fromkeys(name for measure in measures for name in results[measure]))
    heading = description.heading(results.get("teacher", ""))
    lines = [
        f"| {heading}{' ' if heading else ''}| {' | '.join(TITLES[m] for m in measures)} |",
        "|---|" + "---:|" * len(measures),
    ]
    for name in names:
        cells = []
        for measure in measures:
            row = results[measure].get(name)
            cells.append(labels.value(measure, row["mean"], row["std"], row["seeds"]) if row else "")
        lines.append(f"| {labels.entry(name)} | " + " | ".join(cells) + " |")
    differences = {measure: _difference(results[measure], digits(measure)) for measure in measures}
    if any(differences.values()):
        lines.append(f"| {' − '.join(map(labels.entry, COMPARED))} | {' | '.join(differences.values())} |")
    return "\n".join(lines)


def _difference(rows: Mapping[str, Any], places: int) -> str:
    """Format the difference between the set and random images in one measure; nothing without several networks."""
    first, second = (rows.get(name, {}).get("values", ()) for name in COMPARED)
    if len(first) < 2 or len(first) != len(second):
        return ""
    return statistics.words(statistics.paired(first, second), places)


def save(figure: Any, path: pathlib.Path) -> None:
    """Write a Matplotlib figure to a PNG file, creating its folder.

    Args:
        figure: The figure.
        path: The file.

    Raises:
        UserError: If the file cannot be written.
    """
    with files.saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Software": None})  # without the version of Matplotlib


def _figure(**options: Any) -> Figure:
    """Create a figure without pyplot, so that the backend of a notebook does not change; imports Matplotlib late."""
    from matplotlib.figure import Figure

    return Figure(**options)
