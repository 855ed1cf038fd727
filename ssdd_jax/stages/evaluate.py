"""Evaluation of the distilled set and of the baselines."""

from __future__ import annotations

import os
import platform
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ssdd_jax import distilled
from ssdd_jax.evaluate import entries, sources, store, suite, training
from ssdd_jax.evaluate.protocols import probes
from ssdd_jax.evaluate.protocols import table as protocols
from ssdd_jax.methods.base import Run
from ssdd_jax.models import architectures, precision
from ssdd_jax.runtime import files
from ssdd_jax.runtime.version import __version__
from ssdd_jax.stages import samples
from ssdd_jax.storage import container

# Version of `results.json`. 2: `linear` is the scale-free probe, and untrained networks are calibrated; without the
# number: `linear` is KRR-ST's.
SCHEMA = 2
PROTOCOLS = ("linear", "linear_krr_st", "few_shot", "feature_r2")
MEASURES = ("linear", "linear_krr_st", "few_shot", "feature_r2", "feature_r2_whitened")


def measure(run: Run) -> None:
    """Evaluate the saved set and the baselines; each entry is stored as soon as it is complete."""
    if run.work.results.exists():
        return
    run = samples.settled(run)
    distilled_set, features = distilled.load(run.work.distilled), run.features()
    if features.test is None:
        run.say("evaluate: there are no features of the test images: feature_r2 and the teacher's row are omitted")
    if missing := _missing_labels(run):
        run.say(f"evaluate: {missing}")
    options = run.config.evaluate
    request = suite.Request(
        sets={"distilled": distilled_set},
        counts={"distilled": sources.count_of(distilled_set)},
        models=(student_name(run.config),),
        targets=(sources.as_target(run.config.data.name, run.dataset),),
        protocols=PROTOCOLS,
        references=options.entries[1:],
        source=entries.SourceData(run.dataset, features, run.preprocessing()),
        seeds=options.seeds,
        seed=run.config.seed,
        training=training_of(run.config),
        judging=protocols.Settings(
            linear_krr_st=probes.SgdSettings(options.probe_steps, options.probe_batch_size, options.probe_learning_rate)
        ),
        calibrate=options.calibrate,
    )
    # The store holds finished entries, so that an interrupted evaluation resumes with the next one.
    rows = suite.run(request, store.Store(run.work.evaluation), say=run.say)
    files.write_sealed(run.work.results, _results(run, distilled_set, rows))


def _missing_labels(run: Run) -> str:
    """Explain which measures are left out because there are too few labels; empty if none is."""
    if run.dataset.train_labels is None:
        return "there are no labels: only feature_r2 and feature_r2_whitened are measured"
    few = probes.too_few(run.dataset.train_labels, run.dataset.class_names)
    return few and f"few_shot is left out: {few}"


def student_name(config: ConfigDict) -> str:
    """Return the name of the architecture of a config's student."""
    return architectures.convnet_name(config.student.widths, config.student.norm)


def training_of(config: ConfigDict) -> entries.Settings:
    """Read the training settings of the evaluated networks from a config."""
    options = config.evaluate
    rates, full_rates = (
        tuple(training.Rate(options.learning_rate, decay) for decay in decays)
        for decays in (options.weight_decays, options.full_weight_decays)
    )
    pairs = training.Settings(
        options.steps,
        0,
        options.batch_size,
        rates,
        options.momentum,
        options.cosine,
        precision=precision.resolve(config.precision, jax.default_backend()),
    )
    return entries.Settings(
        pairs=pairs,
        # All images are trained on until the loss has converged, which takes a decaying rate.
        full=pairs._replace(steps=options.full_steps, rates=full_rates, cosine=True),
        own_rate=options.own_rate,
        gigabytes=config.devices.gigabytes,
    )


def _storage(run: Run, distilled_set: distilled.DistilledSet) -> dict[str, Any]:
    """Describe what the set takes of its budget, in numbers or in bytes, by part."""
    storage, folder = run.config.storage, run.work.distilled
    file = (folder / distilled.TENSORS).stat().st_size
    parts = {name: int(np.prod(array.shape)) for name, array in distilled_set.arrays.items()}
    budget = storage.N * (run.problem.image_numbers + run.problem.dim)
    if storage.bytes:
        parts = {name: len(container.code(part)[0]) for name, part in (distilled_set.stored or {}).items()}
        parts["constants, header"] = file - sum(parts.values())
        budget = storage.bytes
    return {
        "numbers": distilled_set.numbers_stored(),
        "unit": "bytes" if storage.bytes else "numbers",
        "used": file if storage.bytes else distilled_set.numbers_stored(),
        "budget": budget,
        "bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        "N": sources.count_of(distilled_set),
        "images": len(distilled_set.images()),
        "parts": parts,
        "precisions": {name: part.precision for name, part in (distilled_set.stored or {}).items()},
    }


def _results(run: Run, distilled_set: distilled.DistilledSet, rows: list[dict[str, Any]]) -> dict[str, Any]:
    config = run.config
    measures: dict[str, dict[str, Any]] = {name: {} for name in MEASURES}
    trained: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["entry"] in config.evaluate.entries:
            values = {key: row[key] for key in ("mean", "std", "seeds", "values")}
            measures[row["measure"]][row["entry"]] = values
            if "weight_decay" in row:
                full = row["entry"] == "full_data"
                steps = config.evaluate.full_steps if full else config.evaluate.steps
                rate = {key: row[key] for key in ("learning_rate", "weight_decay")}
                trained[row["entry"]] = {"steps": steps, **rate, "cosine": full or config.evaluate.cosine}
    # Methods may measure the set in stages of their own, such as SC-DD's post-training.
    by_stage = {
        stage.name: files.read_sealed(run.work.own(stage.name, shared=False) / "results.json")
        for stage in run.method.after
    }
    gate = run.work.gate
    return {
        "schema": SCHEMA,
        **{name: by_entry for name, by_entry in measures.items() if by_entry},
        **by_stage,
        "training": trained,
        "calibrate": config.evaluate.calibrate,
        **({"gate": files.read_sealed(gate)} if gate.exists() else {}),
        "storage": _storage(run, distilled_set),
        "seconds": run.work.read_seconds(),
        "memory": run.work.read_memory(),
        "data": {
            "images": run.problem.images,
            "test_images": 0 if run.dataset.test_images is None else len(run.dataset.test_images),
            "shape": list(run.problem.image_shape),
            "classes": run.problem.classes,
            "features": run.problem.dim,
        },
        "method": config.method,
        "title": run.method.title or config.method,
        "samples": config.distill.samples if run.method.samples else "none",
        "dataset": config.data.name,
        "teacher": distilled_set.about.get("teacher", ""),
        "seed": config.seed,
        "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}",
        "version": __version__,
    }
