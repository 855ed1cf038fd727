"""KRR-ST (Lee, Lee and Hwang, "Self-Supervised Dataset Distillation for Transfer Learning", ICLR 2024): free pixels and
free targets, learned against a model pool by kernel ridge regression.

Published: AdamW without decay, rate 1e-4 on CIFAR-100 and 1e-5 at 64x64, falling linearly to a thousandth over 160,000
steps, from 1,000 (CIFAR-100) or 2,000 (Tiny ImageNet) random images with the teacher's features.

Differences: the published loop crops and flips the real images at random and runs the teacher on them at every step;
here they are not augmented, and the teacher's features are computed once. Targets are centred and scaled instead of
raw, and pixels start normalised. The published loop never resets the counter of a pool model that has reached its last
step, so that such a model is drawn afresh at every later turn; here, as in the paper, a fresh model starts at age 0.
"""

from __future__ import annotations

import jax
from ml_collections import ConfigDict

from ssdd_jax import distilled
from ssdd_jax.methods import bilevel, budget
from ssdd_jax.methods.base import Definition, Method, Problem, Source
from ssdd_jax.storage import packing

Array = jax.Array

TITLE = "KRR-ST"


def make(config: ConfigDict, problem: Problem) -> Method:
    """Build KRR-ST from a config.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.

    Returns:
        The method.

    Raises:
        UserError: If a batch is larger than the data set.
    """

    def start(key: Array, source: Source) -> tuple[Array, Array]:
        return source.preprocessing.images(source.images[source.samples]), source.view_targets[0]

    def export(key: Array, state: bilevel.State, source: Source) -> distilled.DistilledSet:
        images, targets = state.outer.params
        return distilled.from_pairs(images, targets, source.preprocessing)

    images, targets = budget.precisions(config)

    def decode(pairs: tuple[Array, Array]) -> tuple[Array, Array]:
        # Images and targets are the parameters themselves, rounded as they will be stored.
        named = zip(("images", "targets"), pairs, strict=True)
        x, y = (packing.rounded(name, array, images=images, targets=targets) for name, array in named)
        return x, y

    functions = bilevel.make(config, problem, start=start, decode=decode)
    return Method(
        functions.init,
        functions.step,
        export,
        steps=config.distill.steps,
        samples=config.storage.N,
        title=TITLE,
        feed=functions.feed,
        advice=bilevel.ADVICE,
        show=lambda state: {"images": state.outer.params[0]},
        spread=bilevel.spread,
        forms=bilevel.forms(config, problem.platform),
        shapes=bilevel.shapes(config, problem),
        trials=bilevel.trials(config, problem.platform),
    )


DEFINITION = Definition(
    make,
    titles={"krr_st": TITLE},
    editions={"krr_st": {"method": "krr_st", "distill.steps": 160_000, "distill.learning_rate": 1e-4}},
    pooled=True,
    cpu_steps=(500, 800),
    lower="config.pool.vectorize or config.distill.batch_size",
)
