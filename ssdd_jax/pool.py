"""The pool of inner models: stacked on the device, at spread ages, renewed when old (KRR-ST, section 3.2).

One pytree holds all L models. How many of the drawn models are trained side by side is `vectorize`: all of them on an
accelerator, one or two where memory or cache says so.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from ssdd_jax import inner

Array = jax.Array


class Settings(NamedTuple):
    """The pool's constants.

    Attributes:
        size: Number of models L.
        steps: Age Z at which a model is renewed.
        vectorize: How many models are trained side by side.
        widths: Channels of each block of a model.
        norm: Its norm, `batch` or `instance`.
        inner: How a model is trained.
    """

    size: int = 10
    steps: int = 1000
    vectorize: int = 1
    widths: tuple[int, ...] = (128, 256, 512)
    norm: str = "batch"
    inner: inner.Settings = inner.Settings()


class Pool(NamedTuple):
    """The models in training.

    Attributes:
        models: `inner.State` whose every leaf has a leading axis L.
        ages: Steps that each model has been trained, int32 `(L,)`.
        key: PRNG key for the models to come.
    """

    models: inner.State
    ages: Array
    key: Array


def init(key: Array, x: Array, y: Array, *, settings: Settings = Settings()) -> Pool:
    """L models, each trained on the pairs for a number of steps drawn uniformly from 1 to Z-1.

    Args:
        key: PRNG key.
        x: Images of the pairs `(S,H,W,C)`.
        y: Targets of the pairs `(S,D)`.
        settings: The pool's constants.

    Returns:
        The pool.
    """
    chex.assert_rank([x, y], [4, 2])
    key_ages, key_models, key_next = jax.random.split(key, 3)
    ages = jax.random.randint(key_ages, (settings.size,), 1, max(settings.steps, 2))

    def grow(member: tuple[Array, Array]) -> inner.State:
        key, age = member
        model = _fresh(key, x, y, settings)
        return lax.fori_loop(0, age, lambda _, model: inner.step(model, x, y, settings=settings.inner)[0], model)

    models = lax.map(grow, (jax.random.split(key_models, settings.size), ages), batch_size=settings.vectorize)
    return Pool(models, ages, key_next)


def draw(key: Array, size: int, count: int) -> Array:
    """`count` of `size` models without repetition, int32 `(count,)`."""
    return jax.random.permutation(key, size)[:count] if count < size else jnp.arange(size)


def step(pool: Pool, indices: Array, x: Array, y: Array, *, settings: Settings = Settings()) -> Pool:
    """Train the drawn models by one step, or renew those that have reached age Z.

    Args:
        pool: The models.
        indices: Which models, int `(k,)`, no repetition.
        x: Images of the pairs `(S,H,W,C)`.
        y: Targets of the pairs `(S,D)`.
        settings: The pool's constants.

    Returns:
        The pool after the step.
    """
    chex.assert_rank([indices, x, y], [1, 4, 2])
    drawn = jax.tree.map(lambda leaf: leaf[indices], pool.models)
    ages = pool.ages[indices]
    old = ages >= settings.steps
    key_next, *keys = jax.random.split(pool.key, len(indices) + 1)

    def trained(model: inner.State) -> inner.State:
        return inner.step(model, x, y, settings=settings.inner)[0]

    def renewed(models: inner.State) -> inner.State:
        fresh = jax.vmap(lambda key: _fresh(key, x, y, settings))(jnp.stack(keys))
        return jax.tree.map(lambda new, was: jnp.where(_like(old, new), new, was), fresh, models)

    stepped = lax.map(trained, drawn, batch_size=settings.vectorize)
    # Fresh weights are drawn only when a model is renewed, which is once in Z steps.
    stepped = lax.cond(jnp.any(old), renewed, lambda models: models, stepped)
    models = jax.tree.map(lambda all_, new: all_.at[indices].set(new), pool.models, stepped)
    return Pool(models, pool.ages.at[indices].set(jnp.where(old, 0, ages + 1)), key_next)


def _fresh(key: Array, x: Array, y: Array, settings: Settings) -> inner.State:
    shape, dim = x.shape[1:], y.shape[-1]
    return inner.init(key, shape, dim, widths=settings.widths, norm=settings.norm, settings=settings.inner)


def _like(flags: Array, leaf: Array) -> Array:
    return flags.reshape(-1, *(1,) * (leaf.ndim - 1))
