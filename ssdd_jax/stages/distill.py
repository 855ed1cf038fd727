"""The distillation, and the set that comes of it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

import ssdd_jax
from ssdd_jax import config as configuration
from ssdd_jax import distilled, methods
from ssdd_jax.errors import UserError
from ssdd_jax.methods.run import Run
from ssdd_jax.runtime import devices
from ssdd_jax.runtime.workdir import fingerprint
from ssdd_jax.stages import snapshots, teacher
from ssdd_jax.training import loop
from ssdd_jax.training.checkpoints import Checkpoints


def distill(run: Run) -> None:
    """Run the method's outer steps, unless it has none or the set is there."""
    if run.method.step is not None and not (run.work.distilled / distilled.DESCRIPTION).exists():
        _state(run, run.start())


def training_of(run: Run, start: methods.Source) -> loop.Training:
    """The method's outer steps, of which there are some, for the loop; `start` is what `run.start` gives."""
    method, options = run.method, run.config.distill
    mesh, key = run.problem.mesh, run.key("distill")
    assert method.step is not None
    shardings = _shardings(run, jax.eval_shape(method.init, key, start))
    init = functools.partial(jax.jit(method.init, out_shardings=shardings), *devices.place(mesh, (key, start)))
    return loop.Training(
        name="distill",
        init=init,
        step=method.step,
        steps=method.steps,
        per_call=options.steps_per_call,
        save_every=options.save_every,
        advice=method.advice,
        feed=method.feed(run) if method.feed else None,
        shardings=shardings,
    )


def _state(run: Run, start: methods.Source) -> Any:
    if run.method.step is None:
        return jax.jit(run.method.init)(run.key("distill"), start)
    training = training_of(run, start)
    with Checkpoints(run.work.checkpoints, say=run.say) as checkpoints:
        if not checkpoints.steps():
            run.say("distill: preparing the start")
        source = devices.place(run.problem.mesh, run.source())
        watch = snapshots.watcher(run, start.preprocessing)
        return loop.run(training, source, checkpoints=checkpoints, metrics=run.work.metrics, watch=watch)


def _shardings(run: Run, like: Any) -> Any:
    mesh = run.problem.mesh
    if mesh is None or run.method.spread is None:
        return devices.shardings(mesh, like)
    return run.method.spread(mesh, like)


def export(run: Run) -> None:
    """Fit what remains to be fitted and write the set, unless it is there."""
    if (run.work.distilled / distilled.DESCRIPTION).exists():
        return
    start = run.start()
    state = _state(run, start)
    if run.method.step is not None:
        state = devices.local(run.problem.mesh, state)
    if not devices.is_first():
        return
    found = made(run, state, start)
    size = found.save(run.work.distilled)
    run.say(f"approximate: {found.numbers_stored():,} numbers, {size:,} bytes in {run.work.distilled}")


def made(run: Run, state: Any, start: methods.Source) -> distilled.DistilledSet:
    """The set that a state gives, and what made it; the state is on this process's first device.

    Raises:
        UserError: If a part of it is not finite.
    """
    found = run.method.export(run.key("approximate"), state, start)
    about = {
        "method": run.config.method,
        "dataset": run.config.data.name,
        "class_names": list(run.dataset.class_names),
        "teacher": teacher.words(run),
        "seed": run.config.seed,
        "config": configuration.flatten(run.config),
        "images": fingerprint(run.dataset.train_images),
        "version": ssdd_jax.__version__,
        "jax": jax.__version__,
    }
    bad = [name for name, array in found.arrays.items() if not np.isfinite(np.asarray(array)).all()]
    if bad:
        raise UserError(f"approximate: {', '.join(bad)} is not finite: {run.method.advice}")
    return dataclasses.replace(found, about=about)
