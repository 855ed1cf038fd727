"""The stage that trains experts, for MKDT and for the high-loss samples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssdd_jax import inner
from ssdd_jax.errors import UserError
from ssdd_jax.methods.base import Problem, Run, Stage, StandIns, Trial
from ssdd_jax.methods.mkdt import experts, trajectories
from ssdd_jax.models.convnet import check_divisible
from ssdd_jax.runtime.memory import readable
from ssdd_jax.training import epochs

NAME = "experts"


def stage(config: ConfigDict, problem: Problem, *, keep: bool) -> Stage:
    """The stage.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.
        keep: Keep the trajectories; otherwise only how well the experts fit each image after their first epoch.

    Returns:
        The stage.

    Raises:
        UserError: If the images cannot be halved once for each block of an expert.
    """
    settings = settings_of(config)
    if not keep:
        settings = settings._replace(epochs=1)
    try:
        check_divisible(problem.image_shape[:2], len(settings.widths))
    except ValueError as error:
        raise UserError(f"config.experts.widths: {error}") from None

    def train(run: Run) -> None:
        pairs, key, folder = run.pairs(), run.key(NAME, shared=True), run.work.own(NAME, shared=True)
        options: dict[str, Any] = {"settings": settings, "say": run.say, "keep": keep}
        if run.resident():
            experts.make(key, folder, *pairs.on_device(), pairs.preprocessing, **options)
        else:
            experts.make_of(key, folder, pairs, **options)

    def trials(stand: StandIns) -> list[Trial]:
        return _trials(stand, settings, keep=keep)

    return Stage(
        NAME,
        train,
        shared=("data", "teacher", "precision", "experts"),
        output=f"{NAME}/losses.npy",
        trials=trials,
        lower="config.experts.vectorize or config.experts.batch_size",
    )


def shapes(config: ConfigDict, problem: Problem) -> tuple[tuple[str, str], ...]:
    """Rows of the dry run's table: the trajectories that MKDT keeps."""
    settings = settings_of(config)
    disk = trajectories.bytes_needed(settings, problem.image_shape, problem.dim)
    return ((NAME, f"{settings.count} of {settings.epochs} epochs, {readable(disk)} on the disk"),)


def _trials(stand: StandIns, settings: trajectories.Settings, *, keep: bool) -> list[Trial]:
    """An epoch's steps of the experts that are missing, and the losses after them."""
    problem, images = stand.run.problem, stand.run.dataset.train_images
    folder = stand.run.work.own(NAME, shared=True)
    missing = settings.count - len(list(folder.glob("expert_*.npy" if keep else "group_*.npy")))
    groups, together = -(-missing // settings.vectorize), min(settings.vectorize, settings.count)
    size, per_epoch = epochs.batch_of(problem.images, settings.batch_size)
    tried = min(per_epoch, 2)
    # An epoch of a data set that is cut to the mini-batches to be timed.
    count = size * tried
    data = jnp.asarray(images[np.arange(count) % problem.images]), jnp.asarray(stand.features(count))
    keys = jax.random.split(jax.random.key(0), together)
    options: dict[str, Any] = {"widths": settings.widths, "norm": settings.norm, "settings": settings.inner}
    states = jax.vmap(lambda key: inner.init(key, problem.image_shape, problem.dim, **options))(keys)
    variables = jax.tree.map(lambda leaf: leaf[0], states.variables)
    constants = stand.preprocessing
    steps = groups * (settings.epochs if keep else 1) * per_epoch
    return [
        Trial(
            "steps",
            steps,
            experts.train_epoch,
            (keys, states, *data, constants),
            options={"settings": settings},
            units=tried,
        ),
        Trial("losses", missing * problem.images, experts.image_losses, (variables, *data, constants), units=count),
    ]


def store(run: Run) -> trajectories.Store:
    """What the stage has made."""
    return trajectories.Store(run.work.own(NAME, shared=True))


def settings_of(config: ConfigDict) -> trajectories.Settings:
    """How experts are trained, out of a config: for as many epochs as a piece of a trajectory can reach."""
    options = config.experts
    return trajectories.Settings(
        count=options.count,
        epochs=options.start_epochs - 1 + options.epochs,
        widths=tuple(options.widths),
        norm=options.norm,
        batch_size=options.batch_size,
        vectorize=options.vectorize,
        inner=inner.Settings(options.learning_rate, options.momentum, options.weight_decay),
    )
