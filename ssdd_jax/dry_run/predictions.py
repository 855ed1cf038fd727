"""The plan of a run: what its stages consist of, which are done, and what the others will take on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from ssdd_jax.dry_run import contents, costs, evaluating
from ssdd_jax.dry_run.standins import StandIns
from ssdd_jax.dry_run.timing import Cost, measure
from ssdd_jax.methods import Stage
from ssdd_jax.methods.base import Run
from ssdd_jax.training import streaming

# Stages that every run has; those of a method bring their own trials.
COSTS: dict[str, Callable[[StandIns], list[Cost]]] = {
    "teacher": costs.of_teacher,
    "features": costs.of_features,
    "samples": costs.of_samples,
    "distill": costs.of_distill,
    "approximate": costs.of_approximate,
    "evaluate": evaluating.of_evaluate,
}


class Prediction(NamedTuple):
    """A stage before it is run.

    Attributes:
        name: Of the stage.
        state: `done`, or what of it is done; empty where nothing is.
        costs: What is left of it, measured; none where it is done, or takes a few seconds whatever the run.
        seconds: What it takes, where that is known without costs.
        lower: Config keys to lower where it needs more memory than the device has.
    """

    name: str
    state: str
    costs: tuple[Cost, ...] = ()
    seconds: float | None = None
    lower: str = ""

    @property
    def done(self) -> bool:
        """Whether nothing is left of it."""
        return self.state in (contents.DONE, "brought", "nothing to learn")

    @property
    def total(self) -> float:
        """Seconds, compiling included; not a number where a cost could not be measured."""
        return sum((cost.total for cost in self.costs), self.seconds or 0.0)

    @property
    def compiling(self) -> float:
        """Seconds of these that compiling takes."""
        return sum(cost.compiling for cost in self.costs if cost.count)

    @property
    def memory(self) -> int:
        """Bytes on the device, of its largest program; 0 where that is little."""
        return max((cost.memory for cost in self.costs), default=0)


class Plan(NamedTuple):
    """A run before it is run.

    Attributes:
        title: The folder, the method and the machine.
        N: The budget in images.
        shapes: Names and shapes of what matters.
        parts: Numbers stored, by part.
        budget: Numbers that N images and their features take.
        stages: The stages in order.
        available: Bytes of memory that the device has.
    """

    title: str
    N: int
    shapes: list[tuple[str, str]]
    parts: dict[str, int]
    budget: int
    stages: list[Prediction]
    available: int

    @property
    def seconds(self) -> float:
        """Of all stages; not a number where one could not be measured."""
        return sum(one.total for one in self.stages)

    @property
    def compiling(self) -> float:
        """Seconds of these that compiling takes."""
        return sum(one.compiling for one in self.stages)

    @property
    def memory(self) -> int:
        """Bytes on the device, of the stage that needs most."""
        return max((one.memory for one in self.stages), default=0)


def make(run: Run, stages: Sequence[Stage], *, data_seconds: float = 0.0) -> Plan:
    """Describe a run and measure a few steps of each of its stages; nothing is written.

    Args:
        run: The run, of which anything may be done already.
        stages: Its stages after the data, up to the last that is wanted.
        data_seconds: What loading the data took.

    Returns:
        The plan.

    Raises:
        UserError: If the stages refuse the config.
    """
    config, problem = run.config, run.problem
    stand = StandIns(run)
    return Plan(
        title=f"{run.work.folder}: {config.method}, N={config.storage.N}, on {jax.devices()[0].device_kind}",
        N=config.storage.N,
        shapes=contents.shapes_of(run),
        parts=contents.parts_of(run),
        budget=config.storage.N * (problem.image_numbers + problem.dim),
        stages=[Prediction("data", "", seconds=data_seconds), *(_predict(stand, stage) for stage in stages)],
        available=streaming.memory_bytes(),
    )


def _predict(stand: StandIns, stage: Stage) -> Prediction:
    prediction = Prediction(stage.name, contents.state_of(stand.run, stage), lower=stage.lower)
    if prediction.done:
        return prediction
    if stage.trials is not None:
        return prediction._replace(costs=tuple(measure(trial) for trial in stage.trials(stand)))
    if stage.name in COSTS:
        return prediction._replace(costs=tuple(COSTS[stage.name](stand)))
    return prediction
