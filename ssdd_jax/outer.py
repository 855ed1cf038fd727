"""Outer step: trains the pairs so that models fitted to them imitate the teacher on real images (KRR-ST, equation 6).

The last layer of a model is replaced by its closed-form solution, so that the gradient with respect to the pairs is
exact while the model's other weights are held fixed. The optimiser is AdamW with a linearly decaying learning rate.
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

# The learning rate decays linearly to this share of its initial value, as in the published code of KRR-ST.
FINAL_SHARE = 1e-3


class Settings(NamedTuple):
    """Settings of the outer problem.

    Attributes:
        learning_rate: Initial learning rate of AdamW.
        steps: Number of steps over which the learning rate decays.
        weight_decay: AdamW's weight decay of the learned parameters.
        ridge_scale: Ridge as a share of the kernel's trace.
        vectorize: Number of models differentiated in parallel.
        precision: Precision of the convolutions: see `ssdd_jax.models.precision`.
        form: Implementation of the convolutions: see `ssdd_jax.models.convolution.conv`.
        mesh: Devices over which the models (axis `pool`), the real images and the embedding of the pairs (axis `data`)
            are split; None for one device. The axes must divide k and B.
    """

    learning_rate: float = 1e-3
    steps: int = 30_000
    weight_decay: float = 0.0
    ridge_scale: float = 1e-6
    vectorize: int = 1
    precision: str = "float32"
    form: str = "auto"
    mesh: Mesh | None = None


class Batch(NamedTuple):
    """Input of one outer step.

    Attributes:
        models: Variables of k inner models; every leaf has a leading axis k.
        x_real: Real images `(B,H,W,C)`, in the network's input space.
        y_real: The teacher's features of the real images `(B,D)`, in the space that the networks regress.
    """

    models: inner.Variables
    x_real: Array
    y_real: Array


class State(NamedTuple):
    """State of the outer problem.

    Attributes:
        params: Learned parameters, such as `ssdd_jax.decoder.Params`.
        opt_state: AdamW's moments of the parameters.
    """

    params: Any
    opt_state: Any


class Info(NamedTuple):
    """Metrics that are logged for every outer step.

    Attributes:
        loss: Mean of the models' losses before the step, a scalar.
        gradient_norm: Norm of the gradient, a scalar.
    """

    loss: Array
    gradient_norm: Array


def optimizer(settings: Settings, mask: Any = None) -> optax.GradientTransformation:
    """Create AdamW with a linear schedule; `mask`, a pytree of booleans, marks the parameters with weight decay."""
    schedule = optax.linear_schedule(settings.learning_rate, settings.learning_rate * FINAL_SHARE, settings.steps)
    return optax.adamw(schedule, weight_decay=settings.weight_decay, mask=mask)


def init(params: Any, *, settings: Settings = Settings(), mask: Any = None) -> State:
    """Create the state before the first outer step; pass the same `mask` to `step`."""
    params = jax.tree.map(jnp.asarray, params)
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
    form: str = "auto",
) -> Array:
    """Compute the outer loss of one model with its weights held fixed.

    Args:
        params: Learned parameters.
        model: Variables of one inner model; used in eval mode.
        x_real: Real images `(B,H,W,C)`.
        y_real: The teacher's features of the real images `(B,D)`.
        decode: Maps `params` to images `(S,H,W,C)` and targets `(S,D)`; `params.pairs()` by default, a method of
            `ssdd_jax.decoder.Params`.
        ridge_scale: Ridge as a share of the kernel's trace.
        embed: Maps a model's variables and the images of the pairs to their features `(S,F)`.
        precision: Precision of the convolutions.
        form: Implementation of the convolutions.

    Returns:
        Mean squared error of the prediction over all `B*D` entries, a scalar.
    """
    chex.assert_rank([x_real, y_real], [4, 2])
    # The model's weights are constants: nothing is differentiated through its training on the pairs.
    model = lax.stop_gradient(model)
    x_syn, y_syn = decode(params)
    f_syn = embed(model, x_syn, precision=precision, form=form)
    f_real = inner.features(model, x_real, precision=precision, form=form)
    # A constant feature stands for the bias of the replaced layer.
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
    """Take one step of AdamW on the mean of the models' outer losses.

    Args:
        state: Learned parameters and the optimiser's state.
        batch: Drawn models, real images and the teacher's features.
        settings: Settings of the outer problem.
        decode: Maps `params` to images `(S,H,W,C)` and targets `(S,D)`; `params.pairs()` by default, a method of
            `ssdd_jax.decoder.Params`.
        mask: Weight-decay mask, a pytree of booleans like `params`; by default everything decays.

    Returns:
        The state after the step, and the metrics to log.
    """

    value, gradient = _value_and_grad(state.params, batch, settings, decode)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of an integer
        updates, opt_state = optimizer(settings, mask).update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return State(params, opt_state), Info(value, optax.tree.norm(gradient))


def _value_and_grad(params: Any, batch: Batch, settings: Settings, decode: Decode) -> tuple[Array, Any]:
    """Compute the mean of the models' losses and its gradient, split over the mesh if there is one."""

    def mean(params: Any, batch: Batch, embed: Embed) -> tuple[Array, Any]:
        def value_and_grad(model: inner.Variables) -> tuple[Array, Any]:
            return jax.value_and_grad(loss)(
                params,
                model,
                batch.x_real,
                batch.y_real,
                decode=decode,
                ridge_scale=settings.ridge_scale,
                embed=embed,
                precision=settings.precision,
                form=settings.form,
            )

        # Gradients are averaged after the loop, so that the activations of only `vectorize` models exist at a time.
        values, gradients = lax.map(value_and_grad, batch.models, batch_size=settings.vectorize)
        return values.mean(), jax.tree.map(lambda leaf: leaf.mean(0), gradients)

    if settings.mesh is None:
        return mean(params, batch, inner.features)

    def local_mean(params: Any, batch: Batch) -> tuple[Array, Any]:
        # Each device differentiates its own part of the mean, including what it embedded for the other devices.
        return lax.pmean(mean(params, batch, _embed_together), (POOL, DATA))

    over_pool: Any = PartitionSpec(POOL)
    over_data: Any = PartitionSpec(DATA)
    # `check_vma=False`: with the check, JAX would sum each model's gradient over the devices separately.
    return jax.shard_map(
        local_mean,
        mesh=settings.mesh,
        in_specs=(PartitionSpec(), Batch(over_pool, over_data, over_data)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(params, batch)


def _embed_together(model: inner.Variables, x: Array, *, precision: str, form: str) -> Array:
    """Compute features `(S,F)` of replicated images: each device along `data` embeds a share, padded to equal size."""
    # The pairs need not divide the devices: each embeds the same number, and the padding is cut off after gathering.
    share = -(-len(x) // lax.axis_size(DATA))
    padded = jnp.pad(x, ((0, share * lax.axis_size(DATA) - len(x)), *((0, 0),) * (x.ndim - 1)))
    local = lax.dynamic_slice_in_dim(padded, lax.axis_index(DATA) * share, share)
    return lax.all_gather(inner.features(model, local, precision=precision, form=form), DATA, tiled=True)[: len(x)]


def _with_one(features: Array) -> Array:
    """Append a feature that is constantly 1: `(S,F)` to `(S,F+1)`."""
    return jnp.concatenate([features, jnp.ones((len(features), 1), features.dtype)], axis=1)
