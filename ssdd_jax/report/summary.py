"""Results of a run as Markdown, for the card of an uploaded set: the protocol and the table."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from ssdd_jax.formats.card import Evaluation
from ssdd_jax.report import figures, labels, statistics
from ssdd_jax.report.records import upgrade
from ssdd_jax.runtime import files

RESULTS = "results.json"


def of_folder(folder: pathlib.Path, about: Mapping[str, Any]) -> Evaluation:
    """Describe the method and the results in a run's folder; both are empty if there are none.

    Args:
        folder: The run's folder, which holds the set as `distilled`.
        about: Provenance of the set, as in `DistilledSet.about`.

    Returns:
        What they add to the card of the set.

    Raises:
        UserError: If `results.json` is damaged.
    """
    path = folder / RESULTS
    if not path.is_file():
        return Evaluation()
    results = upgrade(files.read_sealed(path))
    return Evaluation(labels.method(results), markdown(results, about))


def markdown(results: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Describe the protocol of an evaluation, and its results as a table.

    Args:
        results: Content of `results.json`, see `records.upgrade`.
        about: Provenance of the set; its config names the student.

    Returns:
        Markdown.
    """
    data, config = results.get("data", {}), about.get("config", {})
    images = f"{data['test_images']:,} test images" if data else "the test images"
    widths = "-".join(map(str, config.get("student.widths", ())))
    student = f"a ConvNet {widths} ({config['student.norm']} norm)" if widths else "a network"
    measured = [name for name in labels.TITLES if results.get(name)]
    seeds = max(row["seeds"] for row in results[measured[0]].values()) if measured else 0
    rows = list(dict.fromkeys(name for measure in measured for name in results[measure]))
    lines = [
        f"Measured with ssdd_jax {results['version']} on {images} of {results['dataset']}, "
        f"{statistics.over(seeds)}: {student} is trained from scratch by mean squared error, then frozen.",
        "",
        figures.table(results),
        "",
    ]
    notes = {labels.entry(name): labels.ENTRY_NOTES.get(labels.entry(name)) for name in rows}
    lines += [f"- {name}: {note}" for name, note in notes.items() if note]
    for name, row in results.get("training", {}).items():
        lines.append(f"- SGD for {labels.entry(name)}: {labels.sgd(row)}, chosen without the test images")
    if "calibrate" in results:
        lines.append(f"- batch norm: {labels.CALIBRATED[results['calibrate']]}")
    return "\n".join(lines)
