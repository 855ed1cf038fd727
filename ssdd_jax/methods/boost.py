"""Boost-SSDD (Yu, Yao and Chiu, "Boost Self-Supervised Dataset Distillation via Parameterization, Predefined
Augmentation, and Approximation", ICLR 2025): parameterized pairs under fixed views, learned against a model pool."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssdd_jax import approximate, decoder, distilled, inner, outer, pool, storage
from ssdd_jax.methods.base import Method, Problem, Source

Array = jax.Array

# Principal components are taken of at most this many images: more do not move them, and would fill the memory.
START_IMAGES = 50_000


class State(NamedTuple):
    """A distillation in progress.

    Attributes:
        step: Outer steps done, int32.
        key: PRNG key; folded with `step`, never advanced.
        outer: Parameters of the set, and AdamW's moments.
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


def plan_of(config: ConfigDict, problem: Problem) -> storage.Plan:
    """The sizes that fit the budget; see `storage.plan`."""
    height, width, _ = problem.image_shape
    side = config.storage.base_size
    return storage.plan(
        N=config.storage.N,
        image_shape=problem.image_shape,
        dim=problem.dim,
        base_size=(min(side, height), min(side, width)),
        views=len(config.views),
        hidden=config.storage.hidden,
        images=problem.images,
        M=config.storage.M,
        U=config.storage.U,
        V=config.storage.V,
    )


def pool_settings(config: ConfigDict) -> pool.Settings:
    """The pool's constants out of a config."""
    return pool.Settings(
        size=config.pool.size,
        steps=config.pool.steps,
        vectorize=config.pool.vectorize,
        widths=tuple(config.student.widths),
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


def make(config: ConfigDict, problem: Problem) -> Method:
    """Boost-SSDD as the config describes it.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.

    Returns:
        The method.

    Raises:
        UserError: If the sizes asked for do not fit the budget or the data.
    """
    plan = plan_of(config, problem)
    settings, pool_set = outer_settings(config), pool_settings(config)
    views = tuple(config.views)

    def init(key: Array, source: Source) -> State:
        key_decoder, key_choice, key_pool, key_steps = jax.random.split(key, 4)
        images, targets, samples = _start_images(key_choice, source)
        params = decoder.init(
            key_decoder,
            source.preprocessing.images(images),
            targets,
            source.view_targets,
            image_bases=plan.U,
            feature_bases=plan.V,
            base_size=plan.base_size,
            samples=samples,
            views=views,
            start=config.distill.start,
        )
        models = pool.init(key_pool, *decoder.decode_pairs(params), settings=pool_set)
        learned = outer.init(params, settings=settings, mask=decoder.learned(params))
        return State(jnp.zeros((), jnp.int32), key_steps, learned, models)

    def step(state: State, source: Source) -> tuple[State, Info]:
        key_models, key_batch = jax.random.split(jax.random.fold_in(state.key, state.step))
        indices = pool.draw(key_models, pool_set.size, config.pool.models_per_step)
        rows = jax.random.randint(key_batch, (config.distill.batch_size,), 0, len(source.images))
        batch = outer.Batch(
            models=jax.tree.map(lambda leaf: leaf[indices], state.pool.models.variables),
            x_real=source.preprocessing.images(source.images[rows]),
            y_real=source.targets[rows],
        )
        learned, info = outer.step(state.outer, batch, settings=settings, mask=decoder.learned(state.outer.params))
        models = pool.step(state.pool, indices, *decoder.decode_pairs(learned.params), settings=pool_set)
        return (
            State(state.step + 1, state.key, learned, models),
            Info(info.loss, info.gradient_norm, models.ages.astype(jnp.float32).mean()),
        )

    def export(key: Array, state: State, source: Source) -> distilled.DistilledSet:
        params = state.outer.params
        networks = approximate.fit(
            key,
            params.feature_coefficients,
            bases=params.feature_bases,
            settings=approximate.Settings(
                config.storage.hidden, config.approximate.steps, config.approximate.learning_rate
            ),
        )
        return distilled.from_params(params, networks, source.preprocessing)

    return Method(init, step, export, steps=config.distill.steps, samples=plan.M, views=views)


def _start_images(key: Array, source: Source) -> tuple[Array, Array, Array]:
    """The images and targets that the start looks at, and the positions of the samples among them."""
    if len(source.images) <= START_IMAGES:
        return source.images, source.targets, source.samples
    more = jax.random.choice(key, len(source.images), (START_IMAGES,), replace=False)
    rows = jnp.concatenate([source.samples, more])
    return source.images[rows], source.targets[rows], jnp.arange(len(source.samples))
