"""The inner model: a network trained on the pairs by plain regression, full batch, without randomness.

SGD with rate 0.1, momentum 0.9 and weight decay 1e-3 on every parameter (the published code of KRR-ST). Decay is added
to the gradient and the rate comes after the momentum, as in `torch.optim.SGD`.
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
    """How an inner model is trained.

    Attributes:
        learning_rate: Rate of SGD.
        momentum: Its momentum.
        weight_decay: Its weight decay.
        precision: Of the convolutions: see `ssdd_jax.models.precision`.
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-3
    precision: str = "float32"


class State(NamedTuple):
    """An inner model in training.

    Attributes:
        variables: `params` and `batch_stats` of a `ConvNet`; with instance norm `batch_stats` is empty.
        opt_state: The optimiser's state: one momentum per parameter.
    """

    variables: Variables
    opt_state: Any


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """SGD as PyTorch defines it."""
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
    """A fresh inner model.

    Args:
        key: PRNG key.
        image_shape: `(H,W,C)`.
        dim: Length D of a target.
        widths: Channels of each block.
        norm: `batch` or `instance`.
        settings: How it is going to be trained.

    Returns:
        The state before the first step.

    Raises:
        ValueError: If the norm is unknown, or the images cannot be halved once for each block.
    """
    network = convnet.ConvNet(tuple(widths), dim, norm)
    variables = convnet.initialize(key, network, image_shape)
    return State(variables, optimizer(settings).init(variables["params"]))


def features(variables: Variables, x: Array, *, precision: str = "float32") -> Array:
    """Flattened last block in eval mode (running statistics): images `(S,H,W,C)` to `(S,F)`."""
    return networks.features(convnet.from_variables(variables), variables, network_input(x, precision))


def predict(variables: Variables, x: Array) -> Array:
    """Predicted targets in eval mode: images `(S,H,W,C)` to `(S,D)`."""
    return _forward(variables, x)[1]


def _forward(variables: Variables, x: Array) -> tuple[Array, Array]:
    found: Any = convnet.from_variables(variables).apply(variables, x, train=False)
    return found


def loss(
    params: Any,
    batch_stats: Any,
    x: Array,
    y: Array,
    *,
    network: nn.Module | None = None,
    precision: str = "float32",
) -> tuple[Array, Any]:
    """Mean squared error over all `S*D` entries in train mode, and the updated running statistics.

    Args:
        params: The network's parameters.
        batch_stats: Its running statistics.
        x: Images `(S,H,W,C)`.
        y: Targets `(S,D)`.
        network: The architecture; if left out the `ConvNet` that the parameters belong to.
        precision: Of the convolutions.

    Returns:
        The loss, a scalar, and the new `batch_stats`.
    """
    chex.assert_rank([x, y], [4, 2])
    chex.assert_equal_shape_prefix([x, y], 1)
    variables = {"params": params, "batch_stats": batch_stats}
    network = network or convnet.from_variables(variables)
    found: Any = network.apply(variables, network_input(x, precision), train=True, mutable=["batch_stats"])
    (_, prediction), updated = found
    chex.assert_equal_shape([prediction, y])
    return jnp.mean(jnp.square(prediction - y)), updated.get("batch_stats", {})


def step(
    state: State, x: Array, y: Array, *, settings: Settings = Settings(), network: nn.Module | None = None
) -> tuple[State, Array]:
    """One step of SGD on all pairs.

    Args:
        state: The model.
        x: Images `(S,H,W,C)`.
        y: Targets `(S,D)`.
        settings: SGD's constants, and the precision.
        network: The architecture; if left out the `ConvNet` that the parameters belong to.

    Returns:
        The model after the step, and the loss before it.
    """
    params, stats = state.variables["params"], state.variables["batch_stats"]
    of = jax.value_and_grad(functools.partial(loss, network=network, precision=settings.precision), has_aux=True)
    (value, stats), gradient = of(params, stats, x, y)
    updates, opt_state = optimizer(settings).update(gradient, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    return State({"params": params, "batch_stats": stats}, opt_state), value


def train(state: State, x: Array, y: Array, steps: int, *, settings: Settings = Settings()) -> tuple[State, Array]:
    """`steps` full-batch steps in one scan.

    Args:
        state: The model.
        x: Images `(S,H,W,C)`.
        y: Targets `(S,D)`.
        steps: How many; static.
        settings: Rate, momentum and weight decay.

    Returns:
        The model after them, and the losses `(steps,)` before each.
    """
    return lax.scan(lambda state, _: step(state, x, y, settings=settings), state, length=steps)
