"""What every stage is given."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssdd_jax import data, methods, teacher
from ssdd_jax.data import features, preprocess
from ssdd_jax.runtime import devices
from ssdd_jax.runtime.workdir import Workdir, fingerprint
from ssdd_jax.training import streaming

Array = jax.Array
Say = Callable[[str], None]

# Each stage draws from a key of its own. These numbers stay what they are, so that seeds keep their meaning; a stage
# that a method brings gets one from its name.
_KEYS = {"teacher": 1, "samples": 2, "distill": 3, "approximate": 4}


class Run(NamedTuple):
    """What every stage is given.

    Attributes:
        config: The run's config.
        work: Its folder.
        dataset: Its images.
        problem: What is known of them before any work.
        method: Its method.
        say: Told what a user should know.
        known: The teacher's features, where they are in memory instead of in the folder.
        chosen: Likewise the samples.
    """

    config: ConfigDict
    work: Workdir
    dataset: data.Dataset
    problem: methods.Problem
    method: methods.Method
    say: Say
    known: features.Features | None = None
    chosen: features.Samples | None = None

    def key(self, stage: str, *, shared: bool = False) -> jax.Array:
        """The PRNG key of a stage: from `config.seed`, or from `config.teacher.seed` for what runs may share."""
        seed = self.config.teacher.seed if shared else self.config.seed
        number = _KEYS[stage] if stage in _KEYS else zlib.crc32(stage.encode())
        return jax.random.fold_in(jax.random.key(seed), jnp.uint32(number))

    def samples(self) -> features.Samples:
        """The images that the method starts from, once they are chosen."""
        return self.chosen or features.load_samples(self.work.samples)

    def features(self) -> features.Features:
        """The teacher's features, once they are there."""
        return self.known or features.load(self.work.features, fingerprint(self.dataset.train_images))

    def preprocessing(self) -> preprocess.Preprocessing:
        """The data set's constants."""
        return self.pairs().preprocessing

    def pairs(self) -> streaming.Pairs:
        """The training images and the teacher's features of them, on the host."""
        images, known = self.dataset.train_images, self.features().train
        moments = preprocess.dataset_moments(self.dataset)
        return streaming.Pairs(images, known, preprocess.fit(images, known, moments=moments))

    def resident(self, *, features: bool = True) -> bool:
        """Whether the training images, with the teacher's features or without, are kept on the device."""
        size = self.problem.images * (self.problem.image_numbers + (4 * self.problem.dim if features else 0))
        return streaming.fits(size, self.config.devices.gigabytes)

    def backbone(self) -> Any:
        """The teacher for images as the data set's constants normalise them; None if its features were brought.

        Of one that the run has trained the variables of its `ResNet`, of another a `models.frozen.Frozen`.
        """
        if self.config.teacher.features:
            return None
        variables, about = self.teacher()
        found: Any = teacher.backbone(variables)
        if "network" in about:
            found = teacher.describe(about).frozen(found, given=preprocess.dataset_moments(self.dataset))
        return jax.tree.map(jnp.asarray, found)

    def teacher(self) -> tuple[Any, dict[str, Any]]:
        """Variables of the trained teacher, and its description."""
        return teacher.load(self.work.teacher)

    def source(self) -> methods.Source:
        """The data that the method's steps are given: all, or none of the images where they are streamed."""
        if not self.resident():
            return _some(self, np.zeros(0, np.int32), np.zeros(0, np.int32))
        pairs = self.pairs()
        return _as_source(self, pairs, pairs.on_device(), self.samples().rows)

    def start(self) -> methods.Source:
        """The data that the method's `init` and `export` are given: its samples, and what else it looks at."""
        samples, count = self.samples().rows, self.problem.images
        rows = self.method.look(self.key("distill"), count) if self.method.look else np.zeros(0, np.int32)
        if rows is None:
            return _some(self, np.arange(count), samples)
        return _some(self, np.concatenate([samples, np.asarray(rows)]), np.arange(len(samples)))


def _some(run: Run, rows: np.ndarray, samples: np.ndarray) -> methods.Source:
    """Some rows alone; `samples` are positions among them."""
    pairs = run.pairs()
    some = pairs._replace(images=streaming.gather(pairs.images, rows), features=streaming.gather(pairs.features, rows))
    return _as_source(run, pairs, some.on_device(), samples)


def _as_source(run: Run, pairs: streaming.Pairs, on_device: tuple[Array, Array], samples: np.ndarray) -> methods.Source:
    views = jnp.asarray(run.samples().views)
    return methods.Source(
        *on_device,
        samples=jnp.asarray(samples, jnp.int32),
        view_targets=pairs.preprocessing.targets(views),
        preprocessing=pairs.preprocessing,
        teacher=run.backbone(),
        prepared=run.method.load(run) if run.method.load else None,
    )


def mesh_of(config: ConfigDict) -> Mesh | None:
    """The devices that a config asks for, None for one alone; see `devices.make`."""
    trained = not (config.teacher.features or config.teacher.source)
    batches = {"teacher.batch_size": config.teacher.batch_size} if trained else {}
    pooled = config.method in methods.POOLED
    if pooled:
        batches["distill.batch_size"] = config.distill.batch_size
    models = config.pool.models_per_step if pooled else 1
    return devices.make(config.devices.pool, config.devices.data, models=models, batches=batches)
