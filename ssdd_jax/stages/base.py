"""What every stage is given."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssdd_jax import data, features, methods, preprocess, teacher
from ssdd_jax.workdir import Workdir, fingerprint

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
    """

    config: ConfigDict
    work: Workdir
    dataset: data.Dataset
    problem: methods.Problem
    method: methods.Method
    say: Say

    def key(self, stage: str, *, shared: bool = False) -> jax.Array:
        """The PRNG key of a stage: from `config.seed`, or from `config.teacher.seed` for what runs may share."""
        seed = self.config.teacher.seed if shared else self.config.seed
        number = _KEYS[stage] if stage in _KEYS else zlib.crc32(stage.encode())
        return jax.random.fold_in(jax.random.key(seed), jnp.uint32(number))

    def features(self) -> features.Features:
        """The teacher's features, once they are there."""
        return features.load(self.work.features, fingerprint(self.dataset.train_images))

    def preprocessing(self) -> preprocess.Preprocessing:
        """The data set's constants."""
        return preprocess.fit(self.dataset.train_images, self.features().train)

    def backbone(self) -> Any:
        """Variables of the teacher's backbone; None if its features were brought."""
        if self.config.teacher.features:
            return None
        return jax.tree.map(jnp.asarray, teacher.backbone(self.teacher()[0]))

    def teacher(self) -> tuple[Any, dict[str, Any]]:
        """Variables of the trained teacher, and its description."""
        return teacher.load(self.work.teacher)

    def source(self) -> methods.Source:
        """The data that the method distils, once all before it is there."""
        constants, samples = self.preprocessing(), features.load_samples(self.work.samples)
        return methods.Source(
            images=jnp.asarray(self.dataset.train_images),
            targets=constants.targets(jnp.asarray(self.features().train)),
            samples=jnp.asarray(samples.rows),
            view_targets=constants.targets(jnp.asarray(samples.views)),
            preprocessing=constants,
            teacher=self.backbone(),
            prepared=self.method.load(self) if self.method.load else None,
        )
