"""Costs of the stages before the evaluation on this machine, measured on a few steps each."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ssdd_jax.dry_run.contents import newest
from ssdd_jax.dry_run.standins import StandIns
from ssdd_jax.dry_run.timing import Cost, measure, once, steps
from ssdd_jax.runtime import devices
from ssdd_jax.stages import distill, samples
from ssdd_jax.stages import teacher as teacher_stage
from ssdd_jax.training import loop

# Number of features that k-means is timed on.
KMEANS_ROWS = 4000


def of_teacher(stand: StandIns) -> list[Cost]:
    """Measure the teacher's training; converting a teacher takes a negligible time."""
    if stand.run.config.teacher.source:
        return []
    run, options = stand.run, stand.run.config.teacher
    mesh, trainer = run.problem.mesh, stand.trainer
    initializer, _ = stand.teacher
    state = initializer.call()
    resident = run.resident(features=False)
    # One batch over and over: drawing it, or reading it from the host, is not part of the cost.
    rows = np.arange(options.batch_size, dtype=np.int32) % run.problem.images
    item = rows if resident else run.dataset.train_images[rows]
    training = loop.Training(
        name="teacher",
        init=initializer.call,
        step=teacher_stage.step_of(trainer, resident=resident),
        steps=trainer.steps,
        per_call=options.steps_per_call,
        save_every=options.save_every,
        advice="",
        feed=lambda done, count: np.broadcast_to(item, (count, *item.shape)),
        shardings=devices.shardings(mesh, state),
    )
    images = devices.place(mesh, jnp.asarray(run.dataset.train_images)) if resident else None
    left = trainer.steps - newest(run.work.teacher / "checkpoints")
    cost, _ = steps(training, state, images, left=left)
    return [cost._replace(compiling=cost.compiling + initializer.compiling)]


def of_features(stand: StandIns) -> list[Cost]:
    """Measure the extraction of all features; no cost if they are precomputed."""
    if stand.backbone is None:
        return []
    assert stand.run.dataset.test_images is not None
    # With a mesh each device computes one batch at a time.
    together = stand.batch_size * (stand.run.problem.mesh.size if stand.run.problem.mesh else 1)
    parts = stand.run.problem.images, len(stand.run.dataset.test_images)
    return [stand.batch._replace(count=sum(-(-count // together) for count in parts))]


def of_samples(stand: StandIns) -> list[Cost]:
    """Measure the choice of the samples, and the extraction of the features of their views."""
    run, costs = stand.run, []
    if run.method.samples and run.config.distill.samples == "kmeans":
        # The time of k-means grows about linearly with the number of features.
        tried = min(run.problem.images, max(KMEANS_ROWS, 2 * run.method.samples))
        features = stand.normal(tried, run.problem.dim)
        seconds = once(lambda: samples.nearest_to_centres(features, run.method.samples, 0))
        costs.append(Cost("images", run.problem.images, seconds / tried, tried))
    if len(run.method.views) > 1 and stand.backbone is not None:
        count = -(-(len(run.method.views) - 1) * run.method.samples // stand.batch_size)
        costs.append(stand.batch._replace(count=count, compiling=0.0))  # the stage `features` has compiled it
    return costs


def of_distill(stand: StandIns) -> list[Cost]:
    """Measure the start and the outer steps of the method."""
    run, job = stand.run, stand.job
    if job.method.step is None:
        return []
    done = newest(run.work.checkpoints)
    training = distill.training_of(job, stand.start)
    initializer, arguments = stand.init
    state = initializer.call(*arguments)
    costs = []
    # A run with a checkpoint resumes from it and needs no start.
    if not done:
        seconds = once(lambda: initializer.call(*arguments))
        costs.append(Cost("starts", 1, seconds, 1, initializer.compiling, initializer.memory))
        costs += method_costs(stand, "distill")
    source = devices.place(run.problem.mesh, stand.complete(job.source()))
    cost, _ = steps(training, state, source, left=run.method.steps - done)
    return [*costs, cost]


def of_approximate(stand: StandIns) -> list[Cost]:
    """Measure the export: fitted approximation networks, computed soft labels or features."""
    # The method fits a single step here; its trials below stand for the whole fit.
    job = stand.job
    state = devices.local(stand.run.problem.mesh, stand.state)
    seconds = once(lambda: dict(job.method.export(job.key("approximate"), state, stand.start).arrays))
    costs = [Cost("exports", 1, seconds, 1)]
    return costs + method_costs(stand, "approximate")


def method_costs(stand: StandIns, stage: str) -> list[Cost]:
    """Measure the trials that the method adds to a stage that every method has."""
    trials = stand.run.method.trials.get(stage)
    return [measure(trial) for trial in trials(stand)] if trials else []
