"""A subset of the images with the teacher's features: the baseline of every method.

`config.distill.samples` chooses the images: random ones, those nearest to the centres of k-means in feature space, or
those with the highest loss of a student (the high-loss subset of MKDT).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssdd_jax import distilled
from ssdd_jax.methods.base import Definition, Method, Problem, Source

Array = jax.Array

# Keys are values of `config.distill.samples`, and also the names of the editions.
TITLES = {"random": "random subset", "kmeans": "k-means subset", "high_loss": "high-loss subset"}


class State(NamedTuple):
    """State of a method that learns nothing: the step stays 0, and the key is unused unless `export` draws from it."""

    step: Array
    key: Array


def make(config: ConfigDict, problem: Problem) -> Method:
    """Build the subset baseline: N images of the data set and their features.

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

    return Method(init, None, export, steps=0, samples=config.storage.N, title=TITLES[config.distill.samples])


DEFINITION = Definition(
    make,
    titles=TITLES,
    editions={
        "random": {"method": "subset"},
        "kmeans": {"method": "subset", "distill.samples": "kmeans"},
        "high_loss": {"method": "subset", "distill.samples": "high_loss"},
    },
    coded=True,
)
