"""Check of the teacher before anything is distilled: do its features classify better than an untrained network's?"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.data import preprocess
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate import extraction, training
from ssdd_jax.evaluate.protocols.probes import compiled as probes
from ssdd_jax.evaluate.protocols.probes.pieces import Placing
from ssdd_jax.methods.base import Run
from ssdd_jax.models import architectures
from ssdd_jax.runtime import files
from ssdd_jax.stages.evaluate import student_name

Array = jax.Array

# Labelled training images that both networks are compared on, at most. The test split is not touched.
IMAGES = 2000
# Images of these that the batch norm of the untrained network is calibrated on.
CALIBRATED = 256


def check(run: Run) -> None:
    """Compare the teacher with an untrained student, and store both accuracies; skipped if they exist.

    Half of the labelled images train the scale-free linear probe and the other half tests it, and the other way round.
    The untrained network is the student with batch-norm statistics of the same images.

    Raises:
        UserError: If the teacher is not better and `config.teacher.gate` is `refuse`.
    """
    if run.work.gate.exists():
        compared = files.read_sealed(run.work.gate)
    else:
        compared = accuracies(run)
        files.write_sealed(run.work.gate, compared)
    if compared["teacher"] > compared["untrained"]:
        return
    line = (
        f"gate: this is no teacher: a linear probe on its features classifies {compared['teacher']:.1f} % of "
        f"{compared['images']:,} training images, and on those of an untrained student {compared['untrained']:.1f} %"
    )
    if run.config.teacher.gate == "refuse":
        raise UserError(f"{line}: train or choose a better one, or set --config.teacher.gate=warn to go on")
    run.say(f"{line}; the run goes on, but a set can hardly be better than random images (config.teacher.gate)")


def accuracies(run: Run) -> dict[str, float]:
    """Measure the accuracies in percent: `teacher` and `untrained`, and the number of `images`.

    Args:
        run: A run with labels and complete features.
    """
    dataset = run.dataset
    assert dataset.train_labels is not None
    # Drawn, because data may be sorted by class; an even number, so that both halves have one shape.
    drawn = np.random.default_rng(0).permutation(len(dataset.train_images))[:IMAGES]
    drawn = drawn[: len(drawn) // 2 * 2]
    images, labels = dataset.train_images[drawn], jnp.asarray(dataset.train_labels[drawn])
    mean, std = preprocess.dataset_moments(dataset)
    network = architectures.make(student_name(run.config), run.problem.dim, run.problem.image_shape)
    stacked = training.fresh(run.key("gate", shared=True)[None], network, run.problem.image_shape)
    variables = jax.tree.map(lambda leaf: leaf[0], stacked)
    variables = extraction.calibrate(network, variables, images[:CALIBRATED], mean=mean, std=std)
    untrained = extraction.extract(network, variables, images, mean=mean, std=std)
    placing = Placing(run.config.devices.gigabytes)
    accuracy = functools.partial(_two_fold, labels=labels, classes=run.problem.classes, placing=placing)
    return {"teacher": accuracy(run.features().train[drawn]), "untrained": accuracy(untrained), "images": len(drawn)}


def _two_fold(features: np.ndarray, *, labels: Array, classes: int, placing: Placing) -> float:
    """Mean accuracy of the probe on each half of the images, trained on the other half."""
    half = len(labels) // 2
    placed = placing.place(classes=classes, first=features[:half], second=features[half:])
    first, second = (placed["first"], labels[:half]), (placed["second"], labels[half:])
    folds = [float(probes.linear(*fold, classes=classes)) for fold in ((first, second), (second, first))]
    return round(sum(folds) / 2, 2)
