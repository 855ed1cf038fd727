"""The JAX side of the benchmark: the library's own steps in compiled loops, on random data; and what they compute."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ssdd_jax import augment, decoder, inner, outer, pool


class Problem(NamedTuple):
    """A distillation at its start, on random data: what to learn, the models, `images (n,H,W,C)`, `targets (n,D)`."""

    params: decoder.Params
    models: pool.Pool
    images: jax.Array
    targets: jax.Array
    key: jax.Array


class Loop:
    """A step in a compiled loop whose length is an argument and whose state stays on the device.

    Args:
        step: `(i, state, data) -> state`.
        state: The start; copied, since it is donated.
        data: Passed to every step.
        steps: How many in one call.
    """

    def __init__(self, step: Callable[[Any, Any, Any], Any], state: Any, data: Any, steps: int):
        def run(state: Any, data: Any, count: Any) -> Any:
            return lax.fori_loop(0, count, lambda i, state: step(i, state, data), state)

        self.state, self.data, self.count = jax.tree.map(jnp.copy, state), data, jnp.int32(steps)
        began = time.perf_counter()
        self.compiled = jax.jit(run, donate_argnums=0).lower(self.state, data, self.count).compile()
        self.compile_seconds = time.perf_counter() - began

    def __call__(self) -> None:
        self.state = jax.block_until_ready(self.compiled(self.state, self.data, self.count))


def pool_settings(options: argparse.Namespace) -> pool.Settings:
    """The pool's constants; no model gets old enough to be renewed, as hardly one in a thousand does in earnest."""
    return pool.Settings(size=options.pool, vectorize=options.vectorize, widths=options.widths)


def make_problem(options: argparse.Namespace) -> Problem:
    """Random images and targets of the sizes asked for, parameterized by half as many bases as images."""
    keys = jax.random.split(jax.random.key(0), 6)
    shape, count = (options.size, options.size, 3), max(4 * options.batch, options.images)
    views = tuple(augment.VIEWS)[: options.views]
    images = jax.random.normal(keys[0], (count, *shape))
    targets = jax.random.normal(keys[1], (count, options.dim))
    params = decoder.init(
        keys[2],
        images,
        targets,
        jax.random.normal(keys[3], (options.views, options.images, options.dim)),
        image_bases=max(1, options.images // 2),
        feature_bases=max(1, options.images // 2),
        base_size=(min(16, options.size),) * 2,
        views=views,
        start="random",
    )
    fresh = [
        inner.init(key, shape, options.dim, widths=options.widths) for key in jax.random.split(keys[4], options.pool)
    ]
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), *fresh)
    return Problem(params, pool.Pool(models, jnp.zeros(options.pool, jnp.int32), keys[5]), images, targets, keys[5])


def loops(problem: Problem, options: argparse.Namespace) -> dict[str, Loop]:
    """The three parts of a step; `outer` and `whole` draw models and real images as `methods.boost` does."""
    settings = pool_settings(options)
    outer_settings, mask = outer.Settings(vectorize=options.vectorize), decoder.learned(problem.params)

    # Models and rows are drawn in every step, as in a real run: a fixed batch would be embedded once before the loop.
    def drawn(i: Any, models: inner.State, data: Problem) -> tuple[jax.Array, outer.Batch]:
        key_models, key_rows = jax.random.split(jax.random.fold_in(data.key, i))
        indices = pool.draw(key_models, options.pool, options.models_per_step)
        rows = jax.random.randint(key_rows, (options.batch,), 0, len(data.images))
        variables = jax.tree.map(lambda leaf: leaf[indices], models.variables)
        return indices, outer.Batch(variables, data.images[rows], data.targets[rows])

    def outer_step(i: Any, state: outer.State, data: Problem) -> outer.State:
        batch = drawn(i, data.models.models, data)[1]
        return outer.step(state, batch, settings=outer_settings, mask=mask)[0]

    def inner_step(_: Any, state: inner.State, pairs: tuple[jax.Array, jax.Array]) -> inner.State:
        return inner.step(state, *pairs, settings=settings.inner)[0]

    def whole_step(i: Any, state: tuple[outer.State, pool.Pool], data: Problem) -> tuple[outer.State, pool.Pool]:
        learned, models = state
        indices, batch = drawn(i, models.models, data)
        learned, _ = outer.step(learned, batch, settings=outer_settings, mask=mask)
        return learned, pool.step(models, indices, *decoder.decode_pairs(learned.params), settings=settings)

    start = outer.init(problem.params, settings=outer_settings, mask=mask)
    model = jax.tree.map(lambda leaf: leaf[0], problem.models.models)
    pairs = jax.jit(decoder.decode_pairs)(problem.params)
    return {
        "outer": Loop(outer_step, start, problem, options.steps),
        "inner": Loop(inner_step, model, pairs, options.steps),
        "whole": Loop(whole_step, (start, problem.models), problem, options.steps),
    }


