"""Bilevel distillation against a model pool (KRR-ST, section 3), for any parameterization of the pairs.

Each outer step draws models from the pool, differentiates their closed-form loss with respect to the parameters, takes
one step of AdamW, and trains the drawn models by one step on the new pairs. As published, all pairs take part in every
step; with `distill.pairs_per_step`, as many that are drawn anew, so that a step costs the same for any number of pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssdd_jax import inner, outer, pool
from ssdd_jax.errors import UserError
from ssdd_jax.methods.base import Feed, Form, Problem, Run, Source, StandIns, Trial
from ssdd_jax.models import convnet, count, precision
from ssdd_jax.runtime import devices
from ssdd_jax.training import streaming

Array = jax.Array

# Steps times pairs times values of an image from which on the models of the pool are counted at the start: seconds.
COUNTED = 10_000_000
ADVICE = "try a smaller config.distill.learning_rate or a larger config.distill.ridge_scale in another --workdir"


class State(NamedTuple):
    """A distillation in progress.

    Attributes:
        step: Outer steps done, int32.
        key: PRNG key; folded with `step`, never advanced.
        outer: The learned parameters, and AdamW's moments.
        pool: The inner models.
    """

    step: Array
    key: Array
    outer: outer.State
    pool: pool.Pool


class Info(NamedTuple):
    """Logged per step: loss, gradient norm, and the ages of the pool's models: mean, youngest, oldest."""

    loss: Array
    gradient_norm: Array
    mean_age: Array
    min_age: Array
    max_age: Array


class Functions(NamedTuple):
    """`init(key, source) -> State`, `step(state, source) -> (State, Info)`, and a feed for streamed data."""

    init: Callable[[Array, Source], State]
    step: Callable[..., tuple[State, Info]]
    feed: Callable[[Run], Feed | None]


def make(
    config: ConfigDict,
    problem: Problem,
    *,
    start: Callable[[Array, Source], Any],
    decode: outer.Decode,
    learned: Callable[[Any], Any] = lambda params: None,
) -> Functions:
    """Build the initialization, step and feed of a method that learns against the pool.

    Args:
        config: See `ssdd_jax.config.default`; its keys `distill`, `pool`, `inner` and `student`.
        problem: Shapes of the data.
        start: Maps a PRNG key and the data to the initial parameters, a pytree.
        decode: Maps parameters to images `(S,H,W,C)` and targets `(S,D)`.
        learned: Maps parameters to a weight-decay mask, a pytree of booleans; None to decay all of them.

    Returns:
        The functions.

    Raises:
        UserError: If a batch is larger than the data set.
    """
    # Checked before the teacher is trained, because a run reaches its first outer step much later.
    size = config.distill.batch_size
    if size > problem.images:
        raise UserError(f"config.distill.batch_size={size} is more than the {problem.images} images")
    settings = outer_settings(config, problem.platform)._replace(mesh=problem.mesh)
    # Short ones are not worth a callback, with which XLA's programs are not kept on the disk.
    pool_set = pool_settings(config, problem.platform)._replace(mesh=problem.mesh, counted=COUNTED)

    def init(key: Array, source: Source) -> State:
        # The unused key belongs to `key_of_look`, which splits the same way.
        key_start, _, key_pool, key_steps = jax.random.split(key, 4)
        params = start(key_start, source)
        models = pool.init(key_pool, *decode(params), settings=pool_set)
        return State(
            jnp.zeros((), jnp.int32), key_steps, outer.init(params, settings=settings, mask=learned(params)), models
        )

    def keys_of(key: Array, step: Array) -> tuple[Array, Array, Array]:
        """Derive the keys of a step's models, of its batch and of its pairs; `key` is the state's."""
        key_models, key_batch, key_pairs = jax.random.split(jax.random.fold_in(key, step), 3)
        return key_models, key_batch, key_pairs

    def decode_some(key_pairs: Array, params: Any) -> tuple[Array, Array]:
        """Decode the pairs of a step: all, or some that are drawn anew in every step."""
        return pool.draw_pairs(key_pairs, decode(params), config.distill.pairs_per_step)

    def indices_of(key_batch: Array) -> Array:
        return jax.random.randint(key_batch, (size,), 0, problem.images)

    def feed(run: Run) -> Feed | None:
        if run.resident():
            return None
        # The key that `init` stores in the state: the host draws the batches that a resident run would draw.
        pairs, key = run.pairs(), jax.random.split(run.key("distill"), 4)[3]
        batch_indices = streaming.on_host(lambda key, step: indices_of(keys_of(key, step)[1]))
        rows = devices.rows(problem.mesh, size)

        def read(step: int) -> tuple[np.ndarray, np.ndarray]:
            return pairs.take(batch_indices(key, np.int32(step))[rows.own])

        return streaming.feed(read, steps=config.distill.steps, rows=rows)

    def step(state: State, source: Source, item: tuple[Array, Array] | None = None) -> tuple[State, Info]:
        # Keys depend on the step number alone, so that a resumed run draws the same models and images.
        key_models, key_batch, key_pairs = keys_of(state.key, state.step)
        drawn = pool.draw(key_models, pool_set.size, config.pool.models_per_step)
        # Real images come from the device, or from the feed where they are streamed.
        if item is None:
            batch_indices = devices.over_data(problem.mesh, indices_of(key_batch))
            item = source.images[batch_indices], source.targets[batch_indices]
        else:
            item = devices.over_data(problem.mesh, item)
        batch = outer.Batch(
            models=pool.drawn(state.pool.models.variables, drawn),
            x_real=source.preprocessing.images(item[0]),
            y_real=item[1],
        )
        mask = learned(state.outer.params)
        decode_drawn = functools.partial(decode_some, key_pairs)
        after, info = outer.step(state.outer, batch, settings=settings, decode=decode_drawn, mask=mask)
        # The drawn models are trained on the new pairs only after the outer step has used them.
        models = pool.step(state.pool, drawn, *decode_drawn(after.params), settings=pool_set)
        ages = models.ages.astype(jnp.float32)
        return (
            State(state.step + 1, state.key, after, models),
            Info(info.loss, info.gradient_norm, ages.mean(), ages.min(), ages.max()),
        )

    return Functions(init, step, feed)


