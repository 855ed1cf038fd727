"""JAX side of the benchmark: the stages around a distillation, as the package computes them, on random data."""

from __future__ import annotations

import argparse
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.jax_side.loops import Compiled, Loop, Problem, first_model, inner_settings
from experiments.measure.timing import Timed
from ssdd_jax import approximate, decoder, inner, teacher
from ssdd_jax.data.preprocess import from_bytes
from ssdd_jax.models import convnet
from ssdd_jax.training import epochs

# Arbitrary constants for random images.
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
HIDDEN = approximate.Settings().hidden


class Teacher(NamedTuple):
    """Initial state of a teacher's training: its functions, its state, and random `images (n,H,W,C)`, uint8."""

    trainer: teacher.Trainer
    state: teacher.State
    images: jax.Array


def make_teacher(options: argparse.Namespace) -> Teacher:
    """Create a Barlow Twins training of the given sizes, without the warm-up, whose first rates are close to zero."""
    shape, count = (options.size, options.size, 3), 2 * options.batch
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8))
    trainer = teacher.make(teacher_settings(options), image_shape=shape, images_count=count, mean=MEAN, std=STD)
    return Teacher(trainer, trainer.init(jax.random.key(2)), images)


def teacher_settings(options: argparse.Namespace) -> teacher.Settings:
    """Return the settings of the teacher's training."""
    return teacher.Settings(
        width=options.teacher_width,
        blocks=options.teacher_blocks,
        projector_hidden=options.projector,
        projector_output=options.projector,
        batch_size=options.batch,
        warmup_epochs=0,
    )


def teacher_loop(made: Teacher, options: argparse.Namespace) -> Loop:
    """Create the loop of the teacher's training step: gather a batch, augment it twice, update the network."""
    rows = jnp.asarray(made.trainer.rows(jax.random.key(2))(0))

    def step(_: Any, state: teacher.State, images: jax.Array) -> teacher.State:
        return made.trainer.step(state, images[rows])[0]

    return Loop(step, made.state, made.images, options.teacher_steps)


def features(made: Teacher, options: argparse.Namespace) -> Timed:
    """Prepare the computation of the teacher's features of a uint8 batch."""
    network = teacher.backbone(made.state.variables)
    arguments = (network, made.images[: options.batch], jnp.asarray(MEAN), jnp.asarray(STD))

    def of_bytes(network: Any, images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
        return teacher.features_of_inputs(network, from_bytes(images, mean, std))

    compiled = Compiled(of_bytes, *arguments)

    def call() -> None:
        jax.block_until_ready([compiled.call(*arguments) for _ in range(options.teacher_steps)])

    return Timed(call, options.teacher_steps, compiled.memory, compiled.seconds)


def approximation(problem: Problem, options: argparse.Namespace) -> Timed:
    """Prepare the complete fit of the approximation networks to random coefficients, in `fit_steps` steps."""
    coefficients, feature_bases = problem.params.feature_coefficients, problem.params.feature_bases
    settings = approximate.Settings(hidden=HIDDEN, steps=options.fit_steps)

    def fit(key: jax.Array, coefficients: jax.Array, feature_bases: jax.Array) -> approximate.Networks:
        return approximate.fit(key, coefficients, bases=feature_bases, settings=settings)

    compiled = Compiled(fit, problem.key, coefficients, feature_bases)

    def call() -> None:
        jax.block_until_ready(compiled.call(problem.key, coefficients, feature_bases))

    return Timed(call, options.fit_steps, compiled.memory, compiled.seconds)


def evaluation(problem: Problem, options: argparse.Namespace) -> Loop:
    """Create the loop of training epochs of one network over shuffled mini-batches, as in `evaluate.training`."""
    pairs = jax.jit(decoder.decode_pairs)(problem.params)
    count, network = len(pairs[0]), convnet.ConvNet(options.widths, options.dim)
    _, per_epoch = epochs.batch_of(count, options.evaluation_batch)
    step = functools.partial(inner.step, settings=inner_settings(options), network=network)

    def epoch(number: Any, state: inner.State, data: tuple[jax.Array, tuple[jax.Array, jax.Array]]) -> inner.State:
        key, (images, targets) = data

        def train(state: inner.State, rows: jax.Array) -> inner.State:
            return step(state, images[rows], targets[rows])[0]

        return epochs.one(key, state, train, number, count=count, batch_size=options.evaluation_batch)

    turns = -(-options.steps // per_epoch)
    return Loop(epoch, first_model(problem), (problem.key, pairs), turns, per_epoch)
