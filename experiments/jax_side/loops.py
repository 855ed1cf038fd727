"""The JAX side of the benchmark: the library's own steps of a distillation in compiled loops, on random data."""

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
    """A distillation at its start, on random data: what to learn, the models, `images (n,H,W,C)`, `targets (n,D)`."""

    params: decoder.Params
    models: pool.Pool
    images: jax.Array
    targets: jax.Array
    key: jax.Array


class Compiled:
    """A function compiled for its arguments, with what that took and what it needs.

    Args:
        function: What is compiled.
        arguments: Arrays, or shapes; the first is donated where `donate`.
        donate: Whether the first argument's memory is used for the results.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, donate: bool = False):
        began = time.perf_counter()
        self.call = jax.jit(function, donate_argnums=0 if donate else ()).lower(*arguments).compile()
        self.seconds = time.perf_counter() - began

    def memory(self) -> int | None:
        """Bytes of arguments, results and what lies between, less what is used twice; None where unknown."""
        found = self.call.memory_analysis()
        if found is None:
            return None
        together = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
        return int(together - found.alias_size_in_bytes)


class Loop:
    """A step in a compiled loop whose length is an argument and whose state stays on the device.

    Args:
        step: `(i, state, data) -> state`.
        state: The start; copied, since it is donated.
        data: Passed to every step.
        turns: Turns of the loop in one call.
        steps_per_turn: Steps in each.
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

    def _call(self, turns: jax.Array) -> None:
        self.state = jax.block_until_ready(self.compiled.call(self.state, self.data, turns))

    def timed(self) -> Timed:
        """The loop as the benchmark times it, after one turn."""
        return Timed(self, self.steps, self.compiled.memory, self.compiled.seconds, lambda: self._call(jnp.int32(1)))


def precision(options: argparse.Namespace) -> str:
    """`float32` or `bfloat16`: what the networks are computed in."""
    if options.precision != "auto":
        return str(options.precision)
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def inner_settings(options: argparse.Namespace) -> inner.Settings:
    """How a student is trained."""
    return inner.Settings(precision=precision(options))


def pool_settings(options: argparse.Namespace) -> pool.Settings:
    """The pool's constants; no model gets old enough to be renewed, as hardly one in a thousand does in earnest."""
    return pool.Settings(
        size=options.pool, vectorize=options.vectorize, widths=options.widths, inner=inner_settings(options)
    )


def outer_settings(options: argparse.Namespace) -> outer.Settings:
    """The outer problem's constants."""
    return outer.Settings(vectorize=options.vectorize, precision=precision(options))


def make_problem(options: argparse.Namespace) -> Problem:
    """Random images and targets of the sizes asked for, parameterized by `bases` image and feature bases."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape, count = (options.size, options.size, 3), options.data or max(4 * options.batch, options.images)
    views = tuple(augment.VIEWS)[: options.views]
    # NumPy's numbers need no program of their own to be compiled.
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
    fresh = [
        inner.init(key, shape, options.dim, widths=options.widths) for key in jax.random.split(keys[1], options.pool)
    ]
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), *fresh)
    return Problem(params, pool.Pool(models, jnp.zeros(options.pool, jnp.int32), keys[2]), images, targets, keys[2])


def bases(options: argparse.Namespace) -> int:
    """Image bases, and feature bases: half as many as images, which is about what the budget allows."""
    return max(1, options.images // 2)


def loop(part: str, problem: Problem, options: argparse.Namespace) -> Loop:
    """`outer`, `inner` or `whole` of a step; models and real images are drawn as `methods.boost` does."""
    settings, outer_set = pool_settings(options), outer_settings(options)
    mask = decoder.learned(problem.params)

    # Models and rows are drawn in every step, as in a real run: a fixed batch would be embedded once before the loop.
    def drawn(i: Any, models: inner.State, data: Problem) -> tuple[jax.Array, outer.Batch]:
        key_models, key_rows = jax.random.split(jax.random.fold_in(data.key, i))
        indices = pool.draw(key_models, options.pool, options.models_per_step)
        rows = jax.random.randint(key_rows, (options.batch,), 0, len(data.images))
        variables = jax.tree.map(lambda leaf: leaf[indices], models.variables)
        return indices, outer.Batch(variables, data.images[rows], data.targets[rows])

    def outer_step(i: Any, state: outer.State, data: Problem) -> outer.State:
        return outer.step(state, drawn(i, data.models.models, data)[1], settings=outer_set, mask=mask)[0]

    def inner_step(_: Any, state: inner.State, pairs: tuple[jax.Array, jax.Array]) -> inner.State:
        return inner.step(state, *pairs, settings=settings.inner)[0]

    def whole_step(i: Any, state: tuple[outer.State, pool.Pool], data: Problem) -> tuple[outer.State, pool.Pool]:
        learned, models = state
        indices, batch = drawn(i, models.models, data)
        learned, _ = outer.step(learned, batch, settings=outer_set, mask=mask)
        return learned, pool.step(models, indices, *decoder.decode_pairs(learned.params), settings=settings)

    if part == "inner":
        return Loop(inner_step, first_model(problem), jax.jit(decoder.decode_pairs)(problem.params), options.steps)
    start = outer.init(problem.params, settings=outer_set, mask=mask)
    if part == "outer":
        return Loop(outer_step, start, problem, options.steps)
    return Loop(whole_step, (start, problem.models), problem, options.steps)


def first_model(problem: Problem) -> inner.State:
    """The first model of the pool."""
    return jax.tree.map(lambda leaf: leaf[0], problem.models.models)


def train_and_steps(problem: Problem, options: argparse.Namespace) -> tuple[Timed, Timed]:
    """One call of a jitted `inner.train`, and as many of a jitted `inner.step`: their ratio is a scan's overhead."""
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
