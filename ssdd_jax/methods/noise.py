"""Gaussian noise with the teacher's features of it: the floor under every method."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssdd_jax import distilled, teacher
from ssdd_jax.errors import UserError
from ssdd_jax.methods.base import Definition, Method, Problem, Source
from ssdd_jax.methods.subset import State

Array = jax.Array

# Images that go through the teacher together.
BATCH = 256
TITLE = "Gaussian noise"


def make(config: ConfigDict, problem: Problem) -> Method:
    """N images of noise, normal with the mean and deviation of the data set's channels, and their features.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.

    Returns:
        The method.

    Raises:
        UserError: If only the teacher's features are there, not the teacher.
    """
    if not problem.network:
        raise UserError(
            "config.method=noise runs the teacher on noise, and features alone were brought: leave "
            "config.teacher.features empty to train a teacher, or choose another method"
        )
    shape = (config.storage.N, *problem.image_shape)

    def init(key: Array, source: Source) -> State:
        return State(jnp.zeros((), jnp.int32), key)

    def export(key: Array, state: State, source: Source) -> distilled.DistilledSet:
        images = jax.random.normal(state.key, shape)
        one = functools.partial(teacher.features_of_inputs, source.teacher)
        found = jax.lax.map(lambda image: one(image[None])[0], images, batch_size=BATCH)
        targets = source.preprocessing.targets(found)
        return distilled.from_pairs(images, targets, source.preprocessing)

    return Method(init, None, export, steps=0, samples=0, title=TITLE)


DEFINITION = Definition(
    make,
    titles={"noise": TITLE},
    editions={"noise": {"method": "noise"}},
    network=True,
    floor=True,
)
