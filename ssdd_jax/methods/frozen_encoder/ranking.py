"""DD-Ranking's scores of a set with labels (Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation",
2025): how much of what a network learns from a set is in its images, apart from soft labels and augmentation.

Networks are trained from scratch on images and their classes: on the distilled set, on as many random images of each
class, and on all images. Settings of the training are those of the benchmark's package (SGD with momentum 0.9 and decay
5e-4, batches of 256; 300 steps are its 300 epochs of a set within a batch). Different here: the rate is 0.01 for all,
where the package takes the best of five on the test images, as is the best of the tested epochs; the augmentation is a
crop and a flip; every seed counts once (the package lists each score of hard labels twice). Random images are as many
as the distilled ones also where the bytes of these would hold more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.evaluate.protocols import finetune
from ssdd_jax.methods.base import Run, Stage, StandIns, Trial
from ssdd_jax.methods.frozen_encoder import stages
from ssdd_jax.models import architectures, initialize
from ssdd_jax.runtime import files

Array = jax.Array

# The names of the stages, in their order.
PLAIN, AUGMENTED, SCORES = "hard_labels", "hard_labels_augmented", "dd_ranking"


def normalised(score: float) -> float:
    """Map a score between -1 and 1 to one between 0 and 1: `(exp(score) - exp(-1)) / (exp(1) - exp(-1))`."""
    return (math.exp(score) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def label_robust_score(distilled: float, random: float, full: float, *, weight: float = 0.5) -> float:
    """Compute the label-robust score of DD-Ranking from accuracies, shares between 0 and 1.

    Args:
        distilled: Of networks trained on the distilled images and their classes.
        random: Of those trained on as many random images.
        full: Of those trained on all images.
        weight: Weight of the improvement over random images, against what is missing to all images.

    Returns:
        The score, between 0 and 1.
    """
    return normalised(weight * (distilled - random) - (1 - weight) * (full - distilled))


def augmentation_robust_score(plain: float, augmented: float, *, weight: float = 0.5) -> float:
    """Compute the augmentation-robust score of DD-Ranking.

    Args:
        plain: Improvement over random images without augmentation, a difference of shares between 0 and 1.
        augmented: The same with augmentation.
        weight: Weight of `augmented`.

    Returns:
        The score, between 0 and 1.
    """
    return normalised(weight * augmented + (1 - weight) * plain)


def ranking(per_class: int, classes: int) -> tuple[Stage, ...]:
    """Build the stages that train networks on classes, without and with augmentation, and compute both scores.

    Args:
        per_class: Distilled images of each class.
        classes: Number of classes.
    """

    def measure(name: str) -> Stage:
        return Stage(
            name,
            lambda run: _measure(run, name, per_class, classes),
            output=f"{name}/results.json",
            trials=lambda stand: [_trial(stand, name, classes)],
            lower="config.evaluate.batch_size",
        )

    return measure(PLAIN), measure(AUGMENTED), Stage(SCORES, _score, output=f"{SCORES}/results.json")


def _measure(run: Run, name: str, per_class: int, classes: int) -> None:
    """Write the accuracies of networks trained on the set and on its baselines."""
    if stages.output(run, name).exists():
        return
    config, dataset, constants = run.config, run.dataset, run.preprocessing()
    network, settings = _network(run, classes), _settings(config, name)
    labels, test_labels = stages.labels_of(run)
    assert dataset.test_images is not None
    test = dataset.test_images, np.asarray(test_labels, np.int32)

    def measured(seed: int, key: Array, by_name: Mapping[str, stages.Entry]) -> dict[str, float]:
        key_init, key_train = jax.random.split(key)
        trained = {
            entry: (_bytes(by_name[entry].pixels), np.asarray(by_name[entry].labels, np.int32), settings)
            for entry in ("distilled", "random_real")
        }
        if name == PLAIN:  # all images, which the scores need without augmentation
            most = settings._replace(steps=config.evaluate.full_steps)
            trained["full_data"] = dataset.train_images, np.asarray(labels, np.int32), most
        # All rows of a seed share their initial network.
        initial = jax.tree.map(lambda leaf: leaf[None], initialize(key_init, network, run.problem.image_shape))
        found = {}
        for entry, (images, own, chosen) in trained.items():
            (accuracy,) = finetune.run(
                key_train[None],
                network,
                jax.tree.map(jnp.array, initial),
                (images, own),
                test,
                classes=classes,
                mean=constants.image_mean,
                std=constants.image_std,
                settings=chosen,
                name=f"{name} {entry} {seed}",
            )
            found[entry] = float(accuracy)
        return found

    # Both stages train the same initial networks, with keys of their own beside those of the heads.
    keys = jax.random.split(run.key(PLAIN), config.evaluate.seeds)
    accuracies: dict[str, list[float]] = {}
    for seed, (_, by_name) in enumerate(stages.entries(run, per_class, classes, fill=False)):
        found = stages.part(run, name, seed, lambda: measured(seed, keys[seed], by_name))  # noqa: B023
        for entry, accuracy in found.items():
            accuracies.setdefault(entry, []).append(accuracy)
    stages.write(run, name, accuracies)


def _network(run: Run, classes: int) -> nn.Module:
    student = run.config.student
    name = architectures.convnet_name(student.widths, student.norm)
    return architectures.make(name, classes, run.problem.image_shape)


def _settings(config: ConfigDict, name: str) -> finetune.Settings:
    augmented = name == AUGMENTED
    flip = config.encoder.flip if augmented else 0.0
    return finetune.Settings(steps=config.encoder.label_steps, padding=4 if augmented else 0, flip=flip)


def _trial(stand: StandIns, name: str, classes: int) -> Trial:
    """Trial of one step, which stands for those of all networks of a stage."""
    run = stand.run
    config, shape = run.config, run.problem.image_shape
    network, settings = _network(run, classes), _settings(run.config, name)

    def step(
        key: Array, state: finetune.State, batch: tuple[Array, Array], rate: Array, constants: Preprocessing
    ) -> Any:
        return finetune.step(
            key,
            state,
            batch,
            rate,
            network=network,
            settings=settings,
            classes=jnp.int32(classes),
            mean=constants.image_mean,
            std=constants.image_std,
        )

    variables = initialize(jax.random.key(0), network, shape)
    state = finetune.State(variables, jax.tree.map(jnp.zeros_like, variables["params"]))
    images = jnp.zeros((settings.batch_size, *shape), jnp.uint8)
    batch = images, jnp.zeros(settings.batch_size, jnp.int32)
    steps = 2 * settings.steps + (config.evaluate.full_steps if name == PLAIN else 0)
    arguments = jax.random.key(0), state, batch, jnp.float32(settings.learning_rate), stand.preprocessing
    return Trial("steps", config.evaluate.seeds * steps, jax.jit(step), arguments)


def _score(run: Run) -> None:
    """Write both scores, from the accuracies of each seed."""
    if stages.output(run, SCORES).exists():
        return
    plain, augmented = (_shares(run, name) for name in (PLAIN, AUGMENTED))
    seeds = range(len(plain["distilled"]))
    over_random = [
        [accuracies["distilled"][seed] - accuracies["random_real"][seed] for seed in seeds]
        for accuracies in (plain, augmented)
    ]
    values = {
        "lrs": [
            label_robust_score(*(plain[name][s] for name in ("distilled", "random_real", "full_data"))) for s in seeds
        ],
        "ars": [augmentation_robust_score(*differences) for differences in zip(*over_random, strict=True)],
    }
    stages.write(run, SCORES, values, measure="")


def _shares(run: Run, name: str) -> dict[str, list[float]]:
    accuracies: dict[str, Any] = files.read_sealed(stages.output(run, name))
    return {entry: [value / 100 for value in one["values"]] for entry, one in accuracies.items()}


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """Round pixels between 0 and 1 to uint8."""
    return np.asarray(np.rint(255 * np.clip(pixels, 0, 1)), np.uint8)
