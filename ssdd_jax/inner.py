"""Inner model: a network trained on the distilled pairs by full-batch regression, without randomness.

SGD with learning rate 0.1, momentum 0.9 and weight decay 1e-3 on every parameter (the published code of KRR-ST). The
decay is added to the gradient and the learning rate is applied after the momentum, as in `torch.optim.SGD`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from ssdd_jax.models import convnet
from ssdd_jax.models import network as networks
from ssdd_jax.models.precision import network_input

Array = jax.Array
Variables = Any


class Settings(NamedTuple):
    """Settings of an inner model's training.

    Attributes:
        learning_rate: Learning rate of SGD.
        momentum: Momentum of SGD.
        weight_decay: Weight decay, applied to every parameter.
        precision: Precision of the convolutions: see `ssdd_jax.models.precision`.
        form: Implementation of the convolutions: see `ssdd_jax.models.convolution.conv`.
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-3
    precision: str = "float32"
    form: str = "auto"


class State(NamedTuple):
    """State of an inner model in training.

    Attributes:
        variables: `params` and `batch_stats` of a `ConvNet`; `batch_stats` is empty with instance norm.
        opt_state: The optimiser's state: one momentum per parameter.
    """

    variables: Variables
    opt_state: Any


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """Create SGD as PyTorch defines it."""
    # `optax.sgd` applies the learning rate after the momentum. None instead of 0 avoids storing unused momenta.
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(settings.learning_rate, settings.momentum or None),
    )


def init(
    key: Array,
    image_shape: tuple[int, ...],
    dim: int,
    *,
    widths: tuple[int, ...] = (128, 256, 512),
    norm: str = "batch",
    settings: Settings = Settings(),
) -> State:
    """Initialize an inner model.

    Args:
        key: PRNG key.
        image_shape: `(H,W,C)`.
        dim: Length D of a target.
        widths: Channels of each block.
        norm: Normalisation layer, `batch` or `instance`.
        settings: Settings of the training that follows.

    Returns:
        The state before the first step.

    Raises:
        ValueError: If the norm is unknown, or the images cannot be halved once for each block.
    """
    network = convnet.ConvNet(tuple(widths), dim, norm)
    variables = convnet.initialize(key, network, image_shape)
    return State(variables, optimizer(settings).init(variables["params"]))


def features(variables: Variables, x: Array, *, precision: str = "float32", form: str = "auto") -> Array:
    """Compute features, the flattened last block, in eval mode (running statistics).

    Args:
        variables: `params` and `batch_stats` of a `ConvNet`.
        x: Images `(S,H,W,C)`.
        precision: Precision of the convolutions.
        form: Implementation of the convolutions.

    Returns:
        Features `(S,F)`.
    """
    return networks.features(convnet.from_variables(variables, form=form), variables, network_input(x, precision))


def predict(variables: Variables, x: Array) -> Array:
    """Predict targets in eval mode: images `(S,H,W,C)` to `(S,D)`."""
    return _forward(variables, x)[1]


def _forward(variables: Variables, x: Array) -> tuple[Array, Array]:
    outputs: Any = convnet.from_variables(variables).apply(variables, x, train=False)
    return outputs


def loss(
    params: Any,
    batch_stats: Any,
    x: Array,
    y: Array,
    *,
    network: nn.Module | None = None,
    precision: str = "float32",
    form: str = "auto",
) -> tuple[Array, Any]:
    """Compute the mean squared error over all `S*D` entries in train mode, and the updated running statistics.

    Args:
        params: The network's parameters.
        batch_stats: The network's running statistics.
        x: Images `(S,H,W,C)`.
        y: Targets `(S,D)`.
        network: The architecture; by default the `ConvNet` that the parameters belong to.
        precision: Precision of the convolutions.
        form: Implementation of the convolutions of that `ConvNet`.

    Returns:
        The loss, a scalar, and the new `batch_stats`.
    """
    chex.assert_rank([x, y], [4, 2])
    chex.assert_equal_shape_prefix([x, y], 1)
    variables = {"params": params, "batch_stats": batch_stats}
    network = network or convnet.from_variables(variables, form=form)
    outputs: Any = network.apply(variables, network_input(x, precision), train=True, mutable=["batch_stats"])
    (_, prediction), updated = outputs
    # Without batch norm Flax returns no `batch_stats`: the state keeps its structure with an empty collection.
    chex.assert_equal_shape([prediction, y])
    return jnp.mean(jnp.square(prediction - y)), updated.get("batch_stats", {})


def step(
    state: State, x: Array, y: Array, *, settings: Settings = Settings(), network: nn.Module | None = None
) -> tuple[State, Array]:
    """Take one step of SGD on all pairs.

    Args:
        state: The model.
        x: Images `(S,H,W,C)`.
        y: Targets `(S,D)`.
        settings: SGD's constants and the precision.
        network: The architecture; by default the `ConvNet` that the parameters belong to.

    Returns:
        The model after the step, and the loss before it, a scalar.
    """
    params, stats = state.variables["params"], state.variables["batch_stats"]
    objective = functools.partial(loss, network=network, precision=settings.precision, form=settings.form)
    (value, stats), gradient = jax.value_and_grad(objective, has_aux=True)(params, stats, x, y)
    updates, opt_state = optimizer(settings).update(gradient, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    return State({"params": params, "batch_stats": stats}, opt_state), value


def train(state: State, x: Array, y: Array, steps: int, *, settings: Settings = Settings()) -> tuple[State, Array]:
    """Take `steps` full-batch steps in one scan.

    Args:
        state: The model.
        x: Images `(S,H,W,C)`.
        y: Targets `(S,D)`.
        steps: Number of steps; static.
        settings: SGD's constants and the precision.

    Returns:
        The model after the steps, and the loss before each step `(steps,)`.
    """
    return lax.scan(lambda state, _: step(state, x, y, settings=settings), state, length=steps)
