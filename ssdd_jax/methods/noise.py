"""Gaussian noise with the teacher's features of it: a lower bound for every method."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssdd_jax import distilled, teacher
from ssdd_jax.methods.base import Definition, Method, Problem, Source
from ssdd_jax.methods.subset import State

Array = jax.Array

TITLE = "Gaussian noise"


def make(config: ConfigDict, problem: Problem) -> Method:
    """Build the noise baseline: N normal images with the data set's mean and deviation per channel, and their features.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.

    Returns:
        The method.
    """
    shape = (config.storage.N, *problem.image_shape)

    def init(key: Array, source: Source) -> State:
        return State(jnp.zeros((), jnp.int32), key)

    def export(key: Array, state: State, source: Source) -> distilled.DistilledSet:
        # Network inputs are normalised, so standard normal values have the data set's mean and deviation.
        images = jax.random.normal(state.key, shape)
        extract = functools.partial(teacher.features_of_inputs, source.teacher)
        batch = teacher.batch_of(source.teacher, problem.image_shape)
        features = jax.lax.map(lambda image: extract(image[None])[0], images, batch_size=batch)
        targets = source.preprocessing.targets(features)
        return distilled.from_pairs(images, targets, source.preprocessing)

    return Method(init, None, export, steps=0, samples=0, title=TITLE)


DEFINITION = Definition(
    make,
    titles={"noise": TITLE},
    editions={"noise": {"method": "noise"}},
    network=True,
    forward=True,
    floor=True,
    lower="config.teacher.input_size or config.storage.N",
)
