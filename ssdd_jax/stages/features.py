"""The teacher's features: computed once and kept, or brought; and the images that a method starts from."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssdd_jax import augment, data, features, selection, teacher
from ssdd_jax.errors import UserError
from ssdd_jax.stages.base import Run
from ssdd_jax.workdir import fingerprint


def compute(run: Run) -> None:
    """Compute the features of the training and test images, unless they are there."""
    mark = fingerprint(run.dataset.train_images)
    if features.complete(run.work.features):
        features.load(run.work.features, mark)  # refuses those of other images
        return
    if run.config.teacher.features:
        brought = read_brought(run.config, run.dataset)
        found = features.Features(brought.train, brought.test)
    else:
        assert run.dataset.test_images is not None
        found = features.Features(_of(run, run.dataset.train_images), _of(run, run.dataset.test_images))
    if not all(np.isfinite(part).all() for part in found if part is not None):
        raise UserError(
            "the teacher's features are not finite: train another with a smaller config.teacher.learning_rate"
        )
    features.save(run.work.features, found, mark)


def choose(run: Run) -> None:
    """Choose the images that the method starts from, and compute the features of their views."""
    if (run.work.samples / "rows.npy").exists():
        return
    rows, found = selection.choose(run, run.method.samples), run.features()
    views = run.method.views
    if len(views) == 1:
        of_views = found.train[rows][None]
    elif run.config.teacher.features:
        brought = read_brought(run.config, run.dataset)
        missing = [name for name in views[1:] if name not in brought.views]
        if missing:
            run.say(
                f"features: none were brought of the views {', '.join(missing)}: they start as the images themselves"
            )
        of_views = features.of_samples(brought, rows, views)
    else:
        turned = augment.apply(
            augment.table(views, *run.dataset.image_shape[:2]), jnp.asarray(run.dataset.train_images[rows])
        )
        of_views = _of(run, np.asarray(turned).reshape(-1, *run.dataset.image_shape)).reshape(len(views), len(rows), -1)
    features.save_samples(run.work.samples, features.Samples(rows, of_views))


def read_brought(config: ConfigDict, dataset: data.Dataset) -> features.Brought:
    """The features that `config.teacher.features` names, checked against the data set."""
    assert dataset.test_images is not None
    return features.read(
        config.teacher.features,
        train=len(dataset.train_images),
        test=len(dataset.test_images),
        views=tuple(config.views),
    )


def _of(run: Run, images: np.ndarray) -> np.ndarray:
    variables, about = run.teacher()
    return teacher.features(variables, images, mean=about["mean"], std=about["std"])
