"""Random stand-ins for the outputs of stages that have not run yet."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax import methods, teacher
from ssdd_jax.data import features
from ssdd_jax.data.preprocess import Preprocessing, dataset_moments, from_bytes
from ssdd_jax.dry_run.timing import Cost, Program, clock, program
from ssdd_jax.methods.base import Run
from ssdd_jax.runtime import devices
from ssdd_jax.stages import distill
from ssdd_jax.stages import teacher as teacher_stage

Array = jax.Array

# Number of random features that are drawn; larger arrays repeat them.
DRAWN = 4096


class StandIns:
    """Inputs of a run's stages for measuring them: real if they exist, otherwise random. Nothing is written."""

    def __init__(self, run: Run):
        self.run = run
        self._random = np.random.default_rng(0)

    @functools.cached_property
    def trainer(self) -> teacher.Trainer:
        """The teacher's training."""
        return teacher_stage.trainer_of(self.run.config, self.run.dataset, mesh=self.run.problem.mesh)

    @functools.cached_property
    def teacher(self) -> tuple[Program, Any]:
        """The compiled start of the teacher's training, and variables of an untrained teacher on the host."""
        init = functools.partial(self.trainer.init, jax.random.key(0))
        shardings = devices.shardings(self.run.problem.mesh, jax.eval_shape(init))
        compiled = program(jax.jit(init, out_shardings=shardings))
        return compiled, jax.device_get(compiled.call().variables)

    @functools.cached_property
    def backbone(self) -> Any:
        """The teacher as `Run.backbone` returns it; None if it is not a network."""
        if not self.run.problem.network:
            return None
        # The stored teacher if its stage is done, the converted one if it has a source, otherwise an untrained one.
        if (self.run.work.teacher / "teacher.json").exists():
            return self.run.backbone()
        if self.run.config.teacher.source:
            variables, description = teacher_stage.from_source(self.run.config, self.run.dataset)
            moments = dataset_moments(self.run.dataset)
            return jax.tree.map(jnp.asarray, description.frozen(variables, given=moments))
        return jax.tree.map(jnp.asarray, teacher.backbone(self.teacher[1]))

    @functools.cached_property
    def job(self) -> Run:
        """The run with features and samples in memory, and a method whose pool is trained for a single step."""
        run, config = self.run, self.run.config.copy_and_resolve_references()
        # Settings that change the duration of the start or of the export, but not the shapes of the state.
        with config.unlocked():
            config.teacher.features = "stand-in"  # not empty, so that no teacher is read
            config.pool.steps = 2
            config.approximate.steps = 1
        # Built from the original problem: its shapes are those of the run.
        method = methods.make(config, run.problem)
        views = self.normal(len(method.views), method.samples, run.problem.dim)
        return run._replace(
            config=config,
            method=method._replace(load=None, feed=method.example_feed or method.feed),
            known=features.Features(self.features(run.problem.images), None),
            chosen=features.Samples(np.arange(method.samples, dtype=np.int32), views),
        )

    @functools.cached_property
    def start(self) -> methods.Source:
        """The data for the method's `init` and `export`."""
        return self.complete(self.job.start())

    @functools.cached_property
    def init(self) -> tuple[Program, tuple[Any, ...]]:
        """The compiled start of the method, and its arguments."""
        if self.job.method.step is None:
            arguments = self.job.key("distill"), self.start
            return program(jax.jit(self.job.method.init), *arguments), arguments
        init: Any = distill.training_of(self.job, self.start).init
        return program(init.func, *init.args), init.args

    @functools.cached_property
    def state(self) -> Any:
        """The method's state at the start."""
        compiled, arguments = self.init
        return compiled.call(*arguments)

    @property
    def preprocessing(self) -> Preprocessing:
        """The data set's constants, with those of the random features."""
        return self.job.preprocessing()

    @property
    def batch_size(self) -> int:
        """Images per forward pass of the teacher on a device."""
        return teacher.batch_of(self.backbone, self.run.problem.image_shape)

    @functools.cached_property
    def batch(self) -> Cost:
        """The cost of the teacher's features of a batch of images on a device."""
        images = self.run.dataset.train_images[np.arange(self.batch_size) % self.run.problem.images]
        mean = jnp.full(images.shape[-1], 0.5)

        def of_bytes(images: Any, backbone: Any, mean: Any, std: Any) -> Any:
            return teacher.features_of_inputs(backbone, from_bytes(images, mean, std))

        arguments = images, self.backbone, mean, mean
        compiled = program(jax.jit(of_bytes), *arguments)
        if not compiled.fits:
            return Cost("batches", 1, math.nan, 0, compiled.compiling, compiled.memory)

        def go(times: int) -> None:
            jax.block_until_ready([compiled.call(*arguments) for _ in range(times)])

        seconds, measured = clock(go, most=10)
        return Cost("batches", 1, seconds, measured, compiled.compiling, compiled.memory)

    def complete(self, source: methods.Source) -> methods.Source:
        """Add the teacher, and the output of the method's own stages if it has any, to a source."""
        method = self.run.method
        prepared = method.example(self) if method.example is not None else None
        return source._replace(teacher=self.backbone, prepared=prepared)

    def normal(self, *shape: int) -> np.ndarray:
        """Draw standard normal values, float32 `(*shape)`."""
        return self._random.standard_normal(shape, np.float32)

    def features(self, count: int) -> np.ndarray:
        """Draw random features in place of the teacher's `(count,D)`."""
        # Drawing random values for a large data set would take longer than what is measured.
        return np.resize(self.normal(min(count, DRAWN), self.run.problem.dim), (count, self.run.problem.dim))
