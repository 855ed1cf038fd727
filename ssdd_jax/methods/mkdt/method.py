"""MKDT (Joshi, Ni and Mirzasoleiman, "Dataset Distillation via Knowledge Distillation: Towards Efficient
Self-Supervised Pre-training of Deep Networks", ICLR 2025): images, targets and the student's rate are learned by
matching trajectories of experts.

Published: 100 experts (instance-norm ConvNet of width 128, SGD 0.1, momentum 0.9, decay 1e-4, batch 256), the
high-loss subset as the start, 40 steps unrolled, 5,000 outer steps; image rate 1e3 and starts before epoch 2 at 2 % of
CIFAR, 1e4 and 5 at 5 %; on Tiny ImageNet 10 steps unrolled, 10,000 outer steps and an image rate of 1e5. Its students
are then trained at the learned rate (`config.evaluate.own_rate`).

Differences: targets are centred and scaled as everywhere in this package instead of the teacher's raw features, so
that equal rates do not give exactly equal steps; the last batch of an epoch is filled up instead of smaller; every step
draws from all experts, where the published code reads one file of them for a run, in which there is one.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssdd_jax import distilled
from ssdd_jax.errors import UserError
from ssdd_jax.methods.base import Definition, Feed, Method, Problem, Run, Source
from ssdd_jax.methods.mkdt import matching, trajectories
from ssdd_jax.methods.mkdt import stage as expert_stage

Array = jax.Array

TITLE = "MKDT"

ADVICE = "try smaller config.mkdt.image_learning_rate, target_learning_rate and rate_learning_rate in another --workdir"


class State(NamedTuple):
    """A distillation in progress.

    Attributes:
        step: Outer steps done, int32.
        key: PRNG key; folded with `step`, never advanced.
        matching: The learned parameters, and their momentum.
    """

    step: Array
    key: Array
    matching: matching.State


def make(config: ConfigDict, problem: Problem) -> Method:
    """Build MKDT from a config.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.

    Returns:
        The method.

    Raises:
        UserError: If the images cannot be halved once for each block of an expert.
    """
    count = config.storage.N
    settings, students = matching_settings(config), expert_stage.settings_of(config)
    stage = expert_stage.stage(config, problem, keep=True)

    def init(key: Array, source: Source) -> State:
        images = source.preprocessing.images(source.images[source.samples])
        params = matching.Params(images, source.view_targets[0], jnp.float32(config.mkdt.rate))
        return State(jnp.zeros((), jnp.int32), key, matching.init(params, settings=settings))

    def step(state: State, source: Source, item: dict[str, Array]) -> tuple[State, matching.Info]:
        # Folded from the step number, so that a resumed run draws the same batches.
        indices = matching.draw_rows(jax.random.fold_in(state.key, state.step), count, settings=settings)
        start, target = (
            trajectories.unflatten(item[end], students, problem.image_shape, problem.dim) for end in ("start", "target")
        )
        learned, info = matching.step(state.matching, start, target, indices, settings=settings)
        # A student cannot be trained at a rate that is not positive: the loop stops where it became so.
        info = info._replace(loss=jnp.where(learned.params.rate > 0, info.loss, jnp.nan))
        return State(state.step + 1, state.key, learned), info

    def export(key: Array, state: State, source: Source) -> distilled.DistilledSet:
        images, targets, rate = state.matching.params
        # Students of the set train at the learned rate; the comparison also catches NaN.
        if not rate > 0:
            raise UserError(f"distill: the student's rate became {float(rate):.3g}, but it must be above 0; {ADVICE}")
        return distilled.from_pairs(images, targets, source.preprocessing, learning_rate=float(rate))

    def feed(run: Run) -> Feed:
        return trajectories.feed(
            expert_stage.store(run),
            students,
            max_start_epoch=config.experts.start_epochs,
            expert_epochs=config.experts.epochs,
            seed=config.seed,
        )

    return Method(
        init,
        step,
        export,
        steps=config.distill.steps,
        samples=count,
        title=TITLE,
        stages=(stage,),
        feed=feed,
        advice=ADVICE,
        show=lambda state: {"images": state.matching.params.images},
        shapes=expert_stage.shapes(config, problem),
        example_feed=lambda run: trajectories.random_feed(students, problem.image_shape, problem.dim),
    )


def matching_settings(config: ConfigDict) -> matching.Settings:
    """Read the settings of the matching problem from a config."""
    options = config.mkdt
    return matching.Settings(
        unroll=options.unroll,
        batch_size=options.batch_size,
        image_learning_rate=options.image_learning_rate,
        target_learning_rate=options.target_learning_rate,
        rate_learning_rate=options.rate_learning_rate,
        momentum=options.momentum,
    )


DEFINITION = Definition(
    make,
    titles={"mkdt": TITLE},
    editions={
        "mkdt": {
            "method": "mkdt",
            "distill.samples": "high_loss",
            "distill.steps": 5000,
            "distill.steps_per_call": 10,
        }
    },
    cpu_steps=(300, 200),
    lower="config.experts.vectorize, config.mkdt.batch_size or config.mkdt.unroll",
)
