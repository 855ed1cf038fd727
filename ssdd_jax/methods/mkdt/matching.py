"""Trajectory matching: train a student on the pairs, and compare it with an expert trained on all data.

MKDT (Joshi, Ni, Mirzasoleiman, "Dataset Distillation via Knowledge Distillation: Towards Efficient Self-Supervised
Pre-training of Deep Networks", ICLR 2025) with the objective of Cazenavette et al., "Dataset Distillation by Matching
Training Trajectories", CVPR 2022. The student starts at an expert's parameters after some epoch and takes plain SGD
steps on the pairs. Images, targets and the student's rate are optimised by gradients through all of these steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from ssdd_jax import inner
from ssdd_jax.training import epochs

Array = jax.Array
Student = Any


class Settings(NamedTuple):
    """Settings of the matching problem.

    Attributes:
        unroll: Steps that a student takes on the pairs.
        batch_size: Pairs per step of a student; all of them if there are fewer.
        image_learning_rate: Rate of SGD on the images.
        target_learning_rate: Rate of SGD on the targets.
        rate_learning_rate: Rate of SGD on the student's rate.
        momentum: Momentum of all three.
    """

    unroll: int = 40
    batch_size: int = 256
    image_learning_rate: float = 1000.0
    target_learning_rate: float = 1.0
    rate_learning_rate: float = 1e-4
    momentum: float = 0.5


class Params(NamedTuple):
    """Learned parameters.

    Attributes:
        images: Network inputs `(P,H,W,C)`.
        targets: Regression targets `(P,D)`.
        rate: The student's learning rate, a scalar; 0.1 at the start in the published code.
    """

    images: Array
    targets: Array
    rate: Array


class State(NamedTuple):
    """Learned parameters, and the momentum of SGD."""

    params: Params
    opt_state: Any


class Info(NamedTuple):
    """Logged per outer step, with values from before the step: loss, gradient norm, and the student's rate."""

    loss: Array
    gradient_norm: Array
    rate: Array


def loss(pairs: tuple[Array, Array], rate: Array, start: Student, target: Student, rows: Array) -> Array:
    """Distance of a trained student from the expert, relative to the distance that the expert moved; differentiable.

    `|student - target|^2 / |start - target|^2` over all parameters. The student starts at `start` and takes one step of
    plain SGD on the mean squared error per row of `rows`. The backward pass stores one student per step and recomputes
    the activations of the step, so that memory grows only by one student per step.

    Args:
        pairs: Images `(P,H,W,C)` and targets `(P,D)`.
        rate: The student's learning rate, a scalar.
        start: Parameters of the `ConvNet` with instance norm that the student starts from.
        target: Parameters of the same network that it should reach.
        rows: Indices of the pairs of each step, int `(unroll,batch)`.

    Returns:
        A scalar, in the precision of the inputs but at least float32.
    """
    images, targets = pairs
    chex.assert_rank([images, targets, rate, rows], [4, 2, 0, 2])
    chex.assert_equal_shape_prefix([images, targets], 1)
    chex.assert_trees_all_equal_shapes(start, target)
    # All arrays in one precision: stored trajectories are float32, even if the pairs are float64.
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves((images, targets, rate, start, target)))
    images, targets, rate, start, target = jax.tree.map(
        lambda leaf: jnp.asarray(leaf).astype(dtype), (images, targets, rate, start, target)
    )

    def step(student: Student, batch: Array) -> tuple[Student, None]:
        # No momentum and no decay: the published student is plain SGD, which the outer gradient passes through.
        gradients, _ = jax.grad(inner.loss, has_aux=True)(student, {}, images[batch], targets[batch])
        return jax.tree.map(lambda weight, gradient: weight - rate * gradient, student, gradients), None

    # Inside a scan the compiler cannot merge the recomputed forward pass with the first, so no barrier is needed.
    student, _ = lax.scan(jax.checkpoint(step, prevent_cse=False), start, rows)
    return _distance(student, target) / _distance(start, target)


def _distance(first: Student, second: Student) -> Array:
    """Squared Euclidean distance, a scalar."""
    squares = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), first, second)
    return jnp.sum(jnp.stack(jax.tree.leaves(squares)))


def draw_rows(key: Array, count: int, *, settings: Settings = Settings()) -> Array:
    """Draw the mini-batches of a student's steps: consecutive shuffled epochs over the pairs.

    Every pair occurs once per epoch. If the batch size does not divide the number of pairs, the last batch of an epoch
    is filled up from the beginning of the epoch's order.

    Args:
        key: PRNG key; folded by epoch.
        count: Number of pairs P.
        settings: Steps and batch size.

    Returns:
        Indices of pairs, int32 `(unroll, min(batch_size, P))`.
    """
    size, per_epoch = epochs.batch_of(count, settings.batch_size)
    # Whole epochs are drawn and the surplus of the last one is cut off.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(-(-settings.unroll // per_epoch)))
    orders = jax.vmap(lambda key: epochs.shuffled(key, count=count, batch_size=size))(keys)
    return orders.reshape(-1, size)[: settings.unroll].astype(jnp.int32)


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """SGD with momentum as in PyTorch, with separate rates for images, targets and the student's rate."""

    def scale(updates: Params, _: Any) -> Params:
        return Params(
            images=-settings.image_learning_rate * updates.images,
            targets=-settings.target_learning_rate * updates.targets,
            rate=-settings.rate_learning_rate * updates.rate,
        )

    return optax.chain(optax.trace(settings.momentum), optax.stateless(scale))


def init(params: Params, *, settings: Settings = Settings()) -> State:
    """The state before the first outer step; images `(P,H,W,C)`, targets `(P,D)`, rate a scalar."""
    chex.assert_rank([params.images, params.targets, params.rate], [4, 2, 0])
    params = jax.tree.map(jnp.asarray, params)
    return State(params, optimizer(settings).init(params))


def step(
    state: State, start: Student, target: Student, rows: Array, *, settings: Settings = Settings()
) -> tuple[State, Info]:
    """Take one step of SGD on the matching loss for one section of an expert's trajectory.

    Args:
        state: The parameters and their momentum.
        start: The expert's parameters at the start of the student.
        target: The expert's parameters some epochs later.
        rows: From `draw_rows`, int32 `(unroll,batch)`.
        settings: The rates and the momentum.

    Returns:
        The state after the step, and the values to log.
    """

    def value(params: Params) -> Array:
        return loss((params.images, params.targets), params.rate, start, target, rows)

    state = jax.tree.map(jnp.asarray, state)
    matching_loss, gradient = jax.value_and_grad(value)(state.params)
    updates, opt_state = optimizer(settings).update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norm = optax.tree.norm(gradient)
    return State(params, opt_state), Info(matching_loss, norm, state.params.rate)
