"""Barlow Twins: the self-supervised training of the teacher.

Zbontar, Jing, Misra, LeCun, Deny, "Barlow Twins: self-supervised learning via redundancy reduction", ICML
2021 (https://arxiv.org/abs/2103.03230), with solo-learn's settings for CIFAR, whose published linear
accuracies are 92.10 on CIFAR-10 and 70.90 on CIFAR-100 after 1,000 epochs.

`make` returns pure functions and does not jit them. The whole training is one compiled loop over `Trainer.step`.
Batches are augmented and normalised on the device. The host draws their indices, once per epoch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ssdd_jax.models import norm
from ssdd_jax.models.precision import network_input
from ssdd_jax.runtime import devices
from ssdd_jax.teacher.augmentations import Augmentation, random_views
from ssdd_jax.teacher.lars import lars
from ssdd_jax.teacher.network import Network, Variables, initialize, normalize
from ssdd_jax.teacher.schedule import warmup_cosine
from ssdd_jax.training import streaming

Array = jax.Array


class Settings(NamedTuple):
    """Settings of the training; the defaults are solo-learn's for CIFAR.

    Attributes:
        width: Channels of the backbone's first stage; features have `8 * width` dimensions.
        blocks: Blocks in each stage of the backbone: (2, 2, 2, 2) is ResNet-18.
        projector_hidden: Width of the projector's two hidden layers.
        projector_output: Number of projected dimensions P.
        off_diagonal: Weight of the off-diagonal entries in the loss.
        scale: Factor of the loss.
        epochs: Passes over the images.
        batch_size: Images per step; an incomplete last batch of an epoch is dropped.
        learning_rate: Highest rate for a batch of 256; scaled by `batch_size / 256`.
        weight_decay: Coupled decay of the kernels.
        warmup_epochs: Epochs of linear warm-up.
        warmup_start: Rate of the first step, not scaled.
        min_learning_rate: Rate at the end of the cosine, not scaled.
        augmentation: Settings of the random views.
        precision: Precision of the convolutions: see `ssdd_jax.models.precision`.
    """

    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    projector_hidden: int = 2048
    projector_output: int = 2048
    off_diagonal: float = 0.0051
    scale: float = 0.1
    epochs: int = 1000
    batch_size: int = 256
    learning_rate: float = 0.3
    weight_decay: float = 1e-4
    warmup_epochs: int = 10
    warmup_start: float = 3e-5
    min_learning_rate: float = 0.0
    augmentation: Augmentation = Augmentation()
    precision: str = "float32"


@flax.struct.dataclass
class State:
    """Training state, carried from step to step.

    Attributes:
        step: Number of completed steps, a scalar int32.
        variables: `params` and `batch_stats`, each with the parts `backbone` (a `ResNet`) and `projector`.
        opt_state: The optimiser's state, shaped like the parameters.
        key: PRNG key, constant: all draws of a step depend only on it and on `step`, so that resuming is exact.
    """

    step: Array
    variables: Variables
    opt_state: optax.OptState
    key: Array


class Info(NamedTuple):
    """Metrics of one training step, float32 scalars.

    Attributes:
        loss: Barlow Twins loss of the step's batch, before the update.
        learning_rate: Global rate of the step.
    """

    loss: Array
    learning_rate: Array


class Trainer(NamedTuple):
    """Pure functions that train a teacher.

    Attributes:
        init: `init(key) -> State`.
        step: `step(state, batch) -> (State, Info)`, with the images of the step, uint8 `(batch_size, H, W, C)`.
        steps: Number of steps of the whole training.
        rows: `rows(key)`, for the key passed to `init`, returns a function that maps a step's number to the indices of
            its images, NumPy int32 `(batch_size,)`, computed on the host's CPU.
    """

    init: Callable[[Array], State]
    step: Callable[..., tuple[State, Info]]
    steps: int
    rows: Callable[[Array], Callable[[int], np.ndarray]]


def loss(z1: Array, z2: Array, *, off_diagonal: float = 0.0051, scale: float = 0.1) -> Array:
    """Compute the distance of the cross-correlation of two views' projections from the identity (Eq. 1 and 2).

    Args:
        z1: Projections of the first view `(B, P)`.
        z2: Projections of the second view `(B, P)`.
        off_diagonal: Weight of the off-diagonal entries ("lambda").
        scale: Factor of the loss.

    Returns:
        A scalar.
    """
    chex.assert_rank(z1, 2)
    chex.assert_equal_shape([z1, z2])
    # Standardised over the batch, with the biased variance, as by solo-learn's batch norm without an affine part.
    z1, z2 = (norm.standardize(z, *norm.moments(z)) for z in (z1, z2))
    correlation = jnp.matmul(z1.T, z2, precision=jax.lax.Precision.HIGHEST) / z1.shape[0]
    identity = jnp.eye(z1.shape[1], dtype=correlation.dtype)
    weights = identity + (1.0 - identity) * off_diagonal
    return scale * jnp.sum(weights * jnp.square(correlation - identity))


def make(
    settings: Settings,
    *,
    image_shape: tuple[int, int, int],
    images_count: int,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh | None = None,
) -> Trainer:
    """Build the training of one teacher.

    Args:
        settings: Settings of the training.
        image_shape: `(H, W, C)`.
        images_count: Number n of training images.
        mean: Mean of each channel, for images in [0, 1].
        std: Standard deviation of each channel, for images in [0, 1].
        mesh: Devices to split a batch over; batch norm uses the statistics of the whole batch. None for one device.

    Returns:
        The pure functions of the training and its number of steps.

    Raises:
        ValueError: If a batch is larger than the set, or the warm-up does not fit into the training.
    """
    # Schedules count whole steps: an incomplete last batch of an epoch is dropped.
    steps_per_epoch = images_count // settings.batch_size
    if steps_per_epoch < 1:
        raise ValueError(
            f"batch_size is {settings.batch_size}, but there are only {images_count} training images: lower it, or "
            "take more images or a pretrained teacher"
        )
    steps = settings.epochs * steps_per_epoch
    if settings.warmup_epochs >= settings.epochs:
        raise ValueError(f"warmup_epochs is {settings.warmup_epochs}: it must be below epochs, {settings.epochs}")
    network = Network(settings.width, settings.blocks, settings.projector_hidden, settings.projector_output)
    # The linear scaling rule applies to the peak only; solo-learn does not scale the ends of the schedule.
    schedule = warmup_cosine(
        peak=settings.learning_rate * settings.batch_size / 256,
        steps=steps,
        warmup_steps=settings.warmup_epochs * steps_per_epoch,
        start=settings.warmup_start,
        end=settings.min_learning_rate,
    )
    optimizer = lars(schedule, weight_decay=settings.weight_decay)

    def init(key: Array) -> State:
        key_network, key_run = jax.random.split(key)
        variables = initialize(key_network, network, image_shape)
        opt_state = optimizer.init(variables["params"])
        return State(step=jnp.zeros((), jnp.int32), variables=variables, opt_state=opt_state, key=key_run)

    def step(state: State, batch: Array) -> tuple[State, Info]:
        # The first key is that of the order, in which `rows` draws.
        _, key_views = jax.random.split(state.key)
        chex.assert_shape(batch, (settings.batch_size, *image_shape))
        batch = devices.over_all(mesh, batch).astype(jnp.float32) / 255.0
        # Folding in the step, instead of carrying a new key, keeps the state's key constant.
        key_views = jax.random.fold_in(key_views, state.step)
        views = normalize(random_views(key_views, batch, settings=settings.augmentation), mean, std)
        views = network_input(views, settings.precision)
        params, batch_stats = state.variables["params"], state.variables["batch_stats"]

        def objective(params: Variables) -> tuple[Array, Variables]:
            z, new_batch_stats = _forward_views(network, params, batch_stats, views)
            return loss(z[0], z[1], off_diagonal=settings.off_diagonal, scale=settings.scale), new_batch_stats

        (value, new_batch_stats), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        variables = {"params": optax.apply_updates(params, updates), "batch_stats": new_batch_stats}
        # `scale_by_learning_rate` reads the schedule at the count before the update, which is `state.step`.
        info = Info(loss=value, learning_rate=schedule(state.step))
        return State(step=state.step + 1, variables=variables, opt_state=opt_state, key=state.key), info

    def rows(key: Array) -> Callable[[int], np.ndarray]:
        # The splits of `init` and of `step`, in this order.
        key_order = jax.random.split(jax.random.split(key)[1])[0]
        return functools.partial(_rows_on_host, _orders(key_order, images_count), settings.batch_size, steps_per_epoch)

    return Trainer(init=init, step=step, steps=steps, rows=rows)


def _orders(key: Array, count: int) -> Callable[[int], np.ndarray]:
    """Return a function that maps an epoch to its order of `count` images."""
    order = streaming.on_host(lambda key, epoch: jax.random.permutation(jax.random.fold_in(key, epoch), count))
    # Steps are prefetched across the end of an epoch, so two orders are cached: 5 MB each for a million images.
    return functools.lru_cache(maxsize=2)(lambda epoch: order(key, np.int32(epoch)))


def _rows_on_host(orders: Callable[[int], np.ndarray], batch_size: int, steps_per_epoch: int, step: int) -> np.ndarray:
    epoch, position = divmod(step, steps_per_epoch)
    return orders(epoch)[position * batch_size :][:batch_size]


def _forward_views(
    network: Network, params: Variables, batch_stats: Variables, views: Array
) -> tuple[Array, Variables]:
    """Project two views `(2, B, H, W, C)` to `(2, B, P)` and return the running statistics after both.

    The views take one forward pass after the other, each normalised by its own batch statistics. The scan is unrolled:
    a loop would copy the residuals of the backward pass, which are all activations.
    """

    def forward(batch_stats: Variables, view: Array) -> tuple[Variables, Array]:
        variables = {"params": params, "batch_stats": batch_stats}
        z, updated = network.apply(variables, view, train=True, mutable=["batch_stats"])
        return updated["batch_stats"], z

    new_batch_stats, z = jax.lax.scan(forward, batch_stats, views, unroll=True)
    return z, new_batch_stats
