"""Target data-free distillation: a student learns a labelled task from a teacher's answers to distilled images alone.

KRR-ST (Lee et al., "Self-supervised dataset distillation for transfer learning", ICLR 2024, Table 4) with the numbers
of its published code (`test_kd.py`, `algorithms/zeroshot_kd.py`): the student, pre-trained on the distilled set and
given a fresh classifier, imitates a supervised teacher of the target on augmented distilled images, and is then tested
on the target's test images. In the baseline with Gaussian noise every batch is fresh noise instead.

That code never leaves train mode: batch norm normalises by each batch's own statistics in the teacher, which thereby
adapts to images unlike those it was trained on, and in the student, when it is tested too. Accuracies depend on it, so
it is the default here; see `Settings.batch_statistics`. One thing differs: the last batch of an epoch is filled up from
the beginning of the epoch's order, where theirs is smaller.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ssdd_jax.data.preprocess import from_bytes
from ssdd_jax.evaluate.protocols import diff_augment, finetune
from ssdd_jax.models import initialize
from ssdd_jax.training import epochs, loop

Array = jax.Array
Variables = Any
Model = tuple[Any, Variables]
Labelled = tuple[np.ndarray, np.ndarray]
Constants = Sequence[float] | np.ndarray | Array

# Steps in one call of the compiled program, between which a run can be interrupted and is checked.
STEPS_PER_CALL = 16


class Settings(NamedTuple):
    """How a student learns from a teacher; the defaults are the published ones.

    Attributes:
        epochs: Passes over the distilled images.
        batch_size: Images per step, and per batch of the test.
        learning_rate: AdamW's rate in the first epoch; in epoch e of E it is `(1 + cos(pi e / E)) / 2` of that.
        noise_learning_rate: The same where the batches are noise.
        weight_decay: AdamW's decay, of every parameter.
        temperature: What both networks' logits are divided by.
        batch_statistics: Batch norm normalises by each batch's own statistics in the teacher and in the test. Without,
            by the running ones. The student's training always uses the batch's.
    """

    epochs: int = 1000
    batch_size: int = 512
    learning_rate: float = 1e-4
    noise_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    temperature: float = 1.0
    batch_statistics: bool = True


class State(NamedTuple):
    """A student in training.

    Attributes:
        variables: `params` and `batch_stats`.
        opt_state: AdamW's state: two moments per parameter, and the number of steps.
    """

    variables: Variables
    opt_state: Any


def loss(student: Array, teacher: Array, *, temperature: float = 1.0) -> Array:
    """Cross-entropy of the student's classes under the teacher's.

    Args:
        student: Logits `(B,classes)`.
        teacher: Logits `(B,classes)`; they get no gradient.
        temperature: What both are divided by.

    Returns:
        `-sum softmax(teacher) log_softmax(student)`, mean over the batch, a scalar.
    """
    chex.assert_equal_shape([student, teacher])
    wanted = jax.nn.softmax(lax.stop_gradient(teacher) / temperature)
    return -jnp.mean(jnp.sum(wanted * jax.nn.log_softmax(student / temperature), axis=-1))


def optimizer(settings: Settings, steps_per_epoch: int, *, noise: bool = False) -> optax.GradientTransformation:
    """AdamW, its rate the same throughout an epoch and following half a cosine over the epochs."""
    first = settings.noise_learning_rate if noise else settings.learning_rate

    def schedule(step: Array) -> Array:
        epoch = jnp.asarray(step // steps_per_epoch, jnp.float32)
        return first * 0.5 * (1.0 + jnp.cos(jnp.pi / settings.epochs * epoch))

    return optax.adamw(schedule, weight_decay=settings.weight_decay)


def step(
    state: State,
    x: Array,
    student: nn.Module,
    teacher: Model,
    *,
    adamw: optax.GradientTransformation,
    settings: Settings = Settings(),
) -> tuple[State, Array]:
    """One step of AdamW towards the teacher's answers to one batch.

    Args:
        state: The student.
        x: Network inputs `(B,H,W,C)`.
        student: The student's network.
        teacher: The teacher's network and its variables, which stay as they are.
        adamw: From `optimizer`.
        settings: Temperature, and whether the teacher uses the batch's statistics.

    Returns:
        The student after the step, and the loss before it, a scalar.
    """
    wanted = _logits(*teacher, x, settings)

    def of(params: Any) -> tuple[Array, Any]:
        variables = {"params": params, "batch_stats": state.variables["batch_stats"]}
        (_, found), updated = student.apply(variables, x, train=True, mutable=["batch_stats"])
        return loss(found, wanted, temperature=settings.temperature), updated.get("batch_stats", {})

    params = state.variables["params"]
    (value, stats), gradient = jax.value_and_grad(of, has_aux=True)(params)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of an integer
        updates, opt_state = adamw.update(gradient, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    return State({"params": params, "batch_stats": stats}, opt_state), value


def _logits(network: Any, variables: Variables, x: Array, settings: Settings) -> Array:
    """Logits `(B,classes)` as the settings want batch norm to work; running statistics stay as they are."""
    if settings.batch_statistics:
        return network.apply(variables, x, train=True, mutable=["batch_stats"])[0][1]
    return network.apply(variables, x, train=False)[1]


def run(
    keys: Array,
    student: Model,
    teacher: Model,
    images: Array,
    test: Labelled,
    *,
    mean: Constants,
    std: Constants,
    settings: Settings = Settings(),
    noise: bool = False,
    together: int | None = None,
    name: str = "",
) -> np.ndarray:
    """Train one student per key, and test it.

    Args:
        keys: PRNG keys `(S,)`; a student depends on its own and, up to rounding, not on the others.
        student: The students' network, whose `dim` is the number of classes, and variables with a leading axis S.
        teacher: The teacher's network, of the same `dim`, and its variables.
        images: Distilled images, network inputs `(P,H,W,C)` for all students or `(S,P,H,W,C)`; with `noise` only
            their number and shape count.
        test: The target's test images, uint8 `(m,H,W,C)`, and labels int32 `(m,)`.
        mean: Mean of each channel `(C,)`, of pixels in 0..1, that test images are normalised by.
        std: Standard deviation of each channel `(C,)`.
        settings: How they are trained and tested.
        noise: Train on Gaussian noise, fresh for each batch, at its own rate.
        together: How many students are trained side by side; all by default.
        name: What the progress bar says; no bar if empty.

    Returns:
        Percent of test labels predicted, of each student, float64 `(S,)`.

    Raises:
        ValueError: If the shapes do not fit each other.
        UserError: If a student's loss is not a number.
    """
    _check(keys, student, teacher, images, test)
    count = len(keys)
    size = min(count, together or count)
    found = []
    for begin in range(0, count, size):
        part = slice(begin, begin + size)
        own = images[part] if images.ndim == 5 else images
        start = jax.tree.map(lambda leaf: leaf[part], student[1])  # noqa: B023, used at once
        trained = _train(
            keys[part], (student[0], start), teacher, own, settings=settings, noise=noise, first=begin, name=name
        )
        found.append(accuracy(student[0], trained, test, mean=mean, std=std, settings=settings))
    return np.concatenate(found)


def accuracy(
    network: nn.Module,
    variables: Variables,
    test: Labelled,
    *,
    mean: Constants,
    std: Constants,
    settings: Settings = Settings(),
) -> np.ndarray:
    """What share of the labels students predict, in batches in the order of the images.

    The last batch is as small as it comes: with `batch_statistics` its statistics are those of its own images.

    Args:
        network: The students' network.
        variables: Theirs, with a leading axis S.
        test: Images uint8 `(m,H,W,C)` and labels int32 `(m,)`.
        mean: Mean of each channel `(C,)`, of pixels in 0..1.
        std: Standard deviation of each channel `(C,)`.
        settings: Batch size, and whether batches are normalised by their own statistics.

    Returns:
        Percent, float64 `(S,)`.
    """
    images, labels = test
    constants = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    right: Any = 0
    for begin in range(0, len(images), settings.batch_size):
        part = slice(begin, begin + settings.batch_size)
        predicted = _predict(variables, images[part], constants, network=network, settings=settings)
        right = right + (np.asarray(predicted) == labels[part][None]).sum(1)
    return 100.0 * right / len(images)


def train_teacher(
    key: Array,
    network: nn.Module,
    train: Labelled,
    *,
    mean: Constants,
    std: Constants,
    settings: finetune.Settings = finetune.Settings(),
) -> Variables:
    """A supervised teacher of the target, trained from scratch.

    KRR-ST's code comes with a trained ResNet-18 for CIFAR-10, not with its training. This is that code's recipe for
    training from scratch (`algorithms/scratch.py`), which is the one for fine-tuning.

    Args:
        key: PRNG key.
        network: The teacher's network, whose `dim` is the number of classes.
        train: The target's training images uint8 `(n,H,W,C)` and labels int32 `(n,)`.
        mean: Mean of each channel `(C,)`, of pixels in 0..1.
        std: Standard deviation of each channel `(C,)`.
        settings: How it is trained.

    Returns:
        `params` and `batch_stats`.

    Raises:
        UserError: If the network diverged.
    """
    teacher: Any = network
    key_init, key_train = jax.random.split(key)
    alone = jax.tree.map(lambda leaf: leaf[None], initialize(key_init, network, train[0].shape[1:]))
    options: dict[str, Any] = {"mean": jnp.asarray(mean, jnp.float32), "std": jnp.asarray(std, jnp.float32)}
    options |= {"classes": jnp.int32(teacher.dim), "settings": settings}
    trained = finetune.fit(jax.random.split(key_train, 2)[None], network, alone, train, **options)
    return jax.tree.map(lambda leaf: leaf[0], trained)


def _check(keys: Array, student: Model, teacher: Model, images: Array, test: Labelled) -> None:
    seeds = {len(leaf) for leaf in jax.tree.leaves(student[1])}
    if images.ndim == 5:
        seeds.add(len(images))
    if seeds != {len(keys)}:
        raise ValueError(f"{len(keys)} keys, but students or images for {sorted(seeds)}")
    if student[0].dim != teacher[0].dim:
        raise ValueError(f"the student tells {student[0].dim} classes apart, the teacher {teacher[0].dim}")
    if images.shape[-3:] != test[0].shape[1:] or len(test[0]) != len(test[1]) or not len(test[0]):
        raise ValueError(
            f"distilled images {images.shape} and test images {test[0].shape} must have one shape (H,W,C), "
            f"and each test image one of {len(test[1])} labels"
        )


def _train(
    keys: Array,
    student: Model,
    teacher: Model,
    images: Array,
    *,
    settings: Settings,
    noise: bool,
    first: int,
    name: str = "",
) -> Variables:
    """Variables, with a leading axis, of a group of students after the last epoch; `first` is the first's number."""
    per_epoch = epochs.batch_of(images.shape[-4], settings.batch_size)[1]
    adamw = optimizer(settings, per_epoch, noise=noise)
    # The state is donated: what the caller holds must not be.
    variables = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), student[1])
    state = State(variables, jax.vmap(adamw.init)(variables["params"]))
    options: dict[str, Any] = {"student": student[0], "teacher": teacher[0], "settings": settings, "noise": noise}
    at_once = max(1, STEPS_PER_CALL // per_epoch)
    with loop.bar(name, len(keys) * settings.epochs * per_epoch) as bar:
        for begin, count in loop.calls(bar, settings.epochs, per_call=at_once, weight=len(keys) * per_epoch):
            span = jnp.int32(begin), jnp.int32(begin + count)
            state, losses = _advance(keys, state, images, teacher[1], span, **options)
            rate = "noise_learning_rate" if noise else "learning_rate"
            loop.check_finite(
                losses,
                lambda index: (
                    f"zero_shot: student {first + index + 1}: the loss is not a number in epochs {begin + 1} to "  # noqa: B023
                    f"{begin + count}: check the teacher's weights, or try a smaller {rate}"  # noqa: B023
                ),
            )
    return state.variables


@functools.partial(jax.jit, static_argnames=("student", "teacher", "settings", "noise"), donate_argnames="state")
def _advance(
    keys: Array,
    state: State,
    images: Array,
    teacher_variables: Variables,
    span: tuple[Array, Array],
    *,
    student: nn.Module,
    teacher: nn.Module,
    settings: Settings,
    noise: bool,
) -> tuple[State, Array]:
    """A group of students after the epochs from the first of `span` up to the second, and the sums of their losses."""
    count, shape = images.shape[-4], images.shape[-3:]
    size, per_epoch = epochs.batch_of(count, settings.batch_size)
    adamw = optimizer(settings, per_epoch, noise=noise)

    def one(key: Array, state: State, images: Array) -> tuple[State, Array]:
        def epoch(number: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
            key_order, key_batches = jax.random.split(jax.random.fold_in(key, number))
            rows = epochs.shuffled(key_order, count=count, batch_size=settings.batch_size)

            def batch(carry: tuple[State, Array], item: tuple[Array, Array]) -> tuple[tuple[State, Array], None]:
                state, total = carry
                key_batch, row = item
                if noise:
                    x = jax.random.normal(key_batch, (size, *shape), images.dtype)
                else:
                    x = diff_augment.augment(key_batch, images[row])
                state, value = step(state, x, student, (teacher, teacher_variables), adamw=adamw, settings=settings)
                return (state, total + value.astype(jnp.float32)), None

            return lax.scan(batch, carry, (jax.random.split(key_batches, per_epoch), rows))[0]

        return lax.fori_loop(*span, epoch, (state, jnp.zeros(())))

    return jax.vmap(one, in_axes=(0, 0, 0 if images.ndim == 5 else None))(keys, state, images)


@functools.partial(jax.jit, static_argnames=("network", "settings"))
def _predict(
    variables: Variables, images: Array, constants: tuple[Array, Array], *, network: nn.Module, settings: Settings
) -> Array:
    """Classes int32 `(S,B)` that students predict for uint8 images `(B,H,W,C)`."""
    x = from_bytes(images, *constants)
    return jax.vmap(lambda one: jnp.argmax(_logits(network, one, x, settings), -1))(variables)
