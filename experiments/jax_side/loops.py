"""JAX side of the benchmark: the package's distillation steps in compiled loops, on random data."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.measure.timing import Timed
from ssdd_jax import augment, decoder, inner, outer, pool


class Problem(NamedTuple):
    """Initial state of a distillation on random data: parameters, models, `images (n,H,W,C)`, `targets (n,D)`."""

    params: decoder.Params
    models: pool.Pool
    images: jax.Array
    targets: jax.Array
    key: jax.Array


class Compiled:
    """Function compiled ahead of time, with the compile time and the memory that it needs.

    Args:
        function: The function to compile.
        arguments: Arrays, or shapes; the first is donated if `donate`.
        donate: Whether the first argument's memory is reused for the results.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, donate: bool = False):
        began = time.perf_counter()
        self.call = jax.jit(function, donate_argnums=0 if donate else ()).lower(*arguments).compile()
        self.seconds = time.perf_counter() - began

    def memory(self) -> int | None:
        """Return the bytes of arguments, results and temporaries without double counting; None if unknown."""
        analysis = self.call.memory_analysis()
        if analysis is None:
            return None
        total = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
        return int(total - analysis.alias_size_in_bytes)


class Loop:
    """Step in a compiled loop whose length is an argument and whose state stays on the device.

    Args:
        step: `(i, state, data) -> state`.
        state: Initial state; copied, since it is donated.
        data: Data passed to every step.
        turns: Iterations of the loop per call.
        steps_per_turn: Steps per iteration.
    """

    def __init__(
        self, step: Callable[[Any, Any, Any], Any], state: Any, data: Any, turns: int, steps_per_turn: int = 1
    ):
        def run(state: Any, data: Any, count: Any) -> Any:
            return lax.fori_loop(0, count, lambda i, state: step(i, state, data), state)

        self.state, self.data, self.count = jax.tree.map(jnp.copy, state), data, jnp.int32(turns)
        self.compiled = Compiled(run, self.state, data, self.count, donate=True)
        self.steps = turns * steps_per_turn

    def __call__(self) -> None:
        self._call(self.count)

    def run(self, turns: int) -> float:
        """Run a number of iterations and return the seconds that they took."""
        began = time.perf_counter()
        self._call(jnp.int32(turns))
        return time.perf_counter() - began

    def _call(self, turns: jax.Array) -> None:
        self.state = jax.block_until_ready(self.compiled.call(self.state, self.data, turns))

    def timed(self) -> Timed:
        """Return the loop for timing, with one iteration as warm-up."""
        return Timed(self, self.steps, self.compiled.memory, self.compiled.seconds, lambda: self._call(jnp.int32(1)))


def precision(options: argparse.Namespace) -> str:
    """Return the precision of the networks, `float32` or `bfloat16`."""
    if options.precision != "auto":
        return str(options.precision)
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def inner_settings(options: argparse.Namespace) -> inner.Settings:
    """Return the settings of a student's training."""
    return inner.Settings(precision=precision(options), form=options.form)


def pool_settings(options: argparse.Namespace) -> pool.Settings:
    """Return the pool's settings; no model gets old enough to be replaced, which is rare in a run too."""
    return pool.Settings(
        size=options.pool, vectorize=options.vectorize, widths=options.widths, inner=inner_settings(options)
    )


def outer_settings(options: argparse.Namespace) -> outer.Settings:
    """Return the settings of the outer problem."""
    return outer.Settings(
        vectorize=options.vectorize,
        precision=precision(options),
        form=options.form,
    )


