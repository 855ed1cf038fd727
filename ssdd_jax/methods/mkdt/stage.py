"""The stage that trains experts, for MKDT and for the high-loss samples."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from ssdd_jax import inner
from ssdd_jax.errors import UserError
from ssdd_jax.methods.base import Problem, Run, Stage
from ssdd_jax.methods.mkdt import experts, trajectories
from ssdd_jax.models.convnet import check_divisible

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

    return Stage(NAME, train, shared=("data", "teacher", "precision", "experts"))


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
