"""The export of a run's set: approximation networks or soft labels, and the description that is stored with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from ssdd_jax import config as configuration
from ssdd_jax import distilled, methods
from ssdd_jax.errors import UserError
from ssdd_jax.methods.base import Run
from ssdd_jax.runtime import devices
from ssdd_jax.runtime.version import __version__
from ssdd_jax.runtime.workdir import fingerprint
from ssdd_jax.stages import distill, teacher


def export(run: Run) -> None:
    """Fit what remains to be fitted and write the set, unless it is there."""
    if (run.work.distilled / distilled.DESCRIPTION).exists():
        return
    start = run.start()
    state = distill.state_of(run, start)
    if run.method.step is not None:
        state = devices.local(run.problem.mesh, state)
    if not devices.is_first():
        return
    distilled_set = set_of(run, state, start)
    size = distilled_set.save(run.work.distilled)
    run.say(f"approximate: {distilled_set.numbers_stored():,} numbers, {size:,} bytes in {run.work.distilled}")


def set_of(run: Run, state: Any, start: methods.Source) -> distilled.DistilledSet:
    """The set that a state gives, and what made it; the state is on this process's first device.

    Raises:
        UserError: If a part of it is not finite.
    """
    distilled_set = run.method.export(run.key("approximate"), state, start)
    about = {
        "method": run.config.method,
        "dataset": run.config.data.name,
        "class_names": list(run.dataset.class_names),
        "teacher": teacher.words(run),
        "seed": run.config.seed,
        "config": configuration.flatten(run.config),
        "images": fingerprint(run.dataset.train_images),
        "version": __version__,
        "jax": jax.__version__,
    }
    bad = [name for name, array in distilled_set.arrays.items() if not np.isfinite(np.asarray(array)).all()]
    if bad:
        raise UserError(f"approximate: {', '.join(bad)} is not finite: {run.method.advice}")
    return dataclasses.replace(distilled_set, about=about)