def make_problem(options: argparse.Namespace) -> Problem:
    """Create random images and targets of the given sizes, parameterized by `bases` image and feature bases."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape, count = (options.size, options.size, 3), options.data or max(4 * options.batch, options.images)
    views = tuple(augment.VIEWS)[: options.views]
    # NumPy draws them without compiling a program per shape.
    generator = np.random.default_rng(0)
    images, targets, samples = (
        jnp.asarray(generator.standard_normal(size, dtype=np.float32))
        for size in ((count, *shape), (count, options.dim), (options.views, options.images, options.dim))
    )
    params = decoder.init(
        keys[0],
        images,
        targets,
        samples,
        image_bases=bases(options),
        feature_bases=bases(options),
        base_size=(min(16, options.size),) * 2,
        views=views,
        start="random",
    )
    initialized = [
        inner.init(key, shape, options.dim, widths=options.widths) for key in jax.random.split(keys[1], options.pool)
    ]
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), *initialized)
    return Problem(params, pool.Pool(models, jnp.zeros(options.pool, jnp.int32), keys[2]), images, targets, keys[2])


def bases(options: argparse.Namespace) -> int:
    """Return the number of image bases and of feature bases: half as many as images, about what the budget allows."""
    return max(1, options.images // 2)


def loop(part: str, problem: Problem, options: argparse.Namespace) -> Loop:
    """Create the loop of the `outer`, `inner` or `whole` step; models and images are drawn as in `methods.boost`."""
    settings, outer_set = pool_settings(options), outer_settings(options)
    mask = decoder.learned(problem.params)

    # Models and rows are drawn in every step, as in a real run: a fixed batch would be embedded once before the loop.
    def draw(i: Any, models: inner.State, data: Problem) -> tuple[jax.Array, outer.Batch]:
        key_models, key_rows = jax.random.split(jax.random.fold_in(data.key, i))
        indices = pool.draw(key_models, options.pool, options.models_per_step)
        rows = jax.random.randint(key_rows, (options.batch,), 0, len(data.images))
        variables = jax.tree.map(lambda leaf: leaf[indices], models.variables)
        return indices, outer.Batch(variables, data.images[rows], data.targets[rows])

    def outer_step(i: Any, state: outer.State, data: Problem) -> outer.State:
        return outer.step(state, draw(i, data.models.models, data)[1], settings=outer_set, mask=mask)[0]

    def inner_step(_: Any, state: inner.State, pairs: tuple[jax.Array, jax.Array]) -> inner.State:
        return inner.step(state, *pairs, settings=settings.inner)[0]

    def whole_step(i: Any, state: tuple[outer.State, pool.Pool], data: Problem) -> tuple[outer.State, pool.Pool]:
        learned, models = state
        indices, batch = draw(i, models.models, data)
        learned, _ = outer.step(learned, batch, settings=outer_set, mask=mask)
        return learned, pool.step(models, indices, *decoder.decode_pairs(learned.params), settings=settings)

    if part == "inner":
        return Loop(inner_step, first_model(problem), jax.jit(decoder.decode_pairs)(problem.params), options.steps)
    start = outer.init(problem.params, settings=outer_set, mask=mask)
    if part == "outer":
        return Loop(outer_step, start, problem, options.steps)
    return Loop(whole_step, (start, problem.models), problem, options.steps)


def first_model(problem: Problem) -> inner.State:
    """Return the first model of the pool."""
    return jax.tree.map(lambda leaf: leaf[0], problem.models.models)


def train_and_steps(problem: Problem, options: argparse.Namespace) -> tuple[Timed, Timed]:
    """Return a jitted `inner.train` and as many steps of a jitted `inner.step`: their ratio is the scan's overhead."""
    model, settings = first_model(problem), inner_settings(options)
    pairs = jax.jit(decoder.decode_pairs)(problem.params)
    train = jax.jit(functools.partial(inner.train, settings=settings), static_argnums=3, donate_argnums=0)
    step = jax.jit(functools.partial(inner.step, settings=settings), donate_argnums=0)
    states = [jax.tree.map(jnp.copy, model) for _ in range(2)]

    def scanned() -> None:
        states[0] = jax.block_until_ready(train(states[0], *pairs, options.steps)[0])

    def single() -> None:
        for _ in range(options.steps):
            states[1] = jax.block_until_ready(step(states[1], *pairs)[0])

    return Timed(scanned, options.steps), Timed(single, options.steps)
