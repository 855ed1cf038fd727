"""Inversion of a network: recover images from the running statistics of its batch norms and a linear probe.

SC-DD's recovery (Zhou, Yin, Shao and Shen, "Self-supervised Dataset Distillation: A Good Compression Is All You Need",
2024, arXiv 2404.07976), as its published code computes it. Starting from noise, images are optimised so that the
probe assigns them to their class and their statistics in every layer match those of the training data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.evaluate.protocols import probes
from ssdd_jax.models import frozen
from ssdd_jax.models.frozen import Frozen

Array = jax.Array
Variables = Mapping[str, Any]

# Name of the layer that `first_bn_weight` applies to.
FIRST_NORM = "stem_norm"


class Settings(NamedTuple):
    """Settings of the recovery; the defaults are the published ones for CIFAR-100.

    Attributes:
        steps: Number of steps, over which the rate falls to 0 along a cosine.
        learning_rate: Adam's rate at the start.
        bn_weight: Weight of the statistics relative to the cross-entropy.
        first_bn_weight: Weight of the first batch norm; the other layers have weight 1.
        jitter: Largest cyclic shift in pixels, in each direction.
        vectorize: Groups computed side by side.
    """

    steps: int = 1000
    learning_rate: float = 0.4
    bn_weight: float = 0.005
    first_bn_weight: float = 10.0
    jitter: int = 4
    vectorize: int = 1


class Network(NamedTuple):
    """A network with a linear classifier, both frozen.

    Attributes:
        backbone: `params` and `batch_stats` of a `models.resnet.ResNet`, or a `models.frozen.Frozen` one.
        probe: The classifier's weights `(D+1,classes)`; the last row is the bias.
    """

    backbone: Variables | Frozen
    probe: Array


class State(NamedTuple):
    """Images in recovery.

    Attributes:
        images: Network inputs `(G,B,H,W,C)`: G groups of B images, each group with its own batch statistics.
        opt_state: Adam's moments of them.
    """

    images: Array
    opt_state: Any


class Info(NamedTuple):
    """Logged per step: the loss before the step and its two parts, scalars.

    Attributes:
        loss: `cross_entropy + bn_weight * statistics`.
        cross_entropy: Of the probe's logits, mean over the images.
        statistics: See `statistics_loss`.
    """

    loss: Array
    cross_entropy: Array
    statistics: Array


def group_labels(images_per_class: int, classes: int, batch_size: int) -> np.ndarray:
    """Assign labels to the images to recover: the classes in turn, split into groups of equal size.

    Args:
        images_per_class: Images of each class.
        classes: Number of classes.
        batch_size: Largest size of a group. A group holds as many whole cycles through the classes as fit, or an even
            part of one cycle. The last group is filled up by continuing the cycle; images beyond `images_per_class`
            are not stored.

    Returns:
        int32 `(G,B)`.

    Raises:
        ValueError: If one of the numbers is not positive.
    """
    if min(images_per_class, classes, batch_size) < 1:
        raise ValueError(f"all must be positive: {images_per_class=}, {classes=}, {batch_size=}")
    # Whole cycles keep every group balanced; with more classes than images in a group, each gets an equal part.
    if classes <= batch_size:
        size = classes * min(batch_size // classes, images_per_class)
    else:
        size = -(-classes // -(-classes // batch_size))
    groups = -(-images_per_class * classes // size)
    return (np.arange(groups * size, dtype=np.int32) % classes).reshape(groups, size)


def logits(network: Network, x: Array) -> Array:
    """Compute logits in eval mode: images `(B,H,W,C)` to `(B,classes)`."""
    return probes.logits(network.probe, jnp.asarray(frozen.of(network.backbone).apply(x)))


def statistics_loss(network: Network, x: Array, *, first_bn_weight: float = 10.0) -> Array:
    """Distance of the batch statistics from the running statistics.

    Args:
        network: The network, in eval mode.
        x: Network inputs `(B,H,W,C)`.
        first_bn_weight: Weight of the first batch norm, the stem's.

    Returns:
        The weighted sum over the batch norms of `||running_var - var||_2 + ||running_mean - mean||_2`, a scalar, with
        the mean and the biased variance of the layer's input over all images and pixels.
    """
    return _distance(network, _logits_and_moments(network, x)[1], first_bn_weight)


def loss(
    images: Array, labels: Array, network: Network, shift: Array, *, settings: Settings = Settings()
) -> tuple[Array, Info]:
    """Loss that the images of one group minimise.

    Args:
        images: Network inputs `(B,H,W,C)`.
        labels: Their classes, int32 `(B,)`.
        network: The network, in eval mode; it receives no gradient.
        shift: Pixels by which all images are rolled down and to the right, int32 `(2,)`.
        settings: The weights of the parts.

    Returns:
        The loss, a scalar, and its parts.
    """
    chex.assert_rank([images, labels, shift], [4, 1, 1])
    chex.assert_equal_shape_prefix([images, labels], 1)
    network = lax.stop_gradient(network)
    predicted, moments = _logits_and_moments(network, jnp.roll(images, shift, axis=(1, 2)))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(predicted, labels).mean()
    statistics = _distance(network, moments, settings.first_bn_weight)
    value = cross_entropy + settings.bn_weight * statistics
    return value, Info(value, cross_entropy, statistics)


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """Adam with the published betas 0.5 and 0.9, and a cosine without warm-up."""
    schedule = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    return optax.adam(schedule, b1=0.5, b2=0.9, eps=1e-8)


def init(key: Array, shape: tuple[int, ...], *, settings: Settings = Settings()) -> State:
    """Initialize the images as noise.

    Args:
        key: PRNG key.
        shape: `(G,B,H,W,C)`.
        settings: Settings of the recovery.

    Returns:
        Independent standard normal values in the network's input space; they are not clipped before the first step.

    Raises:
        ValueError: If the shape does not have five dimensions.
    """
    if len(shape) != 5:
        raise ValueError(f"the shape must be (G,B,H,W,C), not {shape}")
    images = jax.random.normal(key, shape)
    return State(images, optimizer(settings).init(images))


def step(
    key: Array,
    state: State,
    labels: Array,
    network: Network,
    *,
    low: Array,
    high: Array,
    settings: Settings = Settings(),
) -> tuple[State, Info]:
    """Take one step of Adam on every group, each with its own random shift.

    Args:
        key: PRNG key.
        state: The images.
        labels: Their classes, int32 `(G,B)`.
        network: The network that is inverted.
        low: Network input of black `(C,)`.
        high: Network input of white `(C,)`.
        settings: Rate, weights and shifts.

    Returns:
        The images after the step, clipped to valid pixels, and the losses before it, mean over the groups.
    """
    chex.assert_rank([state.images, labels, low, high], [5, 2, 1, 1])
    chex.assert_equal_shape_prefix([state.images, labels], 2)
    # Shifts from 0 to `jitter`, as published, not symmetric around 0.
    shifts = jax.random.randint(key, (len(labels), 2), 0, settings.jitter + 1)

    def gradient_of(group: tuple[Array, Array, Array]) -> tuple[Array, Info]:
        images, labels, shift = group
        return jax.grad(loss, has_aux=True)(images, labels, network, shift, settings=settings)

    # Mapped instead of batched in one: batch statistics must not mix between the groups.
    gradient, info = lax.map(gradient_of, (state.images, labels, shifts), batch_size=settings.vectorize)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of an integer
        updates, opt_state = optimizer(settings).update(gradient, state.opt_state)
    # Clipped in input space, as in the published code, so that the images stay displayable.
    low, high = (limit.reshape(1, 1, 1, 1, -1) for limit in (low, high))
    images = jnp.clip(optax.apply_updates(state.images, updates), low, high)
    return State(images, opt_state), jax.tree.map(jnp.mean, info)


def _logits_and_moments(network: Network, x: Array) -> tuple[Array, Any]:
    """Compute logits `(B,classes)` and the batch statistics of every norm, `mean` and `var` as in `batch_stats`."""
    features, collections = frozen.of(network.backbone).apply(x, mutable=["moments"])
    return probes.logits(network.probe, features), collections["moments"]


def _distance(network: Network, moments: Any, first_bn_weight: float) -> Array:
    """Compute the sum of `statistics_loss`, a scalar."""

    def layer_distance(path: Any, running: Array, batch: Array) -> Array:
        # `safe_norm` has the gradient 0 where the statistics agree, as PyTorch's norm does; jnp's has NaN there.
        distance = optax.safe_norm(running - batch, 0.0)
        return first_bn_weight * distance if path[0].key == FIRST_NORM else distance

    distances = jax.tree_util.tree_map_with_path(
        layer_distance, frozen.of(network.backbone).variables["batch_stats"], moments
    )
    return jnp.sum(jnp.stack(jax.tree.leaves(distances)))


def valid_range(constants: Preprocessing) -> tuple[Array, Array]:
    """Return the network inputs of black and of white, each `(C,)`."""
    black = -constants.image_mean / constants.image_std
    return black, black + 1 / constants.image_std
