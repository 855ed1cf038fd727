"""SC-DD (Zhou, Yin, Shao and Shen, "Self-supervised Dataset Distillation: A Good Compression Is All You Need", 2024): a
self-supervised teacher and a linear probe on it are inverted into images, which are stored with soft labels.

Squeeze: the teacher, and the stage `probe`. Recover: the outer steps. Relabel: the teacher's logits of the recovered
images, centred and scaled, are the targets; regressing them is distillation at a high temperature (the published 30;
Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.1). Its own post-training,
with the teacher at hand, is the stage `post_training`.

Published for CIFAR-100, and the defaults here: recovery at 0.4, batch norm's weight 0.005, jitter 4, groups of 100
images; 200 epochs of AdamW. Different here: the probe is trained like every linear probe of this package (published:
200 epochs at 0.06), and soft labels are stored for the images as they are.
"""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssdd_jax import distilled
from ssdd_jax.data import preprocess
from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate import statistics
from ssdd_jax.evaluate.protocols import probes
from ssdd_jax.methods.base import Method, Problem, Run, Source, Stage
from ssdd_jax.methods.scdd import inversion, post_training
from ssdd_jax.models import frozen
from ssdd_jax.models.resnet import ResNet
from ssdd_jax.runtime import files

Array = jax.Array

# What the probe depends on.
PROBE_PARTS = (
    "data",
    "teacher",
    "precision",
    *(f"evaluate.probe_{name}" for name in ("steps", "batch_size", "learning_rate")),
)


class State(NamedTuple):
    """A recovery in progress.

    Attributes:
        step: Iterations done, int32.
        key: PRNG key; folded with `step`, never advanced.
        recovery: The images and Adam's moments of them.
    """

    step: Array
    key: Array
    recovery: inversion.State


class Prepared(NamedTuple):
    """The probe's weights, and of its logits of the training images, whose scale a network regresses, as it does that
    of their features elsewhere: the mean `(classes,)`, and the mean of their deviations."""

    weights: Array
    mean: Array
    deviation: Array


def images_per_class(config: ConfigDict, problem: Problem) -> int:
    """Images of each class: the config's, or as many as the budget of `N (HWC + D)` numbers holds with their labels.

    Raises:
        UserError: If the budget does not hold them; the sum is written out.
    """
    each = problem.image_numbers + problem.classes
    budget = config.storage.N * (problem.image_numbers + problem.dim)
    most = budget // (each * problem.classes)
    wanted = config.scdd.images_per_class or max(most, 1)
    if wanted > most:
        needed = wanted * problem.classes * each
        fewer = " or lower scdd.images_per_class" if most else ""
        raise UserError(
            f"storage exceeds the budget: {wanted * problem.classes} images, {wanted} per class, and their soft labels "
            f"are {needed:,} numbers > {budget:,} = N (HWC + D) with N={config.storage.N}; raise storage.N to "
            f"{-(-needed // (problem.image_numbers + problem.dim))}{fewer}"
        )
    return wanted


def make(config: ConfigDict, problem: Problem) -> Method:
    """SC-DD as the config describes it.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data, and what is known of the teacher.

    Returns:
        The method.

    Raises:
        UserError: If there are no labels, no teacher with batch norm, or the budget does not hold the images.
    """
    if not problem.classes:
        raise UserError("config.method=scdd needs labels, and the data set has none: choose another method or data set")
    if not problem.network:
        raise UserError(
            "config.method=scdd inverts a teacher with batch norm, and features alone were brought: leave "
            "config.teacher.features empty to train a teacher, or choose another method"
        )
    if not problem.batch_norm:
        raise UserError(
            "config.method=scdd inverts a teacher with batch norm, and the network of config.teacher.source has none: "
            "bring a ResNet, or choose another method"
        )
    per_class = images_per_class(config, problem)
    stored = per_class * problem.classes
    labels = inversion.group_labels(per_class, problem.classes, config.scdd.group_size)
    settings = inversion_settings(config)

    def init(key: Array, source: Source) -> State:
        key_noise, key_steps = jax.random.split(key)
        recovery = inversion.init(key_noise, (*labels.shape, *problem.image_shape), settings=settings)
        return State(jnp.zeros((), jnp.int32), key_steps, recovery)

    def step(state: State, source: Source) -> tuple[State, inversion.Info]:
        low, high = valid_range(source.preprocessing)
        key = jax.random.fold_in(state.key, state.step)
        recovery, info = inversion.step(
            key, state.recovery, jnp.asarray(labels), _network(source), low=low, high=high, settings=settings
        )
        return State(state.step + 1, state.key, recovery), info

    def export(key: Array, state: State, source: Source) -> distilled.DistilledSet:
        images = state.recovery.images.reshape(-1, *problem.image_shape)[:stored]
        network = _network(source)
        constants = source.preprocessing._replace(
            target_mean=source.prepared.mean, target_scale=source.prepared.deviation
        )
        soft = jax.lax.map(lambda group: inversion.logits(network, group), state.recovery.images)
        targets = constants.targets(soft.reshape(-1, problem.classes)[:stored])
        return distilled.from_pairs(images, targets, constants, soft_labels=True)

    after = (Stage("post_training", _post_train),) if config.scdd.post_epochs else ()
    return Method(
        init,
        step,
        export,
        steps=config.distill.steps,
        samples=0,
        stages=(Stage("probe", _fit_probe, shared=PROBE_PARTS),),
        load=_prepared,
        after=after,
        show=lambda state: {"images": state.recovery.images.reshape(-1, *problem.image_shape)[:stored]},
    )


