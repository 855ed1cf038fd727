"""SC-DD (Zhou, Yin, Shao and Shen, "Self-supervised Dataset Distillation: A Good Compression Is All You Need", 2024): a
self-supervised teacher with a linear probe is inverted into images, which are stored with soft labels.

Squeeze: the teacher, and the stage `probe`. Recover: the outer steps. Relabel: the targets are the teacher's logits of
the recovered images, centred and scaled; regressing them is distillation at a high temperature (the published 30;
Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.1). The published
post-training, which needs the teacher, is the stage `post_training`.

Published for CIFAR-100, and the defaults here: recovery at 0.4, batch norm's weight 0.005, jitter 4, groups of 100
images; 200 epochs of AdamW. Differences: the probe is trained like every linear probe of this package (published:
200 epochs at 0.06), and soft labels are stored for images without augmentation.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssdd_jax import distilled
from ssdd_jax.errors import UserError
from ssdd_jax.methods import budget
from ssdd_jax.methods.base import Definition, Method, Problem, Source
from ssdd_jax.methods.scdd import inversion, stages

Array = jax.Array

TITLE = "SC-DD"


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


def images_per_class(config: ConfigDict, problem: Problem) -> int:
    """Number of images per class: the config's, or the most that fit the budget `N (HWC + D)` with soft labels.

    Raises:
        UserError: If they do not fit the budget; the message contains both sizes.
    """
    # Soft labels have one number per class and count towards the budget.
    pair_size = problem.image_numbers + problem.classes
    most = budget.pairs(config, problem, problem.classes) // problem.classes
    per_class = config.scdd.images_per_class or max(most, 1)
    if per_class > most:
        needed = per_class * problem.classes * pair_size
        # Lowering the number per class helps only if at least one image per class fits.
        fewer = " or lower scdd.images_per_class" if most else ""
        if config.storage.bytes:
            raise UserError(
                f"storage exceeds the budget: {per_class * problem.classes} images, {per_class} per class, and their "
                f"soft labels take more than {config.storage.bytes:,} bytes; raise storage.bytes{fewer}"
            )
        numbers = config.storage.N * (problem.image_numbers + problem.dim)
        raise UserError(
            f"storage exceeds the budget: {per_class * problem.classes} images, {per_class} per class, and their soft "
            f"labels are {needed:,} numbers > {numbers:,} = N (HWC + D) with N={config.storage.N}; raise storage.N to "
            f"{-(-needed // (problem.image_numbers + problem.dim))}{fewer}"
        )
    return per_class


def make(config: ConfigDict, problem: Problem) -> Method:
    """Build SC-DD from a config.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data and facts about the teacher.

    Returns:
        The method.

    Raises:
        UserError: If there are no labels, or none of a class, no teacher with batch norm, or the budget does not hold
            the images.
    """
    # The method inverts class predictions and batch statistics: it needs labels, and a network with batch norm.
    if not problem.classes:
        raise UserError("config.method=scdd needs labels, and the data set has none: choose another method or data set")
    if not problem.batch_norm:
        raise UserError(
            "config.method=scdd inverts a teacher with batch norm, and the network of config.teacher.source has none: "
            "use a ResNet, or choose another method"
        )
    problem.check_classes(config.method)
    per_class = images_per_class(config, problem)
    stored = per_class * problem.classes
    labels = inversion.group_labels(per_class, problem.classes, config.scdd.group_size)
    settings = inversion_settings(config)

    def init(key: Array, source: Source) -> State:
        key_noise, key_steps = jax.random.split(key)
        recovery = inversion.init(key_noise, (*labels.shape, *problem.image_shape), settings=settings)
        return State(jnp.zeros((), jnp.int32), key_steps, recovery)

    def step(state: State, source: Source) -> tuple[State, inversion.Info]:
        low, high = inversion.valid_range(source.preprocessing)
        # Folded from the step number, so that a resumed run draws the same shifts.
        key = jax.random.fold_in(state.key, state.step)
        recovery, info = inversion.step(
            key, state.recovery, jnp.asarray(labels), _network(source), low=low, high=high, settings=settings
        )
        return State(state.step + 1, state.key, recovery), info

    def export(key: Array, state: State, source: Source) -> distilled.DistilledSet:
        # Images that only fill up the last group are dropped.
        images = state.recovery.images.reshape(-1, *problem.image_shape)[:stored]
        network = _network(source)
        # Targets are normalised by the moments of the logits of the training images, not of the teacher's features.
        constants = source.preprocessing._replace(
            target_mean=source.prepared.mean, target_scale=source.prepared.deviation
        )
        soft = jax.lax.map(lambda group: inversion.logits(network, group), state.recovery.images)
        targets = constants.targets(soft.reshape(-1, problem.classes)[:stored])
        return distilled.from_pairs(images, targets, constants, soft_labels=True)

    return Method(
        init,
        step,
        export,
        steps=config.distill.steps,
        samples=0,
        title=TITLE,
        stages=(stages.probe(),),
        load=stages.load,
        after=(stages.after(stored),) if config.scdd.post_epochs else (),
        show=lambda state: {"images": state.recovery.images.reshape(-1, *problem.image_shape)[:stored]},
        pairs=(stored, problem.classes),
        example=stages.example,
    )


DEFINITION = Definition(
    make,
    titles={"scdd": TITLE},
    editions={
        "scdd": {"method": "scdd", "distill.steps": 1000, "distill.learning_rate": 0.4, "distill.save_every": 100}
    },
    network=True,
    cpu_steps=(300, 300),
    size_keys=("scdd.images_per_class",),
    lower="config.scdd.group_size",
)


def inversion_settings(config: ConfigDict) -> inversion.Settings:
    """Read the settings of the recovery from a config."""
    options = config.scdd
    return inversion.Settings(
        steps=config.distill.steps,
        learning_rate=config.distill.learning_rate,
        bn_weight=options.bn_weight,
        first_bn_weight=options.first_bn_weight,
        jitter=options.jitter,
        vectorize=options.vectorize,
    )


def _network(source: Source) -> inversion.Network:
    return inversion.Network(source.teacher, source.prepared.weights)
