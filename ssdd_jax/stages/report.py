"""Report of a run: figures, and a page with all measurements."""

from __future__ import annotations

from ssdd_jax import distilled, report
from ssdd_jax.methods.base import Run
from ssdd_jax.report import storage
from ssdd_jax.runtime import constraints, files
from ssdd_jax.training import loop


def draw(run: Run) -> None:
    """Draw the figures, update the seconds and memory in `results.json`, and write the page and the versions."""
    distilled_set, results = distilled.load(run.work.distilled), files.read_sealed(run.work.results)
    # The evaluation wrote `results.json` before its own time and memory were final.
    results |= {"seconds": run.work.read_seconds(), "memory": run.work.read_memory()}
    files.write_sealed(run.work.results, results)
    constraints.write(run.work.folder)
    lines = [line for line in loop.read_metrics(run.work.metrics, most=report.POINTS) if line["stage"] == "distill"]
    report.draw(run.work.figures, distilled_set, lines, results)
    report.write(run.work.page, report.read(run.work.folder))
    stored = results["storage"]
    used, unit = storage.used(stored)
    run.say(f"\n{report.table(results)}\n\n{used:,} of {stored['budget']:,} {unit}, "
            f"{stored['bytes']:,} bytes with the description; figures in {run.work.figures}, "
            f"all on one page in {run.work.page}")  # fmt: skip