def key_of_look(key: Array) -> Array:
    """Derive the PRNG key, a scalar `()`, of `Method.look` from the key of `init`, likewise a scalar."""
    return jax.random.split(key, 4)[1]


def spread(mesh: Mesh, like: State) -> Any:
    """Shardings of a state: the pool as in `pool.spread`, everything else replicated."""
    return devices.shardings(mesh, like)._replace(pool=pool.spread(mesh, like.pool))


def pool_settings(config: ConfigDict, platform: str = "") -> pool.Settings:
    """Read the pool's settings from a config, for a platform as in `Problem`."""
    vectorize, form = _form(config, platform)
    return pool.Settings(
        size=config.pool.size,
        steps=config.pool.steps,
        batch_size=config.distill.pairs_per_step,
        vectorize=vectorize,
        widths=tuple(config.student.widths),
        norm=config.student.norm,
        inner=inner.Settings(**config.inner, precision=_precision(config, platform), form=form),
    )


def outer_settings(config: ConfigDict, platform: str = "") -> outer.Settings:
    """Read the outer problem's settings from a config, for a platform as in `Problem`."""
    vectorize, form = _form(config, platform)
    return outer.Settings(
        learning_rate=config.distill.learning_rate,
        steps=config.distill.steps,
        weight_decay=config.distill.weight_decay,
        ridge_scale=config.distill.ridge_scale,
        vectorize=vectorize,
        precision=_precision(config, platform),
        form=form,
    )


def forms(config: ConfigDict, platform: str = "") -> tuple[Form, ...]:
    """List the ways to compute an outer step on an accelerator, for those settings of the pool that are automatic.

    A vmap over models turns XLA's convolution into a grouped one, and a product over patches into a batched one. Which
    is faster, or whether one model after the other is, depends on the sizes and the device: on an H200 at the paper's
    sizes for CIFAR-100, ten models took 184 ms one after the other, 187 ms in parallel by patches and 400 ms in
    parallel by XLA's convolution.

    Args:
        config: The run's config.
        platform: As in `Problem`.

    Returns:
        The forms, the default first; none on a CPU, with one model a step, or if the config fixes all of them.
    """
    drawn = config.pool.models_per_step
    if _platform(platform) == "cpu" or drawn == 1:
        return ()
    candidates = [_form(config, platform), (1, "lax"), (config.pool.size, "patches"), (config.pool.size, "lax")]
    allowed = [
        (vectorize, form)
        for vectorize, form in dict.fromkeys(candidates)
        if config.pool.vectorize in (0, vectorize) and config.pool.form in ("auto", form)
    ]
    found = tuple(
        Form(
            f"{min(vectorize, drawn)} of {drawn} models in parallel, convolutions by {form}",
            {"pool.vectorize": vectorize, "pool.form": form},
        )
        for vectorize, form in allowed
    )
    return found if len(found) > 1 else ()


