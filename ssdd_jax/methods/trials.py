"""Dry-run trials that several stages share."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ssdd_jax.evaluate.protocols import probes
from ssdd_jax.methods.base import StandIns, Trial
from ssdd_jax.training import epochs

# Number of steps of a probe that are timed.
TRIED = 100


def linear(stand: StandIns, width: int, *, times: int) -> Trial:
    """Build a trial of a linear probe on random features `(n,width)` that is trained `times` times."""
    options, problem = stand.run.config.evaluate, stand.run.problem
    size, per_epoch = epochs.batch_of(problem.images, options.probe_batch_size)
    settings = probes.SgdSettings(TRIED, options.probe_batch_size, options.probe_learning_rate)
    # A few batches of features suffice: the time of a step does not depend on the size of the data set.
    count = min(problem.images, 4 * size)
    features = jnp.asarray(stand.normal(count, width))
    labels = jnp.arange(count, dtype=jnp.int32) % problem.classes
    # A probe trains whole epochs, of the data set as of the few features that are timed here.
    tried_epoch = epochs.batch_of(count, size)[1]
    return Trial(
        "steps",
        times * -(-options.probe_steps // per_epoch) * per_epoch,
        jax.jit(probes.fit_linear_krr_st, static_argnames=("classes", "settings")),
        (jax.random.key(0), (features, labels)),
        options={"classes": problem.classes, "settings": settings},
        units=-(-TRIED // tried_epoch) * tried_epoch,
        held=4 * problem.images * width,
    )
