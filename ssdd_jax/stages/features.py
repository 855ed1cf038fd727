"""The teacher's features: computed once and stored, or precomputed by the user."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssdd_jax import data, teacher
from ssdd_jax.data import features
from ssdd_jax.errors import UserError
from ssdd_jax.methods.base import Method, Run, Say
from ssdd_jax.runtime import devices
from ssdd_jax.runtime.workdir import fingerprint


def compute(run: Run) -> None:
    """Compute the features of the training and test images; skipped if they exist."""
    # Stored with the features to recognise those of another data set.
    mark = fingerprint(run.dataset.train_images)
    if features.complete(run.work.features):
        features.load(run.work.features, mark)  # raises an error if they belong to other images
        return
    if run.config.teacher.features:
        precomputed = read_brought(run.config, run.dataset)
        if devices.is_first():
            features.save(run.work.features, features.Features(precomputed.train, precomputed.test), mark)
        return
    assert run.dataset.test_images is not None
    images = {"train": run.dataset.train_images, "test": run.dataset.test_images}
    # Generators: a batch is written as soon as it is computed, and features need not fit in memory.
    parts = {name: (of_images(run, part, mesh=run.problem.mesh), len(part)) for name, part in images.items()}
    # A teacher that has collapsed is refused before its features are complete, on every process.
    parts["train"] = features.varied("teacher", *parts["train"]), parts["train"][1]
    if devices.is_first():
        features.write(run.work.features, parts, mark)
    else:  # the extraction is collective, so every process must iterate over all batches
        collections.deque(itertools.chain(*(batches for batches, _ in parts.values())), maxlen=0)


def of_images(run: Run, images: np.ndarray, *, mesh: Mesh | None = None) -> Iterator[np.ndarray]:
    """Compute the teacher's features, batch by batch.

    Args:
        run: A run whose teacher is a network, or a function passed by the user.
        images: uint8 `(k,H,W,C)`.
        mesh: Devices to split the batches over.

    Yields:
        Features `(b,D)`, float32, in the order of the images.

    Raises:
        UserError: If they are not finite.
    """
    if run.extract is not None:
        yield run.extract(images)
        return
    variables, about = run.teacher()
    # The wrapper of a converted teacher resizes images to its input size; `about` holds its normalisation.
    if "network" in about:
        variables = teacher.describe(about).frozen(teacher.backbone(variables))
    done = 0
    for batch in teacher.feature_batches(variables, images, mean=about["mean"], std=about["std"], mesh=mesh):
        bad = np.flatnonzero(~np.isfinite(batch).all(1))
        if len(bad):
            raise UserError(
                f"the teacher's features are not finite, first for image {done + int(bad[0])} of {len(images):,}: "
                + ("take another one" if run.config.teacher.source else "train another with a smaller learning rate")
            )
        done += len(batch)
        yield batch


def read_brought(config: ConfigDict, dataset: data.Dataset) -> features.Brought:
    """Read the file `config.teacher.features`, and check it against the data set."""
    assert dataset.test_images is not None
    return features.read(
        config.teacher.features,
        train=len(dataset.train_images),
        test=len(dataset.test_images),
        views=tuple(config.views),
    )


def only_known_views(config: ConfigDict, method: Method, brought: features.Brought, say: Say) -> ConfigDict:
    """Leave out views without precomputed features: the features of the unchanged image would be wrong targets.

    Args:
        config: The run's config.
        method: The method that it describes.
        brought: The precomputed features.
        say: Called with the names of the views that are left out.

    Returns:
        The config, changed if views of the method are left out.
    """
    missing = [name for name in method.views[1:] if name not in brought.views]
    if not missing:
        return config
    changed = config.copy_and_resolve_references()
    changed.views = tuple(name for name in config.views if name not in missing)
    say(f"features: there are none of the views {', '.join(missing)}: distilling {', '.join(changed.views)} only")
    return changed


def brought_of(run: Run) -> features.Brought | None:
    """Return the user's precomputed features by view; None if the teacher can be run."""
    if run.extract is not None:
        return None
    if run.brought is not None:
        return run.brought
    return read_brought(run.config, run.dataset) if run.config.teacher.features else None
