"""PyTorch calls for each stage of the benchmark, eager and compiled, with the weights of the JAX side.

Requires PyTorch: import this module only if it is installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from experiments.jax_side import loops as jax_loops
from experiments.jax_side import stages as jax_stages
from experiments.measure import machine
from experiments.measure.timing import Timed
from experiments.torch_side import official
from experiments.torch_side import reference as torch_reference
from experiments.torch_side import stages as torch_stages
from ssdd_jax import approximate

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Sides:
    """PyTorch on the device that JAX uses; `notes` and `layouts` are for the report.

    Args:
        options: Options of the benchmark.
    """

    def __init__(self, options: argparse.Namespace):
        torch.set_num_threads(machine.cores())
        self.options = options
        self.device = torch.device("cpu" if jax.default_backend() == "cpu" else "cuda")
        self.notes: list[str] = []
        self.layouts: dict[str, dict[str, float]] = {}

    def product(self, dtype: str) -> Timed:
        """Prepare a product of matrices."""
        return torch_reference.product(self.options.product, dtype, self.device)

    def teacher(self, made: jax_stages.Teacher, stages: tuple[str, ...]) -> dict[str, dict[str, Timed]]:
        """Prepare `teacher` and `features`, by stage and side. The training gets views that are already augmented."""
        options, rate = self.options, float(jax_stages.teacher_settings(self.options).learning_rate)
        constants = jax_stages.teacher_settings(options)
        settings = torch_stages.TeacherSettings(
            constants.off_diagonal, constants.scale, rate * options.batch / 256, constants.weight_decay
        )
        images = self._images(made.images[: options.batch].astype(np.float32) / 255 * 4 - 2)

        def reference(layout: str, compiled: bool = False) -> torch_stages.TeacherReference:
            network = self._teacher(made).to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload, unused-ignore]
            return torch_stages.TeacherReference(network, settings, jax_loops.precision(options), compiled=compiled)

        def call(stage: str, one: torch_stages.TeacherReference, layout: str, share: int = 1) -> Timed:
            batch = images[: max(2, len(images) // share)].contiguous(memory_format=LAYOUTS[layout])
            second = batch.flip(3)
            steps: dict[str, Callable[[], Any]] = {
                "teacher": lambda: one.step(batch, second),
                "features": lambda: one.features(batch),
            }
            count = options.teacher_steps if share == 1 else min(options.teacher_steps, 3)
            return torch_reference.repeated(steps[stage], count, self.device)

        calls = {}
        # The memory format is chosen by a trial on a quarter of the batch.
        for stage in stages:
            layout = self._faster(stage, {name: call(stage, reference(name), name, 4) for name in LAYOUTS})
            calls[stage] = {"torch": call(stage, reference(layout), layout)}
            self._add_compiled(stage, calls[stage], lambda: call(stage, reference(layout, True), layout))  # noqa: B023
        return calls

    def distillation(
        self, problem: jax_loops.Problem, options: argparse.Namespace, stages: tuple[str, ...]
    ) -> dict[str, dict[str, Timed]]:
        """Prepare `outer`, `inner`, `whole`, `evaluation` and `approximation`, by stage and side."""
        work = torch_reference.Work(
            images=self._images(problem.images),
            targets=torch_reference.tensor(problem.targets).to(self.device),
            batch=options.batch,
            models_per_step=options.models_per_step,
            steps=options.steps,
            evaluation_batch=options.evaluation_batch,
        )
        trained_stages = tuple(stage for stage in stages if stage != "approximation")
        calls_by_stage: dict[str, dict[str, Timed]] = {}
        if trained_stages:
            pairs = f"{options.images * options.views} pairs"
            # The memory format is chosen by single steps of the largest stage.
            trial = work._replace(steps=1)
            settings = {name: distillation_settings(options)._replace(memory_format=LAYOUTS[name]) for name in LAYOUTS}
            calls = {
                name: torch_reference.timed(trained_stages[-1], self.reference(problem, options, one), trial)
                for name, one in settings.items()
            }
            chosen = settings[self._faster(pairs, calls)]
            eager = self.reference(problem, options, chosen)
            compiled = self.reference(problem, options, chosen, compiled=True) if options.compile else eager
            for stage in trained_stages:
                calls_by_stage[stage] = {"torch": torch_reference.timed(stage, eager, work)}
                self._add_compiled(
                    stage,
                    calls_by_stage[stage],
                    lambda: torch_reference.timed(stage, compiled, work),  # noqa: B023, used at once
                )
            if "whole" in trained_stages and options.models_per_step == 1:
                calls_by_stage["whole"]["official"] = self._official(work.images, chosen, options)
        if "approximation" in stages:
            calls_by_stage["approximation"] = {"torch": self._approximation(problem, options)}
        return calls_by_stage

    def reference(
        self,
        problem: jax_loops.Problem,
        options: argparse.Namespace,
        settings: torch_reference.Settings,
        compiled: bool = False,
    ) -> torch_reference.Reference:
        """Create the initial state of a distillation."""
        params, stacked = jax.tree.map(np.asarray, (problem.params, problem.models.models.variables))
        shape = (options.size, options.size, 3)
        models = [
            torch_reference.network_from(jax.tree.map(lambda leaf: leaf[i], stacked), shape)  # noqa: B023, used at once
            for i in range(options.pool)
        ]
        return torch_reference.Reference(torch_reference.Pairs(params), models, settings, self.device, compiled)

    def _official(self, images: torch.Tensor, settings: torch_reference.Settings, options: argparse.Namespace) -> Timed:
        """Prepare KRR-ST's loop, in float32 as published; the teacher is untrained, which does not affect the time."""
        teacher = torch_stages.ResNet(options.teacher_width, options.teacher_blocks).eval().to(self.device)
        if options.official:
            return official.from_clone(options.official, teacher, images, options)
        return official.described(teacher, images, settings._replace(precision="float32"), options)

    def _approximation(self, problem: jax_loops.Problem, options: argparse.Namespace) -> Timed:
        params = problem.params
        coefficients, bases = (
            torch_reference.tensor(array).to(self.device)
            for array in (params.feature_coefficients, params.feature_bases)
        )
        settings = approximate.Settings(hidden=jax_stages.HIDDEN, steps=options.fit_steps)
        start = approximate.init(problem.key, options.views, params.feature_bases.shape[0], settings.hidden)
        start = jax.tree.map(np.asarray, start)
        timed = torch_reference.repeated(lambda: torch_stages.fit(start, coefficients, bases, settings), 1, self.device)
        return timed._replace(steps=options.fit_steps)

    def _add_compiled(self, stage: str, calls: dict[str, Timed], make: Callable[[], Timed]) -> None:
        """Add the compiled side if `torch.compile` works on this machine; the first call compiles."""
        if not self.options.compile or self.notes:
            return
        began = time.perf_counter()
        try:
            compiled = make()
            compiled.call()
        except RuntimeError as error:  # no C++ compiler, most often
            self.notes.append(f"torch.compile does not work here: {(str(error).splitlines() or [''])[0]}")
            return
        calls["torch_compiled"] = compiled._replace(compile_seconds=time.perf_counter() - began)

    def _faster(self, name: str, calls: dict[str, Timed]) -> str:
        chosen, self.layouts[name] = torch_reference.faster(calls)
        return chosen

    def _images(self, images: Any) -> torch.Tensor:
        return torch_reference.tensor(images).to(self.device).permute(0, 3, 1, 2).contiguous()

    def _teacher(self, made: jax_stages.Teacher) -> torch_stages.Teacher:
        variables = jax.tree.map(np.asarray, made.state.variables)
        options = self.options
        network = torch_stages.teacher_from(variables, options.teacher_width, options.teacher_blocks, options.projector)
        return network.to(self.device)


def distillation_settings(options: argparse.Namespace) -> torch_reference.Settings:
    """Return the settings of the JAX side."""
    learning, outer = jax_loops.inner_settings(options), jax_loops.outer_settings(options)
    return torch_reference.Settings(
        outer_rate=outer.learning_rate,
        inner_rate=learning.learning_rate,
        momentum=learning.momentum,
        weight_decay=learning.weight_decay,
        ridge_scale=outer.ridge_scale,
        precision=jax_loops.precision(options),
    )
