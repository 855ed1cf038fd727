"""The report of one run."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from ssdd_jax.report import figures, labels, measures, render, storage, svg
from ssdd_jax.report.pictures import Picture, pictures
from ssdd_jax.report.records import Record

SHOWN_BASES = 64
NAMES = {"teacher": "The teacher's loss", "distill": "The outer loss"}


class Curve(NamedTuple):
    """A chart over steps: its title, what is drawn, and a sentence under it."""

    title: str
    drawing: Markup
    note: str


class Moment(NamedTuple):
    """What a set looked like after some steps."""

    step: int
    images: list[Picture]
    bases: list[Picture]


class StageRow(NamedTuple):
    """What a stage took: seconds with a bar of them, and bytes on the host and on the device where known."""

    name: str
    seconds: float
    bar: Markup
    host: int | None
    device: int | None


def write(path: pathlib.Path, record: Record) -> None:
    """Write the report of a run.

    Args:
        path: The HTML file.
        record: The run; see `read`.

    Raises:
        UserError: If it cannot be written.
    """
    render.write(path, "run.html", content(record))


def content(record: Record) -> dict[str, Any]:
    """What the page of a run says."""
    results, config = record.results, record.config
    found = measures.of_results(results)
    return {
        "title": f"{labels.method(results)} on {results['dataset']}",
        "date": record.calls[-1]["date"] if record.calls else "",
        "facts": facts(record),
        "measures": [measures.table(name, rows, near=NEAR) for name, rows in found.items()],
        "entry_notes": {label: note for label, note in labels.ENTRY_NOTES.items() if _is_in(label, found)},
        "seeds": max((len(row.values) for rows in found.values() for row in rows), default=0),
        "images": pictures(record.images[: figures.SHOWN], "distilled image"),
        "images_count": len(record.images),
        "moments": moments(record),
        "bases": [] if record.bases is None else pictures(record.bases[:SHOWN_BASES], "basis"),
        "bases_count": 0 if record.bases is None else len(record.bases),
        "curves": curves(record.lines, config),
        "storage": storage.of_results(results),
        "stages": stages(results),
        "total": sum(results["seconds"].values()),
        "has_memory": bool(results.get("memory")),
        "has_device": any("device" in held for held in results.get("memory", {}).values()),
        "command": record.calls[-1]["command"] if record.calls else "",
        "calls": list(record.calls),
        "config": sorted(config.items()),
        "learns": any(line["stage"] == "distill" for line in record.lines),
    }


# These are always to be seen in the drawings; an untrained network and the teacher may be far away.
NEAR = tuple(labels.ENTRIES[name] for name in ("random_real", "full_data"))


def _is_in(label: str, found: Mapping[str, Sequence[measures.Entry]]) -> bool:
    return any(row.label == label for rows in found.values() for row in rows)


def facts(record: Record) -> dict[str, str]:
    """What was run, and on what: names and their values."""
    results, config, about = record.results, record.config, record.about
    kept, known = results["storage"], results.get("data", {})
    shape = "x".join(map(str, record.images.shape[1:]))
    found = {"Method": f"{labels.method(results)} ({results['method']})", "Images": str(results["dataset"])}
    if known:
        classes = f", {known['classes']} classes" if known["classes"] else ", no labels"
        found["Images"] += f": {known['images']:,} for training, {known['test_images']:,} for testing{classes}"
    found["Teacher"] = str(about.get("teacher", "")) + (f", {known['features']:,} features" if known else "")
    found["Set"] = f"{len(record.images):,} images of {shape}, {record.pairs:,} pairs of an image and a target"
    found["Storage"] = (
        f"that of N = {kept['N']} images with their features: {kept['numbers']:,} of {kept['budget']:,} numbers"
    )
    learned = [line for line in record.lines if line["stage"] == "distill"]
    if learned:
        found["Steps"] = f"{learned[-1]['step']:,}" + (
            f", against {config['pool.size']} networks that are renewed after {config['pool.steps']:,} steps"
            if "mean_age" in learned[-1]
            else ""
        )
    widths = "-".join(map(str, config["student.widths"]))
    found["Network taught"] = f"ConvNet {widths}, {config['student.norm']} norm"
    found["Seed"] = str(results["seed"])
    found["Machine"] = str(results["machine"])
    call = record.calls[-1] if record.calls else {}
    versions = [f"{name} {call[key]}" for name, key in (("JAX", "jax"), ("Python", "python")) if key in call]
    found["Versions"] = ", ".join([f"ssdd_jax {results['version']}", *versions])
    return found


def moments(record: Record) -> list[Moment]:
    """Images and bases while they were learned."""
    return [
        Moment(
            step,
            pictures(seen["images"], f"after {step} steps, image"),
            pictures(seen["bases"], f"after {step} steps, basis") if "bases" in seen else [],
        )
        for step, seen in record.snapshots.items()
    ]


def curves(lines: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[Curve]:
    """The losses of all trainings, and the ages of the pool."""
    found = []
    for stage in dict.fromkeys(line["stage"] for line in lines):
        mine = [line for line in lines if line["stage"] == stage]
        steps, losses = [line["step"] for line in mine], [line["loss"] for line in mine]
        log = min(losses) > 0
        title = NAMES.get(stage, f"The loss of {stage}")
        words_ = f"{title} from {losses[0]:.4g} at step {steps[0]:,} to {losses[-1]:.4g} at step {steps[-1]:,}"
        drawing = svg.chart({"loss": svg.Series(steps, losses)}, words=words_, log=log)
        scale = " (logarithmic)" if log else ""
        found.append(Curve(title, drawing, f"Mean of each call of the loop{scale}; {losses[-1]:.4g} at the end."))
    aged = [line for line in lines if "mean_age" in line]
    return found + ([_ages(aged, config)] if aged else [])


def _ages(lines: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Curve:
    spread = all("min_age" in line for line in lines)
    low, high = ([line[key] for line in lines] if spread else None for key in ("min_age", "max_age"))
    series = svg.Series([line["step"] for line in lines], [line["mean_age"] for line in lines], low, high)
    renewed = config["pool.steps"]
    said = f"Mean age of the pool, {series.ys[-1]:.0f} steps at the end; models are renewed at {renewed:,}"
    drawing = svg.chart({"age": series}, words=said, level=renewed)
    band = ", and from the youngest to the oldest" if spread else ""
    return Curve("Ages of the pool", drawing, f"Mean{band}, in steps of training; renewed at the dashed line.")


def stages(results: Mapping[str, Any]) -> list[StageRow]:
    """Times and memory by stage, in the order of the run."""
    spent, held = results["seconds"], results.get("memory", {})
    most = max(spent.values(), default=0.0)
    return [
        StageRow(name, value, svg.bar(value, most), held.get(name, {}).get("host"), held.get(name, {}).get("device"))
        for name, value in spent.items()
    ]
