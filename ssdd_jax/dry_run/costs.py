"""What each stage of a run before the evaluation costs on this machine, from a few of its steps."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ssdd_jax.dry_run.contents import newest
from ssdd_jax.dry_run.standins import BATCH, StandIns
from ssdd_jax.dry_run.timing import Cost, measure, once, steps
from ssdd_jax.runtime import devices
from ssdd_jax.stages import distill, samples
from ssdd_jax.training import loop

# Rows that k-means is tried on.
KMEANS_ROWS = 4000


def of_teacher(stand: StandIns) -> list[Cost]:
    """The teacher's training; converting one takes no time to speak of."""
    if stand.run.config.teacher.source:
        return []
    run, options = stand.run, stand.run.config.teacher
    mesh, trainer = run.problem.mesh, stand.trainer
    made, _ = stand.teacher
    state = made.call()
    resident = run.resident(features=False)
    batch = run.dataset.train_images[np.arange(options.batch_size) % run.problem.images]
    training = loop.Training(
        name="teacher",
        init=made.call,
        step=trainer.step,
        steps=trainer.steps,
        per_call=options.steps_per_call,
        save_every=options.save_every,
        advice="",
        feed=None if resident else lambda done, count: np.broadcast_to(batch, (count, *batch.shape)),
        shardings=devices.shardings(mesh, state),
    )
    images = devices.place(mesh, jnp.asarray(run.dataset.train_images)) if resident else None
    left = trainer.steps - newest(run.work.teacher / "checkpoints")
    cost, _ = steps(training, state, images, left=left)
    return [cost._replace(compiling=cost.compiling + made.compiling)]


def of_features(stand: StandIns) -> list[Cost]:
    """The teacher's features of all images; none of a teacher that is not a network."""
    if stand.backbone is None:
        return []
    assert stand.run.dataset.test_images is not None
    together = BATCH * (stand.run.problem.mesh.size if stand.run.problem.mesh else 1)
    parts = stand.run.problem.images, len(stand.run.dataset.test_images)
    return [stand.batch._replace(count=sum(-(-count // together) for count in parts))]


def of_samples(stand: StandIns) -> list[Cost]:
    """The choice of the samples, and the teacher's features of their views."""
    run, found = stand.run, []
    if run.method.samples and run.config.distill.samples == "kmeans":
        rows = min(run.problem.images, max(KMEANS_ROWS, 2 * run.method.samples))
        some = stand.normal(rows, run.problem.dim)
        seconds = once(lambda: samples.nearest_to_centres(some, run.method.samples, 0))
        found.append(Cost("images", run.problem.images, seconds / rows, rows))
    if len(run.method.views) > 1 and stand.backbone is not None:
        count = -(-(len(run.method.views) - 1) * run.method.samples // BATCH)
        found.append(stand.batch._replace(count=count, compiling=0.0))  # compiled for the features
    return found


def of_distill(stand: StandIns) -> list[Cost]:
    """The start and the outer steps of the method."""
    run, job = stand.run, stand.job
    if job.method.step is None:
        return []
    done = newest(run.work.checkpoints)
    training = distill.training_of(job, stand.start)
    made, arguments = stand.init
    state = made.call(*arguments)
    found = []
    if not done:
        seconds = once(lambda: made.call(*arguments))
        found.append(Cost("starts", 1, seconds, 1, made.compiling, made.memory))
        found += own(stand, "distill")
    source = devices.place(run.problem.mesh, stand.complete(job.source()))
    cost, _ = steps(training, state, source, left=run.method.steps - done)
    return [*found, cost]


def of_approximate(stand: StandIns) -> list[Cost]:
    """The export: approximation networks fitted, soft labels or features computed."""
    job = stand.job
    state = devices.local(stand.run.problem.mesh, stand.state)
    seconds = once(lambda: dict(job.method.export(job.key("approximate"), state, stand.start).arrays))
    found = [Cost("exports", 1, seconds, 1)]
    return found + own(stand, "approximate")


def own(stand: StandIns, stage: str) -> list[Cost]:
    """The pieces of work that the method adds to a stage that every method has."""
    trials = stand.run.method.trials.get(stage)
    return [measure(trial) for trial in trials(stand)] if trials else []