def _form(config: ConfigDict, platform: str) -> tuple[int, str]:
    """Return the number of models in parallel and the form of the convolutions that apply without a measurement."""
    vectorize, form = config.pool.vectorize, config.pool.form
    if _platform(platform) == "cpu":
        return vectorize or 1, form
    # With one model a step, the pool's start alone could be parallel. On an H200 at the paper's sizes ten models take
    # as long side by side as one after the other (docs/guides/speed.md), and the younger would wait for the oldest.
    vectorize = vectorize or (config.pool.size if config.pool.models_per_step > 1 else 1)
    # Under a vmap over models, XLA's convolution was the slowest.
    return vectorize, form if form != "auto" else ("patches" if vectorize > 1 else "lax")


def _precision(config: ConfigDict, platform: str) -> str:
    return precision.resolve(config.precision, _platform(platform))


def _platform(platform: str) -> str:
    """Return the platform that programs are for: the named one, or that of the devices."""
    return platform or jax.default_backend()


def shapes(config: ConfigDict, problem: Problem) -> tuple[tuple[str, str], ...]:
    """Return the rows of the dry run's table for the pool and the outer batch."""
    network = convnet.ConvNet(tuple(config.student.widths), problem.dim, config.student.norm)
    weights = count(network, problem.image_shape)
    pairs = f"{config.distill.pairs_per_step:,}" if config.distill.pairs_per_step else "all"
    return (
        ("pool", f"{config.pool.size} networks of {weights:,} parameters, renewed after {config.pool.steps:,} steps, "
         f"{config.pool.models_per_step} a step"),
        ("outer batch", f"{config.distill.batch_size:,} real images, {pairs} pairs"),
    )  # fmt: skip


def trials(config: ConfigDict, platform: str = "") -> dict[str, Callable[[StandIns], list[Trial]]]:
    """Trials of the initial training of the pool's models, which a resumed run skips.

    Args:
        config: The run's config, not that of the stand-in, whose pool is trained for a single step.
        platform: As in `Problem`.

    Returns:
        Functions from stand-ins to trials, by stage.
    """
    settings = pool_settings(config, platform)
    together = min(settings.vectorize, settings.size)

    @jax.jit
    def grow(states: inner.State, x: Array, y: Array, steps: Array) -> inner.State:
        step = jax.vmap(lambda state: inner.step(state, x, y, settings=settings.inner)[0])
        return jax.lax.fori_loop(0, steps, lambda _, states: step(states), states)

    def grow_pool(stand: StandIns) -> list[Trial]:
        # The stand-ins have few, hardly trained models; their shapes are all that the timing depends on.
        method, problem = stand.run.method, stand.run.problem
        pairs = len(method.views) * method.samples
        pairs = min(pairs, config.distill.pairs_per_step or pairs)
        models = devices.local(problem.mesh, stand.state.pool.models)
        # As many models as train side by side in a run.
        states = jax.tree.map(lambda leaf: leaf[:together], models)
        x, y = stand.normal(pairs, *problem.image_shape), stand.normal(pairs, problem.dim)
        # Ages are spread evenly below the one at which a model is redrawn; of models side by side the oldest decides.
        oldest = settings.steps * together / (together + 1)
        split = problem.mesh.shape[devices.POOL] if problem.mesh else 1
        steps = oldest * -(-settings.size // (together * split))
        arguments = states, jnp.asarray(x), jnp.asarray(y)
        return [Trial("inner steps", steps, grow, arguments, units=50, repeated=True, compiles=False)]

    return {"distill": grow_pool}
