"""Runs all stages in order; a stage whose output exists is skipped.

data -> teacher -> features -> gate -> (stages of the method) -> samples -> distill -> approximate
-> (stages of the method) -> evaluate -> report
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from ssdd_jax import config as configuration
from ssdd_jax import data, methods
from ssdd_jax import dry_run as plans
from ssdd_jax.cli import arguments
from ssdd_jax.data import loading
from ssdd_jax.errors import Stopped, UserError
from ssdd_jax.formats.content import require
from ssdd_jax.methods import Stage
from ssdd_jax.methods.base import Run, Say
from ssdd_jax.models.convnet import check_divisible
from ssdd_jax.runtime import devices, files, history, lapack
from ssdd_jax.runtime.inputs import hashes
from ssdd_jax.runtime.workdir import Workdir
from ssdd_jax.stages import approximate, distill, evaluate, features, gate, report, samples, teacher

STAGES = ("data", "teacher", "features", "gate", "samples", "distill", "approximate", "evaluate", "report")


def stages_of(method: methods.Method, config: ConfigDict, problem: methods.Problem) -> list[Stage]:
    """Return the stages after `data`, in order."""
    teacher_parts = ("data", "teacher", "precision")
    return [
        Stage(
            "teacher",
            teacher.train,
            shared=teacher_parts,
            together=True,
            output="teacher/teacher.json",
            lower="config.teacher.batch_size or config.teacher.width",
        ),
        Stage(
            "features",
            features.compute,
            shared=teacher_parts,
            together=True,
            output="features/features.json",
            lower="config.teacher.input_size" if config.teacher.source else "config.data.image_size",
        ),
        *([Stage("gate", gate.check, output="gate.json")] if problem.classes and config.teacher.gate != "off" else []),
        *samples.preparations(config, problem, method),
        Stage("samples", samples.choose, output="samples/rows.npy"),
        Stage(
            "distill",
            distill.distill,
            together=True,
            output="distilled/set.json",
            lower=methods.METHODS[config.method].lower or "config.distill.batch_size",
        ),
        Stage("approximate", approximate.export, together=True, output="distilled/set.json"),
        *method.after,
        Stage(
            "evaluate",
            evaluate.measure,
            output="results.json",
            lower="config.evaluate.batch_size, config.student.widths or config.data.train_limit",
        ),
        Stage("report", report.draw),
    ]


def run(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    shared: str | os.PathLike[str] | None = None,
    until: str = "report",
    tensorboard: bool = False,
    command: str = "",
    say: Say = print,
    announce: Callable[[plans.Plan], None] | None = None,
) -> dict[str, Any] | None:
    """Run the stages up to `until` in a work dir, resuming from its contents.

    Args:
        config: See `ssdd_jax.config.default`.
        workdir: The run directory; created if it does not exist.
        shared: A folder for outputs that several runs may use: the teacher, its features, and a method's preparations.
            Default: the run directory.
        until: The last stage, one of `STAGES` or a stage of the method.
        tensorboard: Whether to write event files for TensorBoard beside `metrics.jsonl`.
        command: The command line, for the report. Default: an equivalent command.
        say: Called with each message for the user.
        announce: Called with the plan before a new run begins. Without it nothing is measured.

    Returns:
        The contents of `results.json`, or None if the run ended before the evaluation.

    Raises:
        UserError: For every mistake that the user can correct.
        ssdd_jax.training.loop.Stopped: On SIGTERM or SIGINT; the state is saved.
    """
    configuration.validate(config)
    config = configuration.resolved(config)
    methods.check(config.method)
    if tensorboard:
        require("tensorboardX", "tensorboard", "--tensorboard")
    work = Workdir(workdir, shared, tensorboard=tensorboard)
    say = say if devices.is_first() else _nothing
    with contextlib.ExitStack() as held, lapack.single_threaded():
        # Locks the folder and checks that its earlier runs had this config; an error on one process stops all.
        with devices.agreed():
            held.enter_context(work.claim(config))
        with work.timed("data"):
            settings = _data_settings(config, work)
            if jax.process_count() > 1 and settings.cache_dir:
                loading.decode_together(settings)
            job = _in_turn(lambda: prepare(config, work, say))
            stages = _stages_until(until, job)
            # A resumed run has announced its plan before.
            new = not work.config.exists()
        # The folder is bound to a config that can run: settings that are too large can be lowered in the same folder.
        with devices.agreed():
            if config.devices.preflight != "off" and devices.is_first():
                _preflight(job, stages)
        work.record(config)
        with devices.agreed():
            history.note(work.calls, command or arguments.equivalent(config, workdir, shared))
        if new and announce is not None:
            _announce(announce, job, stages)
        for stage in stages:
            _do(stage, job)
        return files.read_sealed(work.results) if work.results.exists() else None


def _stages_until(until: str, job: Run) -> list[Stage]:
    """Return the stages after `data` up to the named one.

    Raises:
        UserError: If there is no stage of that name.
    """
    stages = stages_of(job.method, job.config, job.problem)
    names = ["data", *(stage.name for stage in stages)]
    if until not in names:
        raise UserError(f"unknown stage {until!r}: the stages are {', '.join(names)}")
    return stages[: names.index(until)]


def _announce(announce: Callable[[plans.Plan], None], job: Run, stages: list[Stage]) -> None:
    """Announce the plan. A failure of the measurement is logged and does not stop the run."""
    try:
        announce(plans.make(job, stages))
    except Stopped:
        raise
    except Exception as error:
        job.say(f"time and memory cannot be predicted: {' '.join(str(error).split())[:200] or type(error).__name__}")


def _preflight(job: Run, stages: list[Stage]) -> None:
    """Report stages that need more memory than the device has, before hours of work.

    A prediction that fails is logged and does not stop the run.

    Raises:
        UserError: If XLA's estimate exceeds the memory of an accelerator. On a CPU the system may swap.
    """
    try:
        found = plans.shortages(job, stages)
    except Stopped:
        raise
    except Exception as error:
        job.say(f"memory cannot be predicted: {' '.join(str(error).split())[:200] or type(error).__name__}")
        return
    refused = jax.default_backend() != "cpu" and job.config.devices.preflight == "refuse"
    for shortage in found:
        if shortage.exact and refused:
            raise UserError(f"{shortage.words}, or set config.devices.preflight=warn to try")
        job.say(f"memory: {shortage.words}")


def _nothing(line: str) -> None:
    """Discard a message: only the first of several processes logs."""


def plan(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    shared: str | os.PathLike[str] | None = None,
    until: str = "report",
    say: Say = _nothing,
) -> plans.Plan:
    """Plan a run: describe its stages and measure their time and memory on this machine; no result is written.

    Args:
        config: See `ssdd_jax.config.default`.
        workdir: The run directory, which need not exist.
        shared: As for `run`.
        until: The last stage.
        say: Called with each message about the data and the teacher, as in a run.

    Returns:
        The plan of the stages up to `until`.

    Raises:
        UserError: For every error that `run` would raise before its first stage.
    """
    configuration.validate(config)
    config = configuration.resolved(config)
    methods.check(config.method)
    work = Workdir(workdir, shared)
    work.check(config)
    with lapack.single_threaded(), plans.nothing_kept():
        # A plan opens the folders of a run without locking or writing them.
        began = time.monotonic()
        job = prepare(config, work, say)
        seconds = time.monotonic() - began
        stages = _stages_until(until, job)
        # All stages are checked, also those after `until`: they may share outputs with another config.
        for stage in stages_of(job.method, config, job.problem):
            if work.shared != work.folder and stage.shared:
                work.agrees(stage.name, config, stage.shared)
        return plans.make(job, stages, data_seconds=seconds)


def _in_turn(work: Callable[[], Run]) -> Run:
    """Call `work` on the first process and then on the others, which find the cache that it has filled."""
    job = None
    with devices.agreed():
        if devices.is_first():
            job = work()
    with devices.agreed():
        return job or work()


def _do(stage: Stage, job: Run) -> None:
    """Run a stage on all processes if it is collective, otherwise on the first; all wait for its end."""
    with contextlib.ExitStack() as bound:
        with devices.agreed():
            bound.enter_context(job.work.bound(stage.name, job.config, stage.shared, say=job.say))
        with job.work.timed(stage.name):
            # A collective stage runs outside of `agreed`, because its own collectives keep the processes in step.
            if stage.together:
                stage.run(job)
            with devices.agreed():
                if not stage.together and devices.is_first():
                    stage.run(job)


def _data_settings(config: ConfigDict, work: Workdir) -> ConfigDict:
    """Return the settings of the data; several processes decode them together, into the folder that they share."""
    if jax.process_count() == 1 or config.data.cache_dir or not loading.is_decoded(config.data.name):
        return config.data
    settings = config.data.copy_and_resolve_references()
    settings.cache_dir = str(work.shared / "images")
    return settings


def prepare(config: ConfigDict, work: Workdir, say: Say) -> Run:
    """Load the data, and raise errors for settings that cannot work before any stage runs."""
    # Everything that can fail for reasons of the config or the data fails here, not hours later.
    loaded = data.load(_data_settings(config, work))
    dataset = loaded.with_labels_that_tell()
    dataset.check_varied()
    if dataset.test_images is None:
        raise UserError(f"{config.data.name} has no test images: set config.data.test_fraction above 0")
    count, shape = len(dataset.train_images), dataset.image_shape
    say(f"data: {dataset.name}, {count:,} training and {len(dataset.test_images):,} test images of "
        f"{shape[0]}x{shape[1]}x{shape[2]}")  # fmt: skip
    for note in dataset.notes:
        say(f"data: {note}")
    try:
        check_divisible(shape[:2], len(config.student.widths))
    except ValueError as error:
        raise UserError(f"{error}; set config.data.image_size, or fewer student.widths") from None
    # The feature length of a teacher that is not trained yet follows from its config or its files.
    brought = features.read_brought(config, dataset) if config.teacher.features else None
    known = (
        teacher.known(config, work, dataset, say) if brought is None else teacher.Known(brought.train.shape[1], False)
    )
    work.check_inputs(
        hashes(
            training_images=dataset.train_images,
            test_images=dataset.test_images,
            labels=(loaded.train_labels, loaded.test_labels),
            features=brought and (brought.train, brought.test, *brought.views.values()),
            weights=known.weights,
        )
    )
    mesh = methods.mesh_of(config)
    if mesh is not None:
        say(devices.words(mesh))
    # `batch_norm` is False for precomputed features, which methods that need a network reject.
    network = brought is None
    problem = methods.Problem(
        shape,
        known.dim,
        count,
        dataset.classes,
        network=network,
        batch_norm=known.batch_norm,
        mesh=mesh,
        empty_class=dataset.empty_class(),
    )
    config = methods.counted(config, problem)
    method = methods.make(config, problem)
    if brought is not None:
        config = features.only_known_views(config, method, brought, say)
        method = methods.make(config, problem)
    return Run(config, work, dataset, problem, method, say)
