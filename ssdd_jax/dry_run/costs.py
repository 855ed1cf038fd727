"""What each stage of a run before the evaluation costs on this machine, from a few of its steps."""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax import approximate, inner, methods, pool
from ssdd_jax.dry_run.standins import BATCH, StandIns
from ssdd_jax.dry_run.timing import Cost, clock, once, program, steps, warm
from ssdd_jax.evaluate.protocols import probes
from ssdd_jax.methods import bilevel
from ssdd_jax.methods.base import Run
from ssdd_jax.methods.mkdt import experts
from ssdd_jax.methods.mkdt import stage as expert_stage
from ssdd_jax.methods.scdd import inversion, post_training
from ssdd_jax.methods.scdd import method as scdd
from ssdd_jax.runtime import devices
from ssdd_jax.stages import distill, samples
from ssdd_jax.training import epochs, loop

# Rows that k-means is tried on.
KMEANS_ROWS = 4000
# Steps that a fit or a probe is tried with.
TRIED = 100


def newest(folder: pathlib.Path) -> int:
    """The step of the newest checkpoint in a folder, 0 without one; nothing is opened."""
    return max((int(one.name) for one in folder.glob("*") if one.name.isdigit()), default=0)


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


def of_experts(stand: StandIns) -> list[Cost]:
    """The experts that are missing, an epoch's steps and the losses after them."""
    run, settings = stand.run, expert_stage.settings_of(stand.run.config)
    keep = any(stage.name == expert_stage.NAME for stage in run.method.stages)
    passes, problem = (settings.epochs if keep else 1), run.problem
    folder = run.work.own(expert_stage.NAME, shared=True)
    missing = settings.count - len(list(folder.glob("expert_*.npy" if keep else "group_*.npy")))
    groups, together = -(-missing // settings.vectorize), min(settings.vectorize, settings.count)
    size, per_epoch = epochs.batch_of(problem.images, settings.batch_size)
    tried = min(per_epoch, 2)
    images, targets = _pairs(stand, size * tried)
    preprocessing = stand.job.preprocessing()
    keys = jax.random.split(jax.random.key(0), together)
    options: dict[str, Any] = {"widths": settings.widths, "norm": settings.norm, "settings": settings.inner}
    states = jax.vmap(lambda key: inner.init(key, problem.image_shape, problem.dim, **options))(keys)

    def epoch(times: int) -> None:
        for _ in range(times):
            trained = experts.train_epoch(keys, states, images, targets, preprocessing, settings=settings)
            jax.block_until_ready(trained)

    one = jax.tree.map(lambda leaf: leaf[0], states.variables)

    def losses(times: int) -> None:
        for _ in range(times):
            jax.block_until_ready(experts.image_losses(one, images, targets, preprocessing))

    count = groups * passes * per_epoch / tried
    share = len(images) / problem.images
    return [
        warm(epoch, what="steps", count=count, most=4),
        warm(losses, what="losses", count=missing / share, most=4),
    ]


def _pairs(stand: StandIns, count: int) -> tuple[jax.Array, jax.Array]:
    """Training images uint8 `(count,H,W,C)` with random targets `(count,D)`, on the device."""
    images = stand.run.dataset.train_images[np.arange(count) % stand.run.problem.images]
    return jnp.asarray(images), jnp.asarray(stand.features(count))


def of_probe(stand: StandIns) -> list[Cost]:
    """SC-DD's linear probe on the teacher."""
    return [linear(stand, stand.run.problem.dim, times=1)]


def linear(stand: StandIns, width: int, *, times: int) -> Cost:
    """A linear probe on features of so many numbers, trained so many times."""
    options, problem = stand.run.config.evaluate, stand.run.problem
    size, per_epoch = epochs.batch_of(problem.images, options.probe_batch_size)
    settings = probes.Settings(TRIED, options.probe_batch_size, options.probe_learning_rate)
    count = min(problem.images, 4 * size)
    features = jnp.asarray(stand.normal(count, width))
    labels = jnp.arange(count, dtype=jnp.int32) % problem.classes
    fit = jax.jit(probes.fit_linear, static_argnames=("classes", "settings"))
    key = jax.random.key(0)
    found = program(fit, key, (features, labels), classes=problem.classes, settings=settings)
    found.call(key, (features, labels))
    seconds = once(lambda: found.call(key, (features, labels)))
    done = -(-TRIED // epochs.batch_of(count, size)[1]) * epochs.batch_of(count, size)[1]
    all_steps = -(-options.probe_steps // per_epoch) * per_epoch
    held = 4 * problem.images * width
    return Cost("steps", times * all_steps, seconds / done, done, found.compiling, found.memory + held)


def of_samples(stand: StandIns) -> list[Cost]:
    """The choice of the samples, and the teacher's features of their views."""
    run, found = stand.run, []
    if run.method.samples and run.config.distill.samples == "kmeans":
        rows = min(run.problem.images, max(KMEANS_ROWS, 2 * run.method.samples))
        some = stand.normal(rows, run.problem.dim)
        seconds = once(lambda: samples.nearest_to_centres(some, run.method.samples, 0))
        found.append(Cost("images", run.problem.images, seconds / rows, rows))
    if len(run.method.views) > 1 and stand.backbone is not None:
        count = -(-len(run.method.views) * run.method.samples // BATCH)
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
        if run.config.method in methods.POOLED:
            found.append(_pool(stand, state.pool))
    source = devices.place(run.problem.mesh, stand.complete(job.source()))
    cost, _ = steps(training, state, source, left=run.method.steps - done)
    return [*found, cost]


def _pool(stand: StandIns, models: pool.Pool) -> Cost:
    """The first training of the pool's models, to ages that are spread evenly below the one they are renewed at."""
    config, problem = stand.run.config, stand.run.problem
    settings = bilevel.pool_settings(config)
    together = min(settings.vectorize, settings.size)
    count, first = len(stand.run.method.views) * stand.run.method.samples, models.models
    some = jax.tree.map(lambda leaf: leaf[:together], devices.local(problem.mesh, first))
    x, y = jnp.asarray(stand.normal(count, *problem.image_shape)), jnp.asarray(stand.normal(count, problem.dim))

    def grow(state: inner.State, x: Any, y: Any, count: Any) -> inner.State:
        one = jax.vmap(lambda state: inner.step(state, x, y, settings=settings.inner)[0])
        return jax.lax.fori_loop(0, count, lambda _, state: one(state), state)

    found = program(jax.jit(grow), some, x, y, np.int32(1))

    def go(count: int) -> None:
        jax.block_until_ready(found.call(some, x, y, np.int32(count)))

    seconds, measured = clock(go, most=50)
    # The oldest of those that are trained side by side decides.
    oldest = settings.steps * together / (together + 1)
    split = problem.mesh.shape[devices.POOL] if problem.mesh else 1
    return Cost("inner steps", oldest * -(-settings.size // (together * split)), seconds, measured)


def of_approximate(stand: StandIns) -> list[Cost]:
    """The export: approximation networks fitted, soft labels or features computed."""
    job, (made, arguments) = stand.job, stand.init
    state = devices.local(stand.run.problem.mesh, made.call(*arguments))
    seconds = once(lambda: dict(job.method.export(job.key("approximate"), state, stand.start).arrays))
    found = [Cost("exports", 1, seconds, 1)]
    if stand.run.config.method == "boost":
        found.append(_fit(stand, state.outer.params))
    return found


def _fit(stand: StandIns, params: Any) -> Cost:
    options = stand.run.config.approximate
    tried = min(TRIED, options.steps)
    settings = approximate.Settings(stand.run.config.storage.hidden, tried, options.learning_rate)
    fit = jax.jit(functools.partial(approximate.fit, settings=settings))

    def call(coefficients: Any, bases: Any) -> Any:
        return fit(jax.random.key(0), coefficients, bases=bases)

    found = program(jax.jit(call), params.feature_coefficients, params.feature_bases)
    arguments = params.feature_coefficients, params.feature_bases
    jax.block_until_ready(found.call(*arguments))
    seconds = once(lambda: found.call(*arguments)) / tried
    return Cost("steps", options.steps, seconds, tried, 0.0, found.memory)  # compiled with the export


def of_post_training(stand: StandIns) -> list[Cost]:
    """SC-DD's own post-training of a network per seed."""
    config, problem = stand.run.config, stand.run.problem
    options = config.scdd
    count = scdd.images_per_class(config, problem) * problem.classes
    size, per_epoch = epochs.batch_of(count, options.post_batch_size)
    tried = min(per_epoch, 2)
    settings = post_training.Settings(epochs=1, batch_size=size, padding=options.padding, mixup=options.mixup)
    images = jnp.asarray(stand.normal(size * tried, *problem.image_shape))
    network = inversion.Network(stand.backbone, jnp.asarray(stand.normal(problem.dim + 1, problem.classes)))

    def train(key: Any, images: Any, network: Any) -> Any:
        low, classes = jnp.zeros(problem.image_shape[-1]), problem.classes
        shape = scdd.student_of(network)
        return post_training.train(key, images, network, low=low, classes=classes, settings=settings, **shape)

    found = program(jax.jit(train), jax.random.key(0), images, network)
    seconds, measured = math.nan, 0
    if found.fits:
        go: Callable[[], Any] = functools.partial(found.call, jax.random.key(0), images, network)
        jax.block_until_ready(go())
        seconds, measured = once(go) / tried, tried
    left = config.evaluate.seeds * options.post_epochs * per_epoch
    return [Cost("steps", left, seconds, measured, found.compiling, found.memory)]


def pairs_of(run: Run) -> tuple[int, int]:
    """How many pairs the set has, and the length of a target."""
    if run.config.method == "scdd":
        return scdd.images_per_class(run.config, run.problem) * run.problem.classes, run.problem.classes
    return len(run.method.views) * (run.method.samples or run.config.storage.N), run.problem.dim
