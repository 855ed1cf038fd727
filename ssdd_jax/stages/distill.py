"""Distillation: run the method's outer steps."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from ssdd_jax import distilled, methods
from ssdd_jax.methods.base import Run
from ssdd_jax.runtime import devices
from ssdd_jax.stages import forms, samples, snapshots
from ssdd_jax.training import loop
from ssdd_jax.training.checkpoints import Checkpoints


def distill(run: Run) -> None:
    """Run the method's outer steps, unless it has none or the set exists."""
    if run.method.step is not None and not (run.work.distilled / distilled.DESCRIPTION).exists():
        state_of(samples.settled(run), run.start())


def state_of(run: Run, start: methods.Source) -> Any:
    """Compute the state after the last outer step, resuming from the newest checkpoint of the run directory.

    Args:
        run: The run.
        start: Data for the method's `init`; see `Run.start`.

    Returns:
        The method's state.
    """
    if run.method.step is None:
        return learn(run, start)
    with Checkpoints(run.work.checkpoints, say=run.say) as checkpoints:
        # The start may take minutes, for example to train the model pool, before the progress bar appears.
        if not checkpoints.steps():
            pool = f", {run.config.pool.size} models trained for up to {run.config.pool.steps:,} steps"
            pooled = methods.METHODS[run.config.method].pooled
            run.say(f"distill: preparing the start{pool if pooled else ''}")
        watch = snapshots.watcher(run, start.preprocessing)
        return learn(run, start, checkpoints=checkpoints, metrics=run.work.metrics, events=run.work.events, watch=watch)


def learn(
    run: Run,
    start: methods.Source,
    *,
    checkpoints: Checkpoints | None = None,
    metrics: pathlib.Path | None = None,
    events: pathlib.Path | None = None,
    watch: Callable[[loop.Progress], None] | None = None,
    on_start: Callable[[Any], None] | None = None,
) -> Any:
    """Run the method's outer steps.

    Args:
        run: The run.
        start: Data for the method's `init`; see `Run.start`.
        checkpoints: Checkpoints to resume from and to save to; None to save nothing.
        metrics: File of JSON lines for the logged scalars; None to log nothing.
        events: Folder of event files for TensorBoard; None to write none.
        watch: Called after each compiled call; see `ssdd_jax.training.loop.run`.
        on_start: Called with the state before the first step, unless training resumes from a checkpoint.

    Returns:
        The method's state after the last step.
    """
    for note in run.method.notes:
        run.say(f"distill: {note}")
    # Subsets and noise: the initial state is the result.
    if run.method.step is None:
        return jax.jit(run.method.init)(run.key("distill"), start)
    training = training_of(run, start)
    source = devices.place(run.problem.mesh, run.source())
    starts = [training.init]
    if forms.measured(run):
        # The items of a step do not depend on its form: one feed serves all.
        trainings = [
            training_of(run._replace(method=forms.method_of(run, form.changes)), start)._replace(feed=training.feed)
            for form in run.method.forms
        ]
        # A resumed run takes the form that its first start has chosen, unless it goes on on another device. The first
        # of several processes decides: all have to measure, or none.
        options = [form.changes for form in run.method.forms]
        known = forms.stored(run) if checkpoints is not None else None
        chosen = int(devices.from_first(options.index(known) if known is not None else -1))
        if chosen < 0:
            stand_in = training_of(run._replace(method=forms.stand_in(run)), start)
            changes, timings = forms.choose(run, trainings, stand_in.init(), source)
            if checkpoints is not None and devices.is_first():
                forms.keep(run.work.folder, changes, timings)
            chosen = options.index(changes)
        training = trainings[chosen]
        starts = [training.init, *(one.init for i, one in enumerate(trainings) if i != chosen)]

    def init() -> Any:
        state = forms.begin(run, starts)
        if on_start is not None:
            on_start(state)
        return state

    return loop.run(
        training._replace(init=init), source, checkpoints=checkpoints, metrics=metrics, events=events, watch=watch
    )


def training_of(run: Run, start: methods.Source) -> loop.Training:
    """Describe the method's outer steps for the training loop.

    Args:
        run: A run whose method has outer steps.
        start: Data for the method's `init`; see `Run.start`.

    Returns:
        The training.
    """
    method, options = run.method, run.config.distill
    mesh, key = run.problem.mesh, run.key("distill")
    assert method.step is not None
    # Shardings are found from abstract values; the state itself is created sharded.
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


def _shardings(run: Run, like: Any) -> Any:
    mesh = run.problem.mesh
    if mesh is None or run.method.spread is None:
        return devices.shardings(mesh, like)
    return run.method.spread(mesh, like)
