"""The evaluation of a run's set, and the report of it."""

from __future__ import annotations

import os
import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import ssdd_jax
from ssdd_jax import distilled, evaluate, features, files, inner, loop, preprocess, probes, report
from ssdd_jax.stages.base import Run


def measure(run: Run) -> None:
    """Evaluate the set as saved, and the baselines; each entry is kept as soon as it is there."""
    if run.work.results.exists():
        return
    found = distilled.load(run.work.distilled)
    benchmark = _benchmark(run, run.features(), run.preprocessing())
    settings = settings_of(run.config)
    if benchmark.test_features is None:
        run.say("evaluate: no features of the test images were brought: without feature_r2 and the teacher's row")
    measured: dict[str, dict[str, Any]] = {}
    for entry in evaluate.entries(found, benchmark, run.config.storage.N, settings):
        if entry.name not in run.config.evaluate.entries:
            continue
        path = run.work.evaluation / f"{entry.name}.json"
        if not path.exists():
            files.write_json(path, evaluate.evaluate(entry, benchmark, seed=run.config.seed, settings=settings))
        measured[entry.name] = files.read_json(path)
        words = ", ".join(f"{name} {row['mean']:.4g} ± {row['std']:.2g}" for name, row in measured[entry.name].items())
        run.say(f"evaluate: {entry.name}: {words or 'nothing to measure'}")
    files.write_json(run.work.results, _results(run, found, measured))


def settings_of(config: ConfigDict) -> evaluate.Settings:
    """How networks are trained and probed, out of a config."""
    options = config.evaluate
    return evaluate.Settings(
        seeds=options.seeds,
        widths=tuple(config.student.widths),
        norm=config.student.norm,
        epochs=options.epochs,
        full_epochs=options.full_epochs,
        batch_size=options.batch_size,
        inner=inner.Settings(options.learning_rate, options.momentum, options.weight_decay),
        own_rate=options.own_rate,
        probe=probes.Settings(options.probe_steps, options.probe_batch_size, options.probe_learning_rate),
    )


def _benchmark(run: Run, found: features.Features, constants: preprocess.Preprocessing) -> evaluate.Benchmark:
    def device(array: np.ndarray | None) -> jax.Array | None:
        return None if array is None else jnp.asarray(array)

    assert run.dataset.test_images is not None
    return evaluate.Benchmark(
        train_images=jnp.asarray(run.dataset.train_images),
        train_features=jnp.asarray(found.train),
        test_images=jnp.asarray(run.dataset.test_images),
        test_features=device(found.test),
        train_labels=device(run.dataset.train_labels),
        test_labels=device(run.dataset.test_labels),
        classes=run.dataset.classes,
        preprocessing=constants,
    )


def _results(run: Run, found: distilled.DistilledSet, measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    config = run.config
    measures = {
        measure: {name: rows[measure] for name, rows in measured.items() if measure in rows}
        for measure in ("linear", "few_shot", "feature_r2")
    }
    own = {
        stage.name: files.read_json(run.work.own(stage.name, shared=False) / "results.json")
        for stage in run.method.after
    }
    size = sum(file.stat().st_size for file in run.work.distilled.iterdir() if file.is_file())
    return {
        **{name: rows for name, rows in measures.items() if rows},
        **own,
        "storage": {
            "numbers": found.numbers_stored(),
            "budget": config.storage.N * (run.problem.image_numbers + run.problem.dim),
            "bytes": size,
            "N": config.storage.N,
            "images": len(found.images()),
            "parts": {name: int(np.prod(array.shape)) for name, array in found.arrays.items()},
        },
        "seconds": run.work.read_seconds(),
        "method": config.method,
        "samples": config.distill.samples if run.method.samples else "none",
        "dataset": config.data.name,
        "seed": config.seed,
        "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}",
        "version": ssdd_jax.__version__,
    }


def draw(run: Run) -> None:
    """Draw the figures, and bring the seconds in `results.json` up to date."""
    found, results = distilled.load(run.work.distilled), files.read_json(run.work.results)
    results["seconds"] = run.work.read_seconds()
    files.write_json(run.work.results, results)
    lines = [line for line in loop.read_metrics(run.work.metrics) if line["stage"] == "distill"]
    report.draw(run.work.figures, found, lines, results)
    storage = results["storage"]
    run.say(f"\n{report.table(results)}\n\n{storage['numbers']:,} of {storage['budget']:,} numbers, "
            f"{storage['bytes']:,} bytes; figures in {run.work.figures}")  # fmt: skip
