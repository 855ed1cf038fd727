"""Stages specific to SC-DD: the linear probe on the teacher, and the post-training on the recovered images."""

from __future__ import annotations

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax import distilled
from ssdd_jax.data import preprocess
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate.protocols import probes
from ssdd_jax.evaluate.protocols.probes import compiled
from ssdd_jax.evaluate.protocols.probes.pieces import Placing
from ssdd_jax.methods import trials
from ssdd_jax.methods.base import Run, Stage, StandIns, Trial
from ssdd_jax.methods.scdd import inversion, post_training
from ssdd_jax.models import frozen
from ssdd_jax.models.resnet import ResNet
from ssdd_jax.report import statistics
from ssdd_jax.runtime import files
from ssdd_jax.training import epochs

Array = jax.Array

# Parts of the config that the probe depends on.
PROBE_PARTS = (
    "data",
    "teacher",
    "precision",
    *(f"evaluate.probe_{name}" for name in ("steps", "batch_size", "learning_rate")),
)


class Prepared(NamedTuple):
    """The probe's weights `(D+1,classes)`, and moments of its logits of the training images.

    The mean `(classes,)` and the deviation `()`, averaged over the classes, normalise the soft labels, as the moments
    of the features normalise the targets of other methods.
    """

    weights: Array
    mean: Array
    deviation: Array


def _probe_path(run: Run) -> pathlib.Path:
    return run.work.own("probe", shared=True) / "weights.npy"


def _read_probe(run: Run) -> Array:
    return jnp.asarray(files.read_array(_probe_path(run)))


def load(run: Run) -> Prepared:
    """Read the probe, and compute the moments of its logits of the training images."""
    weights, features = _read_probe(run), run.features().train
    # In parts: the logits of a large data set need not be in memory at once.
    logits = jax.jit(probes.logits)
    mean, deviation = preprocess.column_moments(
        lambda: (np.asarray(logits(weights, features[part])) for part in preprocess.parts(len(features)))
    )
    return Prepared(weights, jnp.asarray(mean, jnp.float32), jnp.asarray(deviation.mean(), jnp.float32))


def _fit_probe(run: Run) -> None:
    """Train the linear probe on the teacher's features of the training images."""
    path = _probe_path(run)
    if path.exists():
        return
    options = run.config.evaluate
    settings = probes.SgdSettings(options.probe_steps, options.probe_batch_size, options.probe_learning_rate)
    placing = Placing(run.config.devices.gigabytes)
    features = placing.place(classes=run.problem.classes, train=run.features().train)["train"]
    weights = compiled.fit_linear_krr_st(
        run.key("probe", shared=True),
        (features, jnp.asarray(run.dataset.train_labels)),
        classes=run.problem.classes,
        settings=settings,
    )
    placing.close()
    if not np.isfinite(weights).all():
        raise UserError("probe: the weights are not finite: try a smaller config.evaluate.probe_learning_rate")
    files.write_array(path, np.asarray(weights))


def student_of(network: inversion.Network) -> dict[str, Any]:
    """Arguments of `post_training.train` for the teacher's architecture, with the stem for small images."""
    kind = frozen.of(network.backbone).network
    assert isinstance(kind, ResNet)
    return {"width": kind.width, "blocks": kind.blocks, "bottleneck": kind.bottleneck}


def _post_train(run: Run) -> None:
    """Distil the teacher into networks of its architecture on the set, and measure their classifiers' accuracy."""
    path = run.work.own("post_training", shared=False) / "results.json"
    if path.exists():
        return
    # The stage needs the teacher, which is not part of the set: its accuracy is reported apart from the other results.
    network, constants = inversion.Network(run.backbone(), _read_probe(run)), run.preprocessing()
    options, distilled_set = run.config.scdd, distilled.load(run.work.distilled)
    settings = post_training.Settings(
        epochs=options.post_epochs,
        batch_size=options.post_batch_size,
        learning_rate=options.post_learning_rate,
        weight_decay=options.post_weight_decay,
        temperature=options.temperature,
        mixup=options.mixup,
        padding=options.padding,
        flip=options.flip,
        rate_epochs=max(options.post_epochs, post_training.Settings().rate_epochs),
    )
    train = jax.jit(post_training.train, static_argnames=("width", "blocks", "bottleneck", "classes", "settings"))

    def measured(key: jax.Array) -> dict[str, float]:
        variables = train(
            key,
            distilled_set.pairs()[0],
            network,
            low=inversion.valid_range(constants)[0],
            **student_of(network),
            classes=run.problem.classes,
            settings=settings,
        )
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)):
            raise UserError("post_training: the network diverged: try a smaller config.scdd.post_learning_rate")
        accuracy = post_training.accuracy(variables, run.dataset.test_images, run.dataset.test_labels, constants)
        return {"top1": float(accuracy)}

    # Each seed is stored as soon as it is done, so that an interrupted stage resumes after it.
    values = [
        files.sealed_once(path.with_name(f"seed{seed}.json"), functools.partial(measured, key))["top1"]
        for seed, key in enumerate(jax.random.split(run.key("post_training"), run.config.evaluate.seeds))
    ]
    summary = statistics.summary(values)
    run.say(f"post_training: top-1 {statistics.brief(summary)}, distilled from the teacher")
    files.write_sealed(path, {"top1": summary})


def _probe_trials(stand: StandIns) -> list[Trial]:
    return [trials.linear(stand, stand.run.problem.dim, times=1)]


def example(stand: StandIns) -> Prepared:
    """Return a random probe and plausible moments of its logits."""
    problem = stand.run.problem
    weights = jnp.asarray(stand.normal(problem.dim + 1, problem.classes))
    return Prepared(weights, jnp.zeros(problem.classes), jnp.ones(()))


def probe() -> Stage:
    """Build the stage that fits the probe."""
    return Stage("probe", _fit_probe, shared=PROBE_PARTS, output="probe/weights.npy", trials=_probe_trials)


def after(count: int) -> Stage:
    """Build the stage that trains networks of the teacher's architecture on a set of `count` images."""

    def post_trials(stand: StandIns) -> list[Trial]:
        """Trial of an epoch of two mini-batches, which stands for all epochs of every seed."""
        options, problem = stand.run.config.scdd, stand.run.problem
        # Two batches of the real size, compiled with the real settings.
        size, per_epoch = epochs.batch_of(count, options.post_batch_size)
        tried = min(per_epoch, 2)
        settings = post_training.Settings(epochs=1, batch_size=size, padding=options.padding, mixup=options.mixup)
        network = inversion.Network(stand.backbone, jnp.asarray(stand.normal(problem.dim + 1, problem.classes)))
        shape = student_of(network)

        @jax.jit
        def train(key: Array, images: Array, network: inversion.Network) -> Any:
            low = jnp.zeros(problem.image_shape[-1])
            return post_training.train(
                key, images, network, low=low, classes=problem.classes, settings=settings, **shape
            )

        images = jnp.asarray(stand.normal(size * tried, *problem.image_shape))
        steps = stand.run.config.evaluate.seeds * options.post_epochs * per_epoch
        return [Trial("steps", steps, train, (jax.random.key(0), images, network), units=tried)]

    return Stage(
        "post_training",
        _post_train,
        output="post_training/results.json",
        trials=post_trials,
        lower="config.scdd.post_batch_size",
    )
