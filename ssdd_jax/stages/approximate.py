"""Export of the distilled set: approximation networks or soft labels, and the description that is stored with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from ssdd_jax import config as configuration
from ssdd_jax import distilled, methods
from ssdd_jax.errors import UserError
from ssdd_jax.methods import budget
from ssdd_jax.methods.base import Run
from ssdd_jax.runtime import devices, inputs
from ssdd_jax.runtime.version import __version__
from ssdd_jax.runtime.workdir import fingerprint
from ssdd_jax.stages import distill, samples, teacher


def export(run: Run) -> None:
    """Complete the set, for example by its approximation networks, and write it; skipped if it exists."""
    if (run.work.distilled / distilled.DESCRIPTION).exists():
        return
    run = samples.settled(run)
    start = run.start()
    # Every process takes part in the distillation; the export needs only one.
    state = distill.state_of(run, start)
    if run.method.step is not None:
        state = devices.local(run.problem.mesh, state)
    if not devices.is_first():
        return
    distilled_set = set_of(run, state, start)
    lost = distilled_set.about.get("approximation_error", {})
    if lost:
        shares = ", ".join(f"{view} {100 * share:.1f} %" for view, share in lost.items())
        run.say(f"approximate: energy of the targets that the networks lose: {shares}")
    size = distilled_set.save(run.work.distilled)
    run.say(f"approximate: {distilled_set.numbers_stored():,} numbers, {size:,} bytes in {run.work.distilled}")


def set_of(run: Run, state: Any, start: methods.Source) -> distilled.DistilledSet:
    """Export a state as a distilled set with the description of its origin.

    Args:
        run: The run.
        state: The method's state, on this process's first device.
        start: Data for the method's `export`; see `Run.start`.

    Returns:
        The set.

    Raises:
        UserError: If a part of it is not finite.
    """
    distilled_set = run.method.export(run.key("approximate"), state, start)
    about = {
        "method": run.config.method,
        "title": run.method.title or run.config.method,
        "dataset": inputs.name_of_data(run.config.data.name),
        "class_names": list(run.dataset.class_names),
        "teacher": teacher.words(run),
        "seed": run.config.seed,
        "config": inputs.without_folders(configuration.flatten(run.config)),
        "images": fingerprint(run.dataset.train_images),
        # Which of the training images the method started from: an evaluation holds out others.
        "samples": run.samples().rows.tolist() if run.method.samples else [],
        "version": __version__,
        "jax": jax.__version__,
    }
    if run.config.storage.bytes:
        drawn = np.random.default_rng(0).permutation(run.problem.images)[: samples.PILOT]
        # Not in the order of the data, which may be sorted by class: the first few of large images are measured.
        about["random_images"] = budget.random_images(run.config, run.problem, run.dataset.train_images[drawn])
    # A set with NaN would otherwise fail much later, in the evaluation.
    not_finite = [name for name, array in distilled_set.arrays.items() if not np.isfinite(np.asarray(array)).all()]
    if not_finite:
        raise UserError(f"approximate: {', '.join(not_finite)} is not finite: {run.method.advice}")
    return dataclasses.replace(distilled_set, about={**about, **distilled_set.about})