def product(size: int) -> Callable[[], None]:
    """A matrix product at the backend's default precision: float32 on a CPU, which may be TF32 on a GPU."""
    matrix = jax.random.normal(jax.random.key(1), (size, size))
    multiply = jax.jit(jnp.matmul)

    def call() -> None:
        jax.block_until_ready(multiply(matrix, matrix))

    return call


def train_and_steps(problem: Problem, options: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], None]]:
    """One call of a jitted `inner.train`, and as many of a jitted `inner.step`: their ratio is a scan's overhead."""
    model = jax.tree.map(lambda leaf: leaf[0], problem.models.models)
    pairs = jax.jit(decoder.decode_pairs)(problem.params)
    train = jax.jit(inner.train, static_argnums=3, donate_argnums=0)
    step = jax.jit(inner.step, donate_argnums=0)
    states = [jax.tree.map(jnp.copy, model) for _ in range(2)]

    def scanned() -> None:
        states[0] = jax.block_until_ready(train(states[0], *pairs, options.steps)[0])

    def single() -> None:
        for _ in range(options.steps):
            states[1] = jax.block_until_ready(step(states[1], *pairs)[0])

    return scanned, single


def flops(options: argparse.Namespace) -> dict[str, float]:
    """Floating-point operations of each part, a multiplication and an addition counting as two.

    A block's convolution costs `18 I O h w` per image; only these, the linear layer, the products of kernel regression
    and the decoding are counted. With `S = images * views` pairs, `B` real images and `k` models per step: the outer
    step embeds `B + S` images and differentiates the `S` in their pixels (as much again); the inner step embeds and
    differentiates `S` images in weights and pixels (twice as much again), without the pixels of the first block.
    Kernel regression: kernels `2 F S (S + B)`, the solution `2/3 S^3 + 2 S^2 D`, the prediction `2 B S D`, and twice
    that backward. The count is that of the method, the same for both sides.
    """
    pairs, side, before, first, network = options.images * options.views, options.size, 3, 0.0, 0.0
    for i, width in enumerate(options.widths):
        block = 18.0 * before * width * side**2
        first, network = block if i == 0 else first, network + block
        before, side = width, side // 2
    features, dim, batch = before * side**2 + 1, options.dim, options.batch
    regression = 2 * features * pairs * (pairs + batch) + 2 / 3 * pairs**3 + 2 * pairs * dim * (pairs + batch)
    bases, low = max(1, options.images // 2), 3 * min(16, options.size) ** 2
    decoding = 2 * bases * (options.images * low + pairs * dim)
    embedding = network * (batch + 2 * pairs)
    one_outer = embedding + 3 * regression + 3 * decoding
    one_inner = pairs * (3 * (network + 2 * (features - 1) * dim) - first)
    count = options.models_per_step
    return {"outer": count * one_outer, "inner": one_inner, "whole": count * (one_outer + one_inner) + decoding}
