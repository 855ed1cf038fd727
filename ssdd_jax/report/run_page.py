"""The HTML page of one run."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from ssdd_jax.report import figures, labels, measures, render, statistics, storage, svg
from ssdd_jax.report.pictures import Picture, pictures
from ssdd_jax.report.records import Record

SHOWN_BASES = 64
NAMES = {"teacher": "Teacher loss", "distill": "Outer loss"}


class Curve(NamedTuple):
    """A chart over steps: its title, the drawing, and a note under it."""

    title: str
    drawing: Markup
    note: str


class Moment(NamedTuple):
    """Images and bases of a set after some steps of the distillation; `bases` is empty if there are none."""

    step: int
    images: list[Picture]
    bases: list[Picture]


class StageRow(NamedTuple):
    """Cost of a stage: seconds, their bar, and peak bytes on the host and on the device, None if unknown."""

    name: str
    seconds: float
    bar: Markup
    host: int | None
    device: int | None


def write(path: pathlib.Path, record: Record) -> None:
    """Write the page of a run.

    Args:
        path: The HTML file.
        record: The run; see `read`.

    Raises:
        UserError: If the file cannot be written.
    """
    render.write(path, "run.html", content(record))


def content(record: Record) -> dict[str, Any]:
    """Collect the variables of the template `run.html`."""
    results, config = record.results, record.config
    measured = measures.of_results(results)
    # Values that a run lacks are empty; the template omits them or gives the reason.
    return {
        "title": f"{labels.method(results)} on {results['dataset']}{labels.teacher(record.about)}",
        "date": record.calls[-1]["date"] if record.calls else "",
        "facts": facts(record),
        "measures": [measures.table(name, rows, near=NEAR) for name, rows in measured.items()],
        "entry_notes": {label: note for label, note in labels.ENTRY_NOTES.items() if _is_in(label, measured)},
        "over": statistics.over(max((len(row.values) for rows in measured.values() for row in rows), default=0)),
        "images": pictures(record.images[: figures.SHOWN], "distilled image"),
        "images_count": len(record.images),
        "moments": moments(record),
        "bases": [] if record.bases is None else pictures(record.bases[:SHOWN_BASES], "basis"),
        "bases_count": 0 if record.bases is None else len(record.bases),
        "stored": [] if record.stored is None else pictures(record.stored[:SHOWN_BASES], "stored image"),
        "stored_count": 0 if record.stored is None else len(record.stored),
        "curves": curves(record.lines, config),
        "storage": storage.of_results(results),
        "stages": stages(results),
        "total": sum(results["seconds"].values()),
        "has_memory": bool(results.get("memory")),
        "has_device": any("device" in peak for peak in results.get("memory", {}).values()),
        "command": record.calls[-1]["command"] if record.calls else "",
        "calls": list(record.calls),
        "config": sorted(config.items()),
        "learns": any(line["stage"] == "distill" for line in record.lines),
    }


# Baselines inside of the axis; an untrained network and the teacher may be far away.
NEAR = tuple(labels.entry(name) for name in ("random_real", "full_data"))


def _is_in(label: str, measured: Mapping[str, Sequence[measures.Entry]]) -> bool:
    return any(row.label == label for rows in measured.values() for row in rows)


def _precisions(by_array: Mapping[str, str]) -> dict[str, str]:
    """Return the precisions of images and of targets."""
    names = {"image_bases": "images", "images": "images", "feature_bases": "targets", "targets": "targets"}
    return {names[name]: precision for name, precision in by_array.items() if name in names}


def facts(record: Record) -> dict[str, str]:
    """Summarise a run: method, data, teacher, storage and machine, by display name."""
    results, config, about = record.results, record.config, record.about
    stored, data = results["storage"], results.get("data", {})
    shape = "x".join(map(str, record.images.shape[1:]))
    summary = {"Method": f"{labels.method(results)} ({results['method']})", "Data": str(results["dataset"])}
    if data:
        classes = f", {data['classes']} classes" if data["classes"] else ", no labels"
        summary["Data"] += f": {data['images']:,} for training, {data['test_images']:,} for testing{classes}"
    summary["Teacher"] = str(about.get("teacher", "")) + (f", {data['features']:,} features" if data else "")
    summary["Set"] = f"{len(record.images):,} images of {shape}, {record.pairs:,} pairs of an image and a target"
    if stored.get("unit") == "bytes":
        kinds = ", ".join(f"{part} in {name}" for part, name in _precisions(stored["precisions"]).items())
        summary["Storage"] = f"{stored['used']:,} of {stored['budget']:,} bytes: {kinds}"
    else:
        numbers = f"{stored['numbers']:,} of {stored['budget']:,} numbers"
        summary["Storage"] = f"{numbers}, the budget of N = {stored['N']} images with features"
    # Methods that select a set have no steps.
    learned = [line for line in record.lines if line["stage"] == "distill"]
    if learned:
        summary["Steps"] = f"{learned[-1]['step']:,}" + (
            f", with a pool of {config['pool.size']} networks, each renewed after {config['pool.steps']:,} steps"
            if "mean_age" in learned[-1]
            else ""
        )
    widths = "-".join(map(str, config["student.widths"]))
    summary["Student"] = f"ConvNet {widths}, {config['student.norm']} norm"
    summary |= _evaluation(results)
    summary["Seed"] = str(results["seed"])
    summary["Machine"] = str(results["machine"])
    # Versions of the last call: a run may have been continued with others.
    call = record.calls[-1] if record.calls else {}
    versions = [f"{name} {call[key]}" for name, key in (("JAX", "jax"), ("Python", "python")) if key in call]
    summary["Versions"] = ", ".join([f"ssdd_jax {results['version']}", *versions])
    return summary


def _evaluation(results: Mapping[str, Any]) -> dict[str, str]:
    """Summarise how networks were trained and evaluated, as far as the results state it."""
    summary = {}
    if results.get("training"):
        summary["Evaluated networks"] = "; ".join(
            f"{labels.entry(name)}: {labels.sgd(row)}" for name, row in results["training"].items()
        )
    if "calibrate" in results:
        summary["Batch norm"] = labels.CALIBRATED[results["calibrate"]]
    if "gate" in results:
        gate = results["gate"]
        summary["Teacher check"] = (
            f"{gate['teacher']:.1f} % with a linear probe on {gate['images']:,} training images, "
            f"an untrained student {gate['untrained']:.1f} %"
        )
    return summary


def moments(record: Record) -> list[Moment]:
    """Return the snapshots of images and bases during the distillation, in order."""
    return [
        Moment(
            step,
            pictures(snapshot["images"], f"after {step} steps, image"),
            pictures(snapshot["bases"], f"after {step} steps, basis") if "bases" in snapshot else [],
        )
        for step, snapshot in record.snapshots.items()
    ]


def curves(lines: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[Curve]:
    """Draw the losses of all stages, and the ages of the models in the pool.

    Args:
        lines: Lines of `metrics.jsonl`.
        config: Content of `config.json`.
    """
    charts = []
    for stage in dict.fromkeys(line["stage"] for line in lines):
        of_stage = [line for line in lines if line["stage"] == stage]
        steps, losses = [line["step"] for line in of_stage], [line["loss"] for line in of_stage]
        log = min(losses) > 0  # a logarithmic axis has no zero or negative values
        title = NAMES.get(stage, f"Loss of {stage}")
        words_ = f"{title} from {losses[0]:.4g} at step {steps[0]:,} to {losses[-1]:.4g} at step {steps[-1]:,}"
        drawing = svg.chart({"loss": svg.Series(steps, losses)}, words=words_, log=log)
        scale = " (logarithmic)" if log else ""
        charts.append(
            Curve(title, drawing, f"Mean per call of the training loop{scale}; final value {losses[-1]:.4g}.")
        )
    pool_lines = [line for line in lines if "mean_age" in line]
    return charts + ([_ages(pool_lines, config)] if pool_lines else [])


def _ages(lines: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Curve:
    # The band needs the extremes in every line; otherwise only the mean is drawn.
    spread = all("min_age" in line for line in lines)
    low, high = ([line[key] for line in lines] if spread else None for key in ("min_age", "max_age"))
    series = svg.Series([line["step"] for line in lines], [line["mean_age"] for line in lines], low, high)
    renewed = config["pool.steps"]
    words = f"Mean age of the pool, {series.ys[-1]:.0f} steps at the end; models are renewed at {renewed:,} steps"
    drawing = svg.chart({"age": series}, words=words, level=renewed)
    band = " and range" if spread else ""
    return Curve("Age of the pool", drawing, f"Mean{band} in training steps; models are renewed at the dashed line.")


def stages(results: Mapping[str, Any]) -> list[StageRow]:
    """Return the time and memory of each stage, in the order of the run."""
    times, peaks = results["seconds"], results.get("memory", {})
    longest = max(times.values(), default=0.0)
    return [
        StageRow(
            name, value, svg.bar(value, longest), peaks.get(name, {}).get("host"), peaks.get(name, {}).get("device")
        )
        for name, value in times.items()
    ]
