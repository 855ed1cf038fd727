"""The stages of a run in their order, each skipped when its output is already there.

data -> teacher -> features -> (the method's own) -> samples -> distill -> approximate -> (the method's own) -> evaluate
-> report
"""

from __future__ import annotations

import os
from typing import Any

import scipy.linalg  # noqa: F401, loads the LAPACK that XLA calls
from ml_collections import ConfigDict
from threadpoolctl import threadpool_limits

from ssdd_jax import config as configuration
from ssdd_jax import data, files, methods, selection
from ssdd_jax.errors import UserError
from ssdd_jax.methods import Stage
from ssdd_jax.models.convnet import check_divisible
from ssdd_jax.stages import distill, evaluation, features, teacher
from ssdd_jax.stages.base import Run, Say
from ssdd_jax.workdir import Workdir

STAGES = ("data", "teacher", "features", "samples", "distill", "approximate", "evaluate", "report")


def stages_of(method: methods.Method, config: ConfigDict, problem: methods.Problem) -> list[Stage]:
    """The stages after the first, `data`, in order."""
    choice = selection.stages(config, problem) if method.samples else ()
    # One of each name: the method's own experts, whose trajectories are kept, serve the choice of samples as well.
    own = {stage.name: stage for stage in (*choice, *method.stages)}
    return [
        Stage("teacher", teacher.train, shared=("data", "teacher")),
        Stage("features", features.compute, shared=("data", "teacher")),
        *own.values(),
        Stage("samples", features.choose),
        Stage("distill", distill.distill),
        Stage("approximate", distill.export),
        *method.after,
        Stage("evaluate", evaluation.measure),
        Stage("report", evaluation.draw),
    ]


def run(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    shared: str | os.PathLike[str] | None = None,
    until: str = "report",
    say: Say = print,
) -> dict[str, Any] | None:
    """Run the stages up to `until` in a work dir, continuing what is there.

    Args:
        config: See `ssdd_jax.config.default`.
        workdir: The run's folder; made if need be.
        shared: A folder for what several runs may use: teacher, features, and a method's own preparations; the run's
            own folder if left out.
        until: The last stage, one of `STAGES` or a stage of the method's own.
        say: Told what a user should know, a line at a time.

    Returns:
        What `results.json` holds, or None if the run ended before the evaluation.

    Raises:
        UserError: For whatever a user can mend.
        ssdd_jax.loop.Stopped: If the run was asked to stop; all is saved.
    """
    configuration.validate(config)
    methods.check(config.method)
    work = Workdir(workdir, shared)
    # LAPACK's own threads stand in XLA's way: a Cholesky factorisation of 400 rows takes 0.5 ms with one thread, and
    # was seen to take 350 ms with two.
    with work.claim(config), threadpool_limits(1, "blas"):
        with work.timed("data"):
            job = prepare(config, work, say)
            stages = stages_of(job.method, config, job.problem)
            names = ["data", *(stage.name for stage in stages)]
            if until not in names:
                raise UserError(f"unknown stage {until!r}: the stages are {', '.join(names)}")
            work.record(config)
        for stage in stages[: names.index(until)]:
            with work.bound(stage.name, config, stage.shared, say=say), work.timed(stage.name):
                stage.run(job)
        return files.read_json(work.results) if work.results.exists() else None


def prepare(config: ConfigDict, work: Workdir, say: Say) -> Run:
    """Load the data and refuse what cannot work before any work is done."""
    dataset = data.load(config.data)
    if dataset.test_images is None:
        raise UserError(f"{config.data.name} has no test images: set config.data.test_fraction above 0")
    count, shape = len(dataset.train_images), dataset.image_shape
    say(f"data: {dataset.name}, {count:,} training and {len(dataset.test_images):,} test images of "
        f"{shape[0]}x{shape[1]}x{shape[2]}")  # fmt: skip
    try:
        check_divisible(shape[:2], len(config.student.widths))
    except ValueError as error:
        raise UserError(f"{error}; set config.data.image_size, or fewer student.widths") from None
    if config.teacher.features:
        dim = features.read_brought(config, dataset).train.shape[1]
    else:
        teacher.trainer_of(config, dataset)
        dim = 8 * config.teacher.width
    problem = methods.Problem(shape, dim, count, dataset.classes, network=not config.teacher.features)
    return Run(config, work, dataset, problem, methods.make(config, problem), say)
