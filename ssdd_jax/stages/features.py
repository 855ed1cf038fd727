"""The teacher's features: computed once and kept, or brought; and the images that a method starts from."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssdd_jax import augment, data, teacher
from ssdd_jax.data import features
from ssdd_jax.errors import UserError
from ssdd_jax.methods.run import Run
from ssdd_jax.runtime import devices
from ssdd_jax.runtime.workdir import fingerprint
from ssdd_jax.stages import samples


def compute(run: Run) -> None:
    """Compute the features of the training and test images, unless they are there."""
    mark = fingerprint(run.dataset.train_images)
    if features.complete(run.work.features):
        features.load(run.work.features, mark)  # refuses those of other images
        return
    if run.config.teacher.features:
        brought = read_brought(run.config, run.dataset)
        if devices.is_first():
            features.save(run.work.features, features.Features(brought.train, brought.test), mark)
        return
    assert run.dataset.test_images is not None
    images = {"train": run.dataset.train_images, "test": run.dataset.test_images}
    parts = {name: (_batches(run, part, mesh=run.problem.mesh), len(part)) for name, part in images.items()}
    if devices.is_first():
        features.write(run.work.features, parts, mark)
    else:  # takes part in the work
        collections.deque(itertools.chain(*(batches for batches, _ in parts.values())), maxlen=0)


def _batches(run: Run, images: np.ndarray, *, mesh: Mesh | None = None) -> Iterator[np.ndarray]:
    """The teacher's features of images, a batch after the other; with a mesh by all its devices together.

    Raises:
        UserError: If they are not finite.
    """
    variables, about = run.teacher()
    if "network" in about:
        variables = teacher.describe(about).frozen(teacher.backbone(variables))
    for batch in teacher.feature_batches(variables, images, mean=about["mean"], std=about["std"], mesh=mesh):
        if not np.isfinite(batch).all():
            raise UserError(
                "the teacher's features are not finite: "
                + ("take another one" if run.config.teacher.source else "train another with a smaller learning rate")
            )
        yield batch


def choose(run: Run) -> None:
    """Choose the images that the method starts from, and compute the features of their views."""
    if (run.work.samples / "rows.npy").exists():
        return
    rows, found = samples.choose(run, run.method.samples), run.features()
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
        found_views = list(_batches(run, np.asarray(turned).reshape(-1, *run.dataset.image_shape)))
        of_views = np.concatenate(found_views).reshape(len(views), len(rows), -1)
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
