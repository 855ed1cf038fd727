"""Plan of a run: shapes, the state of its stages, and predicted time and memory of those that are not done."""

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

# Stages of every run; a method's own stages define their trials.
COSTS: dict[str, Callable[[StandIns], list[Cost]]] = {
    "teacher": costs.of_teacher,
    "features": costs.of_features,
    "samples": costs.of_samples,
    "distill": costs.of_distill,
    "approximate": costs.of_approximate,
    "evaluate": evaluating.of_evaluate,
}


class Prediction(NamedTuple):
    """Predicted cost of a stage.

    Attributes:
        name: Name of the stage.
        state: `done`, or the part that is done; empty if nothing is.
        costs: Measured costs of the remaining work; empty if it is done, or takes a few seconds for any run.
        seconds: Duration in seconds, if it is known without costs.
        lower: Config keys to lower if it needs more memory than the device has.
    """

    name: str
    state: str
    costs: tuple[Cost, ...] = ()
    seconds: float | None = None
    lower: str = ""

    @property
    def done(self) -> bool:
        """True if no work is left."""
        return self.state in contents.COMPLETE

    @property
    def total(self) -> float:
        """Seconds including compilation; NaN if a cost could not be measured."""
        return sum((cost.total for cost in self.costs), self.seconds or 0.0)

    @property
    def compiling(self) -> float:
        """Seconds of compilation, included in the total."""
        return sum(cost.compiling for cost in self.costs if cost.count)

    @property
    def memory(self) -> int:
        """Bytes on the device of the largest program; 0 if that is negligible."""
        return max((cost.memory for cost in self.costs), default=0)


class Plan(NamedTuple):
    """Plan of a run.

    Attributes:
        title: The folder, the method and the machine.
        N: Budget in images.
        shapes: Names and shapes of the data, the features and the method's arrays.
        parts: Stored numbers by part.
        budget: Size of N images and their features in numbers; or the bytes of the file.
        stages: Predictions of the stages, in order.
        available: Bytes of memory on the device.
        unit: Of the budget: `numbers` or `bytes`.
    """

    title: str
    N: int
    shapes: list[tuple[str, str]]
    parts: dict[str, int]
    budget: int
    stages: list[Prediction]
    available: int
    unit: str = "numbers"

    @property
    def seconds(self) -> float:
        """Seconds of all stages including compilation; NaN if one could not be measured."""
        return sum(stage.total for stage in self.stages)

    @property
    def compiling(self) -> float:
        """Seconds of compilation, included in the total."""
        return sum(stage.compiling for stage in self.stages)

    @property
    def memory(self) -> int:
        """Bytes on the device of the stage that needs most."""
        return max((stage.memory for stage in self.stages), default=0)


def make(run: Run, stages: Sequence[Stage], *, data_seconds: float = 0.0) -> Plan:
    """Describe a run and measure a few steps of each stage; nothing is written.

    Args:
        run: The run; any of its stages may be done.
        stages: The stages after `data`, up to the last requested one.
        data_seconds: Seconds that loading the data took.

    Returns:
        The plan.

    Raises:
        UserError: If the stages refuse the config.
    """
    config, problem = run.config, run.problem
    # Shared by all stages: a stand-in that is expensive to build is built once.
    stand = StandIns(run)
    return Plan(
        title=f"{run.work.folder}: {config.method}, N={config.storage.N}, on {jax.devices()[0].device_kind}",
        N=config.storage.N,
        shapes=contents.shapes_of(run),
        parts=contents.parts_of(run),
        budget=config.storage.bytes or config.storage.N * (problem.image_numbers + problem.dim),
        unit="bytes" if config.storage.bytes else "numbers",
        stages=[Prediction("data", "", seconds=data_seconds), *(_predict(stand, stage) for stage in stages)],
        available=streaming.memory_bytes(),
    )


def _predict(stand: StandIns, stage: Stage) -> Prediction:
    prediction = Prediction(stage.name, contents.state_of(stand.run, stage), lower=stage.lower)
    if prediction.done:
        return prediction
    # Trials of the stage itself, a measurement of the dry run, or neither for stages that take seconds.
    if stage.trials is not None:
        return prediction._replace(costs=tuple(measure(trial) for trial in stage.trials(stand)))
    if stage.name in COSTS:
        return prediction._replace(costs=tuple(COSTS[stage.name](stand)))
    return prediction
