"""Bilevel distillation against a model pool (KRR-ST, section 3), whatever the pairs are decoded from.

Each outer step draws models of the pool, differentiates their closed-form loss in what is learned, takes a step of
AdamW, and trains the drawn models by one step on the new pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssdd_jax import inner, outer, pool
from ssdd_jax.errors import UserError
from ssdd_jax.methods.base import Problem, Source

Array = jax.Array

ADVICE = "try a smaller config.distill.learning_rate or a larger config.distill.ridge_scale in another --workdir"


class State(NamedTuple):
    """A distillation in progress.

    Attributes:
        step: Outer steps done, int32.
        key: PRNG key; folded with `step`, never advanced.
        outer: What is learned, and AdamW's moments.
        pool: The inner models.
    """

    step: Array
    key: Array
    outer: outer.State
    pool: pool.Pool


class Info(NamedTuple):
    """Logged per step: loss, gradient norm, and the mean age of the pool's models."""

    loss: Array
    gradient_norm: Array
    mean_age: Array


class Functions(NamedTuple):
    """`init(key, source) -> State` and `step(state, source) -> (State, Info)`."""

    init: Callable[[Array, Source], State]
    step: Callable[[State, Source], tuple[State, Info]]


def make(
    config: ConfigDict,
    problem: Problem,
    *,
    start: Callable[[Array, Source], Any],
    decode: outer.Decode,
    learned: Callable[[Any], Any] = lambda params: None,
) -> Functions:
    """The start and the step of a method that learns against the pool.

    Args:
        config: See `ssdd_jax.config.default`; its keys `distill`, `pool`, `inner` and `student`.
        problem: Shapes of the data.
        start: From two PRNG keys `(2,)` and the data to what is learned, a pytree.
        decode: From that to images `(S,H,W,C)` and targets `(S,D)`.
        learned: From that to a pytree of booleans: what weight decay applies to. None for everything.

    Returns:
        Both functions.

    Raises:
        UserError: If a batch is larger than the data set.
    """
    size = config.distill.batch_size
    if size > problem.images:
        raise UserError(f"config.distill.batch_size={size} is more than the {problem.images} images")
    settings, pool_set = outer_settings(config), pool_settings(config)

    def init(key: Array, source: Source) -> State:
        *keys, key_pool, key_steps = jax.random.split(key, 4)
        params = start(jnp.stack(keys), source)
        models = pool.init(key_pool, *decode(params), settings=pool_set)
        return State(
            jnp.zeros((), jnp.int32), key_steps, outer.init(params, settings=settings, mask=learned(params)), models
        )

    def step(state: State, source: Source) -> tuple[State, Info]:
        key_models, key_batch = jax.random.split(jax.random.fold_in(state.key, state.step))
        indices = pool.draw(key_models, pool_set.size, config.pool.models_per_step)
        rows = jax.random.randint(key_batch, (size,), 0, len(source.images))
        batch = outer.Batch(
            models=jax.tree.map(lambda leaf: leaf[indices], state.pool.models.variables),
            x_real=source.preprocessing.images(source.images[rows]),
            y_real=source.targets[rows],
        )
        mask = learned(state.outer.params)
        after, info = outer.step(state.outer, batch, settings=settings, decode=decode, mask=mask)
        models = pool.step(state.pool, indices, *decode(after.params), settings=pool_set)
        return (
            State(state.step + 1, state.key, after, models),
            Info(info.loss, info.gradient_norm, models.ages.astype(jnp.float32).mean()),
        )

    return Functions(init, step)


def pool_settings(config: ConfigDict) -> pool.Settings:
    """The pool's constants out of a config."""
    return pool.Settings(
        size=config.pool.size,
        steps=config.pool.steps,
        vectorize=config.pool.vectorize,
        widths=tuple(config.student.widths),
        norm=config.student.norm,
        inner=inner.Settings(**config.inner),
    )


def outer_settings(config: ConfigDict) -> outer.Settings:
    """The outer problem's constants out of a config."""
    return outer.Settings(
        learning_rate=config.distill.learning_rate,
        steps=config.distill.steps,
        weight_decay=config.distill.weight_decay,
        ridge_scale=config.distill.ridge_scale,
        vectorize=config.pool.vectorize,
    )
