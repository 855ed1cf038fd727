"""A subset of the images with the teacher's features: what every method is compared with.

Which images is `config.distill.samples`: random ones, those nearest to the centres of k-means in feature space, or
those that a student finds hardest (the high-loss subset of MKDT).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssdd_jax import distilled
from ssdd_jax.methods.base import Method, Problem, Source

Array = jax.Array


class State(NamedTuple):
    """Nothing is learned: no steps, and a key that nothing uses."""

    step: Array
    key: Array


def make(config: ConfigDict, problem: Problem) -> Method:
    """N images of the data set and their features.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.

    Returns:
        The method.
    """

    def init(key: Array, source: Source) -> State:
        return State(jnp.zeros((), jnp.int32), key)

    def export(key: Array, state: State, source: Source) -> distilled.DistilledSet:
        images = source.preprocessing.images(source.images[source.samples])
        return distilled.from_pairs(images, source.view_targets[0], source.preprocessing)

    return Method(init, None, export, steps=0, samples=config.storage.N)
