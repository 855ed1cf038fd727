"""Trajectory matching: a student trained on the pairs should end where an expert, trained on all data, went.

MKDT (Joshi, Ni, Mirzasoleiman, "Dataset Distillation via Knowledge Distillation: Towards Efficient Self-Supervised
Pre-training of Deep Networks", ICLR 2025) with the objective of Cazenavette et al., "Dataset Distillation by Matching
Training Trajectories", CVPR 2022. The student starts at an expert's parameters after some epoch and takes plain SGD
steps on the pairs; images, targets and the student's rate follow the gradient through all of these steps.
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
    """The matching problem's constants.

    Attributes:
        unroll: Steps that a student takes on the pairs.
        batch_size: Pairs per step of a student; all of them if they are fewer.
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
    """What is learned.

    Attributes:
        images: Network inputs `(P,H,W,C)`.
        targets: Regression targets `(P,D)`.
        rate: The student's learning rate, a scalar; 0.1 at the start in the published code.
    """

    images: Array
    targets: Array
    rate: Array


class State(NamedTuple):
    """What is being learned, and SGD's momentum of it."""

    params: Params
    opt_state: Any


class Info(NamedTuple):
    """Logged per outer step, all of them before it: the loss, the gradient's norm, the student's rate."""

    loss: Array
    gradient_norm: Array
    rate: Array


def loss(pairs: tuple[Array, Array], rate: Array, start: Student, target: Student, rows: Array) -> Array:
    """How far from the expert a student ends, as a share of how far the expert went. Differentiable.

    `|student - target|^2 / |start - target|^2` over all parameters, where the student comes from `start` by one step
    of plain SGD on the mean squared error per row of `rows`. The backward pass keeps one student per step and makes
    the step's activations again, so that its memory grows by no more than that with the number of steps.

    Args:
        pairs: Images `(P,H,W,C)` and targets `(P,D)`.
        rate: The student's learning rate, a scalar.
        start: Parameters of the `ConvNet` with instance norm that the student starts from.
        target: Parameters of the same network that it should arrive at.
        rows: Which pairs each step sees, int `(unroll,batch)`.

    Returns:
        A scalar, in the inputs' precision and never below float32.
    """
    images, targets = pairs
    chex.assert_rank([images, targets, rate, rows], [4, 2, 0, 2])
    chex.assert_equal_shape_prefix([images, targets], 1)
    chex.assert_trees_all_equal_shapes(start, target)
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves((images, targets, rate, start, target)))
    images, targets, rate, start, target = jax.tree.map(
        lambda leaf: jnp.asarray(leaf).astype(dtype), (images, targets, rate, start, target)
    )

    def step(student: Student, row: Array) -> tuple[Student, None]:
        slope, _ = jax.grad(inner.loss, has_aux=True)(student, {}, images[row], targets[row])
        return jax.tree.map(lambda weight, gradient: weight - rate * gradient, student, slope), None

    # Inside a scan nothing could merge the second forward pass with the first, so no barrier is needed against it.
    student, _ = lax.scan(jax.checkpoint(step, prevent_cse=False), start, rows)
    return _distance(student, target) / _distance(start, target)


def _distance(one: Student, other: Student) -> Array:
    """Squared Euclidean distance, a scalar."""
    squares = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), one, other)
    return jnp.sum(jnp.stack(jax.tree.leaves(squares)))


def draw_rows(key: Array, count: int, *, settings: Settings = Settings()) -> Array:
    """The mini-batches of a student's steps: shuffled epochs over the pairs, one after the other.

    Every pair comes up once an epoch. Where the batches do not divide the pairs, the last batch of an epoch is filled
    up from the beginning of the epoch's order.

    Args:
        key: PRNG key; folded by epoch.
        count: Number of pairs P.
        settings: Steps and batch size.

    Returns:
        Rows, int32 `(unroll, min(batch_size, P))`.
    """
    size, per_epoch = epochs.batch_of(count, settings.batch_size)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(-(-settings.unroll // per_epoch)))
    rows = jax.vmap(lambda key: epochs.shuffled(key, count=count, batch_size=size))(keys)
    return rows.reshape(-1, size)[: settings.unroll].astype(jnp.int32)


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """SGD with momentum as PyTorch defines it, at a rate of its own for images, targets and the student's rate."""

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
    """One step of SGD on the matching loss of one piece of an expert's trajectory.

    Args:
        state: What is learned.
        start: The expert's parameters where the student starts.
        target: The expert's parameters some epochs later.
        rows: From `draw_rows`, int32 `(unroll,batch)`.
        settings: The rates and the momentum.

    Returns:
        The state after the step, and what to log.
    """

    def value(params: Params) -> Array:
        return loss((params.images, params.targets), params.rate, start, target, rows)

    state = jax.tree.map(jnp.asarray, state)
    found, gradient = jax.value_and_grad(value)(state.params)
    updates, opt_state = optimizer(settings).update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    return State(params, opt_state), Info(found, norm, state.params.rate)
