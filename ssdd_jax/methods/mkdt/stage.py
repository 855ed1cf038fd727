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
    """Build the stage that trains experts.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.
        keep: Whether to keep the trajectories; otherwise only the loss of each image after the first epoch is kept.

    Returns:
        The stage.

    Raises:
        UserError: If the images cannot be halved once for each block of an expert.
    """
    settings = settings_of(config)
    # The losses are measured after the first epoch; without trajectories no other is needed.
    if not keep:
        settings = settings._replace(epochs=1)
    try:
        check_divisible(problem.image_shape[:2], len(settings.widths))
    except ValueError as error:
        raise UserError(f"config.experts.widths: {error}") from None

    def train(run: Run) -> None:
        # A shared key, so that runs which share the folder would train the same experts.
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
        # A run that needs the losses alone leaves no trajectories.
        output=f"{NAME}/{trajectories.file_name(settings.count - 1) if keep else 'losses.npy'}",
        trials=trials,
        lower="config.experts.vectorize or config.experts.batch_size",
    )


def shapes(config: ConfigDict, problem: Problem) -> tuple[tuple[str, str], ...]:
    """Return the row of the dry run's table for the trajectories that MKDT keeps."""
    settings = settings_of(config)
    disk = trajectories.bytes_needed(settings, problem.image_shape, problem.dim)
    return ((NAME, f"{settings.count} of {settings.epochs} epochs, {readable(disk)} on the disk"),)


def _trials(stand: StandIns, settings: trajectories.Settings, *, keep: bool) -> list[Trial]:
    """Trials of the steps of the missing experts, and of the losses after their first epoch."""
    problem, images = stand.run.problem, stand.run.dataset.train_images
    folder = stand.run.work.own(NAME, shared=True)
    missing = settings.count - len(list(folder.glob("expert_*.npy" if keep else "group_*.npy")))
    # Experts of a group train side by side, so the number of steps depends on the groups.
    groups, together = -(-missing // settings.vectorize), min(settings.vectorize, settings.count)
    size, per_epoch = epochs.batch_of(problem.images, settings.batch_size)
    tried = min(per_epoch, 2)
    # The trial trains one epoch of a data set that is as small as the timed mini-batches.
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
    """Trajectories and losses that the stage has written."""
    return trajectories.Store(run.work.own(NAME, shared=True))


def settings_of(config: ConfigDict) -> trajectories.Settings:
    """Read the settings of the experts from a config; they train for as many epochs as a matched section can reach."""
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