def inversion_settings(config: ConfigDict) -> inversion.Settings:
    """How images are recovered, out of a config."""
    options = config.scdd
    return inversion.Settings(
        steps=config.distill.steps,
        learning_rate=config.distill.learning_rate,
        bn_weight=options.bn_weight,
        first_bn_weight=options.first_bn_weight,
        jitter=options.jitter,
        vectorize=options.vectorize,
    )


def valid_range(constants: Preprocessing) -> tuple[Array, Array]:
    """Network inputs of black and of white, each `(C,)`."""
    black = -constants.image_mean / constants.image_std
    return black, black + 1 / constants.image_std


def _network(source: Source) -> inversion.Network:
    return inversion.Network(source.teacher, source.prepared.weights)


def _probe_path(run: Run) -> pathlib.Path:
    return run.work.own("probe", shared=True) / "weights.npy"


def _read_probe(run: Run) -> Array:
    return jnp.asarray(files.read_array(_probe_path(run)))


def _prepared(run: Run) -> Prepared:
    weights, known = _read_probe(run), run.features().train
    logits = jax.jit(probes.logits)
    mean, deviation = preprocess.column_moments(
        lambda: (np.asarray(logits(weights, known[part])) for part in preprocess.parts(len(known)))
    )
    return Prepared(weights, jnp.asarray(mean, jnp.float32), jnp.asarray(deviation.mean(), jnp.float32))


def _fit_probe(run: Run) -> None:
    """Train the linear probe on the teacher's features of the training images."""
    path = _probe_path(run)
    if path.exists():
        return
    options = run.config.evaluate
    settings = probes.Settings(options.probe_steps, options.probe_batch_size, options.probe_learning_rate)
    train = jnp.asarray(run.features().train), jnp.asarray(run.dataset.train_labels)
    weights = jax.jit(probes.fit_linear, static_argnames=("classes", "settings"))(
        run.key("probe", shared=True), train, classes=run.problem.classes, settings=settings
    )
    if not np.isfinite(weights).all():
        raise UserError("probe: the weights are not finite: try a smaller config.evaluate.probe_learning_rate")
    files.write_array(path, np.asarray(weights))


def student_of(network: inversion.Network) -> dict[str, Any]:
    """The sizes of a network of the teacher's kind, with the stem for small images: arguments of `post_training`."""
    kind = frozen.of(network.backbone).network
    assert isinstance(kind, ResNet)
    return {"width": kind.width, "blocks": kind.blocks, "bottleneck": kind.bottleneck}


def _post_train(run: Run) -> None:
    """Train networks of the teacher's kind on the set by distillation from the teacher, and measure their own head."""
    path = run.work.own("post_training", shared=False) / "results.json"
    if path.exists():
        return
    network, constants = inversion.Network(run.backbone(), _read_probe(run)), run.preprocessing()
    options, found = run.config.scdd, distilled.load(run.work.distilled)
    settings = post_training.Settings(
        epochs=options.post_epochs,
        batch_size=options.post_batch_size,
        learning_rate=options.post_learning_rate,
        weight_decay=options.post_weight_decay,
        temperature=options.temperature,
        mixup=options.mixup,
        padding=options.padding,
        flip=options.flip,
    )
    train = jax.jit(post_training.train, static_argnames=("width", "blocks", "bottleneck", "classes", "settings"))
    values = []
    for seed, key in enumerate(jax.random.split(run.key("post_training"), run.config.evaluate.seeds)):
        part = path.with_name(f"seed{seed}.json")
        if part.exists():
            values.append(files.read_json(part))
            continue
        variables = train(
            key,
            found.pairs()[0],
            network,
            low=valid_range(constants)[0],
            **student_of(network),
            classes=run.problem.classes,
            settings=settings,
        )
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)):
            raise UserError("post_training: the network diverged: try a smaller config.scdd.post_learning_rate")
        accuracy = post_training.accuracy(variables, run.dataset.test_images, run.dataset.test_labels, constants)
        values.append(float(accuracy))
        files.write_json(part, values[-1])
    row = statistics.summary(values)
    run.say(f"post_training: top-1 {row['mean']:.4g} ± {row['std']:.2g} with the teacher at hand")
    files.write_json(path, {"top1": row})
