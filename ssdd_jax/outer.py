"""The outer step: how well models trained on the pairs imitate the teacher on real images (KRR-ST, equation 6).

The last layer of a model is replaced by its closed form, so that the gradient in the pairs is exact with the model's
weights held fixed. AdamW with a linearly decaying rate.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ssdd_jax import inner, krr
from ssdd_jax.runtime.devices import DATA, POOL

Array = jax.Array
Decode = Callable[[Any], tuple[Array, Array]]
Embed = Callable[..., Array]

# The rate decays linearly to this share of its start, as in the published code of KRR-ST.
FINAL_SHARE = 1e-3


class Settings(NamedTuple):
    """The outer problem's constants.

    Attributes:
        learning_rate: AdamW's rate at the start.
        steps: Over which the rate decays.
        weight_decay: AdamW's decay of what is learned.
        ridge_scale: Ridge over the kernel's trace.
        vectorize: How many models are differentiated side by side.
        precision: Of the convolutions: see `ssdd_jax.models.precision`.
        mesh: Devices to split the models (`pool`), the real images and the embedding of the pairs (`data`) over; None
            for one device. The axes must divide k and B.
    """

    learning_rate: float = 1e-3
    steps: int = 30_000
    weight_decay: float = 0.0
    ridge_scale: float = 1e-6
    vectorize: int = 1
    precision: str = "float32"
    mesh: Mesh | None = None


class Batch(NamedTuple):
    """What one outer step looks at.

    Attributes:
        models: Variables of k inner models; every leaf has a leading axis k.
        x_real: Real images `(B,H,W,C)`, in the network's input space.
        y_real: The teacher's features of them `(B,D)`, in the space the networks regress.
    """

    models: inner.Variables
    x_real: Array
    y_real: Array


class State(NamedTuple):
    """What is being learned, and AdamW's moments of it."""

    params: Any
    opt_state: Any


class Info(NamedTuple):
    """Logged per outer step: the loss before the step and the gradient's norm."""

    loss: Array
    gradient_norm: Array


def optimizer(settings: Settings, mask: Any = None) -> optax.GradientTransformation:
    """AdamW with a linear schedule; `mask` marks, as a pytree of booleans, what decays."""
    schedule = optax.linear_schedule(settings.learning_rate, settings.learning_rate * FINAL_SHARE, settings.steps)
    return optax.adamw(schedule, weight_decay=settings.weight_decay, mask=mask)


def init(params: Any, *, settings: Settings = Settings(), mask: Any = None) -> State:
    """The state before the first outer step; `mask` as `step` is going to be given it."""
    return State(params, optimizer(settings, mask).init(params))


def loss(
    params: Any,
    model: inner.Variables,
    x_real: Array,
    y_real: Array,
    *,
    decode: Decode = methodcaller("pairs"),
    ridge_scale: float = 1e-6,
    embed: Embed = inner.features,
    precision: str = "float32",
) -> Array:
    """Outer loss of one model with its weights held fixed.

    Args:
        params: What is learned.
        model: Variables of one inner model; used in eval mode.
        x_real: Real images `(B,H,W,C)`.
        y_real: The teacher's features of them `(B,D)`.
        decode: Maps `params` to images `(S,H,W,C)` and targets `(S,D)`; `params.pairs()` by default, as
            `ssdd_jax.decoder.Params` has it.
        ridge_scale: Ridge over the kernel's trace.
        embed: From a model's variables and the images of the pairs to their features `(S,F)`.
        precision: Of the convolutions.

    Returns:
        Mean squared error of the prediction over all `B*D` entries, a scalar.
    """
    chex.assert_rank([x_real, y_real], [4, 2])
    model = lax.stop_gradient(model)
    x_syn, y_syn = decode(params)
    f_syn = embed(model, x_syn, precision=precision)
    f_real = inner.features(model, x_real, precision=precision)
    prediction = krr.predict(_with_one(f_syn), y_syn, _with_one(f_real), ridge_scale)
    chex.assert_equal_shape([prediction, y_real])
    return jnp.mean(jnp.square(prediction - y_real))


def step(
    state: State,
    batch: Batch,
    *,
    settings: Settings = Settings(),
    decode: Decode = methodcaller("pairs"),
    mask: Any = None,
) -> tuple[State, Info]:
    """One step of AdamW on the mean of the models' outer losses.

    Args:
        state: What is learned.
        batch: The models drawn, real images and the teacher's features.
        settings: The outer problem's constants.
        decode: Maps `params` to images `(S,H,W,C)` and targets `(S,D)`; `params.pairs()` by default, as
            `ssdd_jax.decoder.Params` has it.
        mask: What weight decay applies to, a pytree of booleans like `params`; everything if left out.

    Returns:
        The state after the step, and what to log.
    """

    value, gradient = _value_and_grad(state.params, batch, settings, decode)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of an integer
        updates, opt_state = optimizer(settings, mask).update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    return State(params, opt_state), Info(value, norm)


def _value_and_grad(params: Any, batch: Batch, settings: Settings, decode: Decode) -> tuple[Array, Any]:
    """The mean of the models' losses and its gradient, split over the mesh if there is one."""

    def mean(params: Any, batch: Batch, embed: Embed) -> tuple[Array, Any]:
        def one(model: inner.Variables) -> tuple[Array, Any]:
            return jax.value_and_grad(loss)(
                params,
                model,
                batch.x_real,
                batch.y_real,
                decode=decode,
                ridge_scale=settings.ridge_scale,
                embed=embed,
                precision=settings.precision,
            )

        values, gradients = lax.map(one, batch.models, batch_size=settings.vectorize)
        return values.mean(), jax.tree.map(lambda leaf: leaf.mean(0), gradients)

    if settings.mesh is None:
        return mean(params, batch, inner.features)

    def part(params: Any, batch: Batch) -> tuple[Array, Any]:
        # Each device differentiates its own part of the mean, through what it embedded for the others too.
        return lax.pmean(mean(params, batch, _embed_together), (POOL, DATA))

    over_pool: Any = PartitionSpec(POOL)
    over_data: Any = PartitionSpec(DATA)
    # Without the check of what varies over the mesh: with it each model's gradient would be summed on its own.
    return jax.shard_map(
        part,
        mesh=settings.mesh,
        in_specs=(PartitionSpec(), Batch(over_pool, over_data, over_data)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(params, batch)


def _embed_together(model: inner.Variables, x: Array, *, precision: str) -> Array:
    """Features `(S,F)` of images that every device has: each along `data` computes some, padded to the same number."""
    each = -(-len(x) // lax.axis_size(DATA))
    padded = jnp.pad(x, ((0, each * lax.axis_size(DATA) - len(x)), *((0, 0),) * (x.ndim - 1)))
    own = lax.dynamic_slice_in_dim(padded, lax.axis_index(DATA) * each, each)
    return lax.all_gather(inner.features(model, own, precision=precision), DATA, tiled=True)[: len(x)]


def _with_one(features: Array) -> Array:
    return jnp.concatenate([features, jnp.ones((len(features), 1), features.dtype)], axis=1)
