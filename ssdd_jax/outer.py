"""The outer step: how well models trained on the pairs imitate the teacher on real images (KRR-ST, equation 6).

The last layer of a model is replaced by its closed form, so that the gradient in the pairs is exact with the model's
weights held fixed. AdamW with a linearly decaying rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from ssdd_jax import decoder, inner, krr

Array = jax.Array
Decode = Callable[[Any], tuple[Array, Array]]

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
    """

    learning_rate: float = 1e-3
    steps: int = 30_000
    weight_decay: float = 0.0
    ridge_scale: float = 1e-6
    vectorize: int = 1


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
    decode: Decode = decoder.decode_pairs,
    ridge_scale: float = 1e-6,
) -> Array:
    """Outer loss of one model with its weights held fixed.

    Args:
        params: What is learned.
        model: Variables of one inner model; used in eval mode.
        x_real: Real images `(B,H,W,C)`.
        y_real: The teacher's features of them `(B,D)`.
        decode: From `params` to images `(S,H,W,C)` and targets `(S,D)`.
        ridge_scale: Ridge over the kernel's trace.

    Returns:
        Mean squared error of the prediction over all `B*D` entries, a scalar.
    """
    chex.assert_rank([x_real, y_real], [4, 2])
    model = lax.stop_gradient(model)
    x_syn, y_syn = decode(params)
    prediction = krr.predict(
        _with_one(inner.features(model, x_syn)), y_syn, _with_one(inner.features(model, x_real)), ridge_scale
    )
    chex.assert_equal_shape([prediction, y_real])
    return jnp.mean(jnp.square(prediction - y_real))


def step(
    state: State,
    batch: Batch,
    *,
    settings: Settings = Settings(),
    decode: Decode = decoder.decode_pairs,
    mask: Any = None,
) -> tuple[State, Info]:
    """One step of AdamW on the mean of the models' outer losses.

    Args:
        state: What is learned.
        batch: The models drawn, real images and the teacher's features.
        settings: The outer problem's constants.
        decode: From `params` to images `(S,H,W,C)` and targets `(S,D)`.
        mask: What weight decay applies to, a pytree of booleans like `params`; everything if left out.

    Returns:
        The state after the step, and what to log.
    """

    def value_and_grad(model: inner.Variables) -> tuple[Array, Any]:
        return jax.value_and_grad(loss)(
            state.params,
            model,
            batch.x_real,
            batch.y_real,
            decode=decode,
            ridge_scale=settings.ridge_scale,
        )

    values, gradients = lax.map(value_and_grad, batch.models, batch_size=settings.vectorize)
    gradient = jax.tree.map(lambda leaf: leaf.mean(0), gradients)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of an integer
        updates, opt_state = optimizer(settings, mask).update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    return State(params, opt_state), Info(values.mean(), norm)


def _with_one(features: Array) -> Array:
    return jnp.concatenate([features, jnp.ones((len(features), 1), features.dtype)], axis=1)
