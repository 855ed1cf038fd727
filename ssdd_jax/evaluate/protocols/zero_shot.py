"""Target data-free distillation: a student learns a task only from a teacher's predictions for distilled images.

KRR-ST (Lee et al., "Self-supervised dataset distillation for transfer learning", ICLR 2024, Table 4) with the
hyperparameters of its published code (`test_kd.py`, `algorithms/zeroshot_kd.py`): the student is pre-trained on the
distilled set and gets a new classifier. It imitates a supervised teacher of the target on augmented distilled images,
and is then tested on the target's test images. The baseline trains on Gaussian noise, new for every batch.

The published code never leaves train mode: batch norm normalises by the statistics of each batch, both in the teacher,
which thereby adapts to images unlike its training images, and in the student's test. Accuracies depend on it, so it is
the default here; see `Settings.batch_statistics`. One difference remains: the last batch of an epoch is filled up from
the beginning of the epoch's order, while the published one is smaller.
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

# Approximate number of steps per call of the compiled program; a run can be interrupted and is checked between calls.
STEPS_PER_CALL = 16


class Settings(NamedTuple):
    """Settings of the distillation; the defaults are the published ones.

    Attributes:
        epochs: Passes over the distilled images.
        batch_size: Images per step, and per batch of the test.
        learning_rate: AdamW's learning rate in the first epoch; epoch e of E multiplies it by
            `(1 + cos(pi e / E)) / 2`.
        noise_learning_rate: The learning rate if the batches are noise.
        weight_decay: AdamW's weight decay, applied to every parameter.
        temperature: Divisor of both networks' logits.
        batch_statistics: If True, batch norm in the teacher and in the test uses the statistics of each batch, else the
            running statistics. The student's training always uses the statistics of the batch.
    """

    epochs: int = 1000
    batch_size: int = 512
    learning_rate: float = 1e-4
    noise_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    temperature: float = 1.0
    batch_statistics: bool = True


class State(NamedTuple):
    """Training state of a student.

    Attributes:
        variables: `params` and `batch_stats`.
        opt_state: State of AdamW: two moments per parameter, and the number of steps.
    """

    variables: Variables
    opt_state: Any


def loss(student: Array, teacher: Array, *, temperature: float = 1.0) -> Array:
    """Compute the cross-entropy between the teacher's and the student's class probabilities.

    Args:
        student: Logits of the student `(B,classes)`.
        teacher: Logits of the teacher `(B,classes)`, which get no gradient.
        temperature: Divisor of both logits.

    Returns:
        `-sum softmax(teacher) log_softmax(student)`, mean over the batch, a scalar.
    """
    chex.assert_equal_shape([student, teacher])
    probabilities = jax.nn.softmax(lax.stop_gradient(teacher) / temperature)
    return -jnp.mean(jnp.sum(probabilities * jax.nn.log_softmax(student / temperature), axis=-1))


def optimizer(settings: Settings, steps_per_epoch: int, *, noise: bool = False) -> optax.GradientTransformation:
    """Create AdamW with a learning rate that is constant within an epoch and follows half a cosine over the epochs.

    Args:
        settings: Learning rates, weight decay and the number of epochs.
        steps_per_epoch: Number of steps per epoch.
        noise: Use the learning rate for noise.
    """
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
    """Take one step of AdamW towards the teacher's predictions for a batch.

    Args:
        state: The student's state before the step.
        x: Network inputs `(B,H,W,C)`.
        student: Module of the student.
        teacher: Module and variables of the teacher, which are not changed.
        adamw: Optimizer from `optimizer`.
        settings: Temperature, and whether the teacher uses the statistics of the batch.

    Returns:
        The student's state after the step, and the loss before it, a scalar.
    """
    teacher_logits = _logits(*teacher, x, settings)

    def objective(params: Any) -> tuple[Array, Any]:
        variables = {"params": params, "batch_stats": state.variables["batch_stats"]}
        (_, logits), updated = student.apply(variables, x, train=True, mutable=["batch_stats"])
        return loss(logits, teacher_logits, temperature=settings.temperature), updated.get("batch_stats", {})

    params = state.variables["params"]
    (value, stats), gradient = jax.value_and_grad(objective, has_aux=True)(params)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of an integer
        updates, opt_state = adamw.update(gradient, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    return State({"params": params, "batch_stats": stats}, opt_state), value


def _logits(network: Any, variables: Variables, x: Array, settings: Settings) -> Array:
    """Logits `(B,classes)` with batch norm as in the settings; running statistics are not updated."""
    if settings.batch_statistics:  # train mode, discarding the updated statistics
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
    """Train one student per key and test it.

    Args:
        keys: PRNG keys `(S,)`; a student depends on its own key only, up to rounding.
        student: Module of the students, whose `dim` is the number of classes, and variables with a leading axis S.
        teacher: Module of the teacher, with the same `dim`, and its variables.
        images: Distilled images, network inputs `(P,H,W,C)` for all students or `(S,P,H,W,C)`; with `noise` only
            their number and shape matter.
        test: Test images of the target, uint8 `(m,H,W,C)`, and labels int32 `(m,)`.
        mean: Mean of each channel `(C,)` for the normalisation of test images, of pixels in 0..1.
        std: Standard deviation of each channel `(C,)`.
        settings: Settings of training and test.
        noise: Train on Gaussian noise, new for each batch, at `noise_learning_rate`.
        together: Number of students trained side by side; all by default.
        name: Label of the progress bar; no bar if empty.

    Returns:
        Test accuracy of each student in percent, float64 `(S,)`.

    Raises:
        ValueError: If the shapes do not fit together.
        UserError: If the loss of a student is not finite.
    """
    _check(keys, student, teacher, images, test)
    count = len(keys)
    size = min(count, together or count)
    accuracies = []
    # Groups bound the memory of training.
    for begin in range(0, count, size):
        part = slice(begin, begin + size)
        group_images = images[part] if images.ndim == 5 else images
        start = jax.tree.map(lambda leaf: leaf[part], student[1])  # noqa: B023, used at once
        trained = _train(
            keys[part],
            (student[0], start),
            teacher,
            group_images,
            settings=settings,
            noise=noise,
            first=begin,
            name=name,
        )
        accuracies.append(accuracy(student[0], trained, test, mean=mean, std=std, settings=settings))
    return np.concatenate(accuracies)


def accuracy(
    network: nn.Module,
    variables: Variables,
    test: Labelled,
    *,
    mean: Constants,
    std: Constants,
    settings: Settings = Settings(),
) -> np.ndarray:
    """Compute the test accuracy of students, in batches in the order of the images.

    The last batch is not padded: with `batch_statistics` its statistics are those of the remaining images.

    Args:
        network: Module of the students.
        variables: Variables of the students with a leading axis S.
        test: Images uint8 `(m,H,W,C)` and labels int32 `(m,)`.
        mean: Mean of each channel `(C,)`, of pixels in 0..1.
        std: Standard deviation of each channel `(C,)`.
        settings: Batch size, and whether batch norm uses the statistics of each batch.

    Returns:
        Accuracy in percent, float64 `(S,)`.
    """
    images, labels = test
    constants = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    correct: Any = 0
    for begin in range(0, len(images), settings.batch_size):
        part = slice(begin, begin + settings.batch_size)
        predicted = _predict(variables, images[part], constants, network=network, settings=settings)
        correct = correct + (np.asarray(predicted) == labels[part][None]).sum(1)
    return 100.0 * correct / len(images)


def train_teacher(
    key: Array,
    network: nn.Module,
    train: Labelled,
    *,
    mean: Constants,
    std: Constants,
    settings: finetune.Settings = finetune.Settings(),
) -> Variables:
    """Train a supervised teacher of the target from scratch.

    KRR-ST's code includes a trained ResNet-18 for CIFAR-10 but not its training. This function uses the recipe of that
    code for training from scratch (`algorithms/scratch.py`), which equals the one for fine-tuning.

    Args:
        key: PRNG key.
        network: Module of the teacher, whose `dim` is the number of classes.
        train: Training images of the target uint8 `(n,H,W,C)` and labels int32 `(n,)`.
        mean: Mean of each channel `(C,)`, of pixels in 0..1.
        std: Standard deviation of each channel `(C,)`.
        settings: Training settings.

    Returns:
        `params` and `batch_stats` of the teacher.

    Raises:
        UserError: If the network diverges.
    """
    teacher: Any = network
    key_init, key_train = jax.random.split(key)
    # `fit` trains networks side by side: here a single one.
    stacked = jax.tree.map(lambda leaf: leaf[None], initialize(key_init, network, train[0].shape[1:]))
    options: dict[str, Any] = {"mean": jnp.asarray(mean, jnp.float32), "std": jnp.asarray(std, jnp.float32)}
    options |= {"classes": jnp.int32(teacher.dim), "settings": settings}
    trained = finetune.fit(jax.random.split(key_train, 2)[None], network, stacked, train, **options)
    return jax.tree.map(lambda leaf: leaf[0], trained)


def _check(keys: Array, student: Model, teacher: Model, images: Array, test: Labelled) -> None:
    seeds = {len(leaf) for leaf in jax.tree.leaves(student[1])}
    if images.ndim == 5:
        seeds.add(len(images))
    if seeds != {len(keys)}:
        raise ValueError(f"{len(keys)} keys, but students or images for {sorted(seeds)}")
    if student[0].dim != teacher[0].dim:
        raise ValueError(f"the student has {student[0].dim} classes, the teacher {teacher[0].dim}")
    if images.shape[-3:] != test[0].shape[1:] or len(test[0]) != len(test[1]) or not len(test[0]):
        raise ValueError(
            f"distilled images {images.shape} and test images {test[0].shape} must have one shape (H,W,C), "
            f"and there must be one label per test image, got {len(test[1])}"
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
    """Train a group of students for all epochs; `first` is the number of the first student, for error messages."""
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
    """Train a group of students for the epochs `span[0] .. span[1] - 1`; returns states and sums of losses `(S,)`."""
    count, shape = images.shape[-4], images.shape[-3:]
    size, per_epoch = epochs.batch_of(count, settings.batch_size)
    adamw = optimizer(settings, per_epoch, noise=noise)

    def advance(key: Array, state: State, images: Array) -> tuple[State, Array]:
        def epoch(number: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
            # Folding in the number of the epoch makes results independent of the steps per call.
            key_order, key_batches = jax.random.split(jax.random.fold_in(key, number))
            indices = epochs.shuffled(key_order, count=count, batch_size=settings.batch_size)

            def batch(carry: tuple[State, Array], item: tuple[Array, Array]) -> tuple[tuple[State, Array], None]:
                state, total = carry
                key_batch, batch_indices = item
                if noise:
                    x = jax.random.normal(key_batch, (size, *shape), images.dtype)
                else:
                    x = diff_augment.augment(key_batch, images[batch_indices])
                state, value = step(state, x, student, (teacher, teacher_variables), adamw=adamw, settings=settings)
                return (state, total + value.astype(jnp.float32)), None

            return lax.scan(batch, carry, (jax.random.split(key_batches, per_epoch), indices))[0]

        return lax.fori_loop(*span, epoch, (state, jnp.zeros(())))

    return jax.vmap(advance, in_axes=(0, 0, 0 if images.ndim == 5 else None))(keys, state, images)


@functools.partial(jax.jit, static_argnames=("network", "settings"))
def _predict(
    variables: Variables, images: Array, constants: tuple[Array, Array], *, network: nn.Module, settings: Settings
) -> Array:
    """Predicted classes int32 `(S,B)` of students for uint8 images `(B,H,W,C)`."""
    x = from_bytes(images, *constants)
    return jax.vmap(lambda tree: jnp.argmax(_logits(network, tree, x, settings), -1))(variables)
