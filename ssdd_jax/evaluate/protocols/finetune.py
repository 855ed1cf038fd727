"""Fine-tuning: train all weights of a pre-trained network on a labelled target set.

The protocol of KRR-ST (Lee et al., ICLR 2024; `algorithms/finetune.py` and `test.py` of its published code), with one
difference: the last batch of an epoch is filled up to the batch size, while the published one is smaller.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ssdd_jax.data.preprocess import from_bytes
from ssdd_jax.models import initialize
from ssdd_jax.training import loop, transforms

Array = jax.Array
Variables = Any

# Smallest number of columns of a head; larger heads have a power of two. Padding lets targets with similar numbers of
# classes share a compiled program.
HEAD_AT_LEAST = 16
# Test images per forward pass.
PREDICT = 256
# Largest size in bytes of the images gathered for one call.
GATHERED = 2**29
# Logit of surplus columns; minus infinity would have no gradient.
NEVER = -1e30


class Settings(NamedTuple):
    """Settings of fine-tuning by SGD, with the learning rate annealed to 0 by a cosine in every step.

    Attributes:
        steps: Number of SGD steps. Published: 10,000 on CIFAR-10, CIFAR-100 and Tiny ImageNet, 5,000 on the other
            targets.
        batch_size: Images per step.
        learning_rate: Learning rate of the first step.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of every parameter, added to the gradient.
        padding: Black pixels on every side before the random crop.
        flip: Probability of a horizontal flip. Published: 0.5, and 0 on SVHN.
        per_call: Steps per call of the compiled program; the images of a call are in memory together.
    """

    steps: int = 10_000
    batch_size: int = 256
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    padding: int = 4
    flip: float = 0.5
    per_call: int = 25


class State(NamedTuple):
    """Training state of a network.

    Attributes:
        variables: `params` and `batch_stats`.
        velocity: Momentum buffer of SGD, a pytree like `params`.
    """

    variables: Variables
    velocity: Any


def run(
    keys: Array,
    network: nn.Module,
    variables: Variables,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    classes: int,
    mean: Array,
    std: Array,
    settings: Settings = Settings(),
    together: int | None = None,
    name: str = "",
) -> np.ndarray:
    """Fine-tune pre-trained networks, one per key, and test them.

    The compiled program depends on the network, the image size, and the number of classes rounded up to a power of two,
    but not on the number of images.

    Args:
        keys: PRNG keys `(S,)` for the new head, the order of the images and their augmentation.
        network: Module of the networks.
        variables: Variables of the networks; every leaf has a leading axis S.
        train: Images uint8 `(n,H,W,C)` and labels int32 `(n,)`.
        test: Images uint8 `(m,H,W,C)` and labels int32 `(m,)`.
        classes: Number of classes.
        mean: Mean of each channel `(C,)` for the normalisation of inputs, of pixels in 0..1.
        std: Standard deviation of each channel `(C,)`.
        settings: Training settings.
        together: Networks trained side by side; all by default. It affects the memory, not the results.
        name: Label of the progress bar; no bar if empty.

    Returns:
        Test accuracy in percent after the last step, `(S,)`.

    Raises:
        ValueError: If there are no images, a label is out of range, or a setting is not positive.
        UserError: If a network diverges.
    """
    count = len(keys)
    size = count if together is None else min(together, count)
    _check(train, test, classes, settings)
    if size < 1:
        raise ValueError(f"together must be positive, got {together} for {count} keys")
    options: dict[str, Any] = {"classes": jnp.int32(classes), "mean": jnp.asarray(mean), "std": jnp.asarray(std)}
    accuracies = []
    # Groups of nearly equal size, none larger than `size`, which bounds the memory.
    for group in np.array_split(np.arange(count), -(-count // size)):
        group_keys, tuned = jax.tree.map(lambda leaf: leaf[group], (keys, variables))  # noqa: B023, used at once
        split = jax.vmap(lambda key: jax.random.split(key, 3))(group_keys)
        wide, tuned = _with_heads(split[:, 0], network, tuned, classes=classes, shape=train[0].shape[1:])
        tuned = fit(split[:, 1:], wide, tuned, train, settings=settings, name=name, **options)
        accuracies.append(_accuracy(wide, tuned, test, **options))
    return np.concatenate(accuracies)


def with_head(
    key: Array,
    network: nn.Module,
    variables: Variables,
    classes: int,
    image_shape: tuple[int, ...],
) -> tuple[nn.Module, Variables]:
    """Replace the last layer of a network; all other variables are kept, running statistics included.

    Args:
        key: PRNG key of the new layer.
        network: Module of the pre-trained network.
        variables: Its `params` and `batch_stats`.
        classes: Number of classes.
        image_shape: `(H,W,C)`.

    Returns:
        The module with `dim = classes`, and its variables.
    """
    module: Any = network.clone(dim=classes)
    head = initialize(key, module, image_shape)["params"]["fc"]
    return module, {**variables, "params": {**variables["params"], "fc": head}}


def augment(key: Array, images: Array, *, padding: int, flip: float) -> Array:
    """Crop padded images at random and flip some horizontally, independently for each image.

    Args:
        key: PRNG key.
        images: Pixels `(B,H,W,C)` before normalisation: 0 is black.
        padding: Black pixels on every side; the corner of the crop is uniform in `0 .. 2 padding` in both directions.
        flip: Probability of flipping an image.

    Returns:
        Augmented images `(B,H,W,C)`.
    """
    key_crop, key_flip = jax.random.split(key)
    black = jnp.zeros(images.shape[-1:], images.dtype)
    cropped = transforms.random_crop(key_crop, images, black, padding=padding)
    return transforms.random_flip(key_flip, cropped, probability=flip)


def rates(settings: Settings) -> np.ndarray:
    """Compute the learning rate of every step, float32 `(steps,)`.

    The schedule is that of `torch.optim.lr_scheduler.CosineAnnealingLR`.
    """
    progress = np.arange(settings.steps) / settings.steps
    return (settings.learning_rate * 0.5 * (1 + np.cos(np.pi * progress))).astype(np.float32)


def loss(
    params: Any, batch_stats: Any, x: Array, labels: Array, *, network: nn.Module, classes: Array
) -> tuple[Array, Any]:
    """Compute the cross-entropy in train mode and the updated running statistics.

    Args:
        params: Parameters of the network.
        batch_stats: Running statistics of the network.
        x: Network inputs `(B,H,W,C)`.
        labels: Labels int32 `(B,)`.
        network: Module of the network; `dim` may be larger than the number of classes.
        classes: Number of classes, a scalar; surplus columns of the head have no effect.

    Returns:
        Mean loss of the batch, a scalar, and the new `batch_stats`.
    """
    chex.assert_rank([x, labels], [4, 1])
    variables = {"params": params, "batch_stats": batch_stats}
    outputs: Any = network.apply(variables, x, train=True, mutable=["batch_stats"])
    (_, logits), updated = outputs
    value = optax.softmax_cross_entropy_with_integer_labels(_mask_surplus(logits, classes), labels).mean()
    return value, updated.get("batch_stats", {})


def step(
    key: Array,
    state: State,
    batch: tuple[Array, Array],
    rate: Array,
    *,
    network: nn.Module,
    classes: Array,
    mean: Array,
    std: Array,
    settings: Settings,
) -> tuple[State, Array]:
    """Take one step of SGD, as `torch.optim.SGD` does.

    Args:
        key: PRNG key of the augmentation.
        state: The state before the step.
        batch: Images uint8 `(B,H,W,C)` and labels int32 `(B,)`.
        rate: Learning rate, a scalar.
        network: Module of the network.
        classes: Number of classes, a scalar.
        mean: Mean of each channel `(C,)`, of pixels in 0..1.
        std: Standard deviation of each channel `(C,)`.
        settings: Augmentation, momentum and weight decay.

    Returns:
        The state after the step, and the loss before it, a scalar.
    """
    images = augment(key, batch[0], padding=settings.padding, flip=settings.flip)
    params, stats = state.variables["params"], state.variables["batch_stats"]
    of = jax.value_and_grad(functools.partial(loss, network=network, classes=classes), has_aux=True)
    (value, stats), gradient = of(params, stats, from_bytes(images, mean, std), batch[1])
    velocity = jax.tree.map(
        lambda v, g, p: settings.momentum * v + g + settings.weight_decay * p, state.velocity, gradient, params
    )
    params = jax.tree.map(lambda p, v: p - rate * v, params, velocity)
    return State({"params": params, "batch_stats": stats}, velocity), value


@functools.partial(jax.jit, static_argnames=("network", "settings"), donate_argnames="states")
def _steps(
    keys: Array, states: State, batches: tuple[Array, Array], rates: Array, span: tuple[Array, Array], **options: Any
) -> tuple[State, Array]:
    """Take the steps `first .. first + count` of networks side by side; `batches` is padded to avoid recompilation."""
    first, count = span
    step_all = jax.vmap(
        lambda key, state, batch, rate: step(key, state, batch, rate, **options), in_axes=(0, 0, 0, None)
    )

    def body(number: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
        batch = jax.tree.map(lambda part: lax.dynamic_index_in_dim(part, number, keepdims=False), batches)
        # Keys depend on the number of the step only, so that `per_call` does not change results.
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, first + number)
        return step_all(step_keys, carry[0], batch, rates[number])

    return lax.fori_loop(0, count, body, (states, jnp.zeros(len(keys))))


def fit(
    keys: Array,
    network: nn.Module,
    variables: Variables,
    train: tuple[np.ndarray, np.ndarray],
    *,
    settings: Settings,
    name: str = "",
    **options: Any,
) -> Variables:
    """Train networks side by side for all steps, gathering the images of a call while the previous call runs.

    Args:
        keys: PRNG keys `(S,2)`: of each network's order and of its augmentation.
        network: Their module.
        variables: Their variables, with a leading axis S; donated.
        train: Images uint8 `(n,H,W,C)` and labels int32 `(n,)`.
        settings: How they are trained.
        name: Label of the progress bar; no bar if empty.
        **options: `classes`, `mean` and `std`, as `step` takes them.

    Returns:
        Their variables.

    Raises:
        UserError: If a network diverged.
    """
    states = State(variables, jax.tree.map(jnp.zeros_like, variables["params"]))
    orders = [_batches(key, len(train[0]), settings.batch_size) for key in keys[:, 0]]
    batch = len(keys) * settings.batch_size * train[0][0].nbytes
    per_call = max(1, min(settings.per_call, settings.steps, GATHERED // batch))
    # What the rates and the shapes of the batches say is not to make a new program.
    fixed = settings._replace(steps=0, batch_size=0, learning_rate=0.0, per_call=0)
    every, last = np.pad(rates(settings), (0, per_call)), np.zeros(0)
    with loop.bar(name, len(keys) * settings.steps) as bar:
        for first, count in loop.calls(bar, settings.steps, per_call=per_call, weight=len(keys)):
            rows = np.stack([[next(order) for order in orders] for _ in range(per_call)])
            batches = train[0][rows], train[1][rows].astype(np.int32)
            span = np.int32(first), np.int32(count)
            rate = every[first : first + per_call]
            states, value = _steps(keys[:, 1], states, batches, rate, span, network=network, settings=fixed, **options)
            # The losses of the call before, so that the images of the next are gathered while this one runs.
            loop.check_finite(last, lambda _: _diverged(settings))
            last = value
    loop.check_finite(last, lambda _: _diverged(settings))
    return states.variables


def _batches(key: Array, count: int, batch_size: int) -> Iterator[np.ndarray]:
    """Yield indices `(batch,)` of mini-batches of endless shuffled epochs, composed like those of `epochs.shuffled`.

    NumPy draws them, since JAX would recompile for every number of images.
    """
    seed = np.asarray(jax.random.key_data(key)).tolist()
    for number in itertools.count():
        order = np.random.default_rng([*seed, number]).permutation(count)
        yield from np.resize(order, (-(-count // batch_size), batch_size))


def _with_heads(
    keys: Array, network: nn.Module, variables: Variables, *, classes: int, shape: Any
) -> tuple[nn.Module, Variables]:
    """Replace the heads by new ones whose columns are padded with zeros to a power of two."""
    replaced = jax.vmap(lambda key, tree: with_head(key, network, tree, classes, shape)[1])(keys, variables)
    columns = max(HEAD_AT_LEAST, 1 << (classes - 1).bit_length())
    # Padded after the initialization, so that the weights do not depend on the number of surplus columns.
    fc = replaced["params"]["fc"]
    fc = {name: jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, columns - classes)]) for name, leaf in fc.items()}
    wide: Any = network.clone(dim=columns)
    return wide, {**replaced, "params": {**replaced["params"], "fc": fc}}


def _mask_surplus(logits: Array, classes: Array) -> Array:
    """Mask the surplus columns of logits `(B,dim)`, so that no class beyond `classes` is predicted."""
    return jnp.where((jnp.arange(logits.shape[-1]) < classes)[None], logits, NEVER)


@functools.partial(jax.jit, static_argnames="network")
def _predict(
    variables: Variables, images: Array, *, network: nn.Module, classes: Array, mean: Array, std: Array
) -> Array:
    """Predicted classes `(S,B)` of networks side by side for the same images, in eval mode."""

    def predict(variables: Variables) -> Array:
        outputs: Any = network.apply(variables, from_bytes(images, mean, std), train=False)
        return jnp.argmax(_mask_surplus(outputs[1], classes), -1)

    return jax.vmap(predict)(variables)


def _accuracy(
    network: nn.Module, variables: Variables, test: tuple[np.ndarray, np.ndarray], **options: Any
) -> np.ndarray:
    """Test accuracy in percent `(S,)`, a batch of images at a time."""
    images, labels = test
    correct: Any = 0
    for begin in range(0, len(images), PREDICT):
        batch, batch_labels = images[begin : begin + PREDICT], labels[begin : begin + PREDICT]
        # Padded to avoid recompilation; in eval mode the images of a batch do not affect each other.
        padded = np.pad(batch, ((0, PREDICT - len(batch)), *((0, 0),) * 3))
        predicted = np.asarray(_predict(variables, padded, network=network, **options))[:, : len(batch)]
        correct = correct + (predicted == batch_labels[None]).sum(1)
    return 100.0 * correct / len(images)


def _check(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], classes: int, settings: Settings
) -> None:
    for part, (images, labels) in {"training": train, "test": test}.items():
        if images.ndim != 4 or images.dtype != np.uint8 or len(images) == 0 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{part} images must be uint8 (n,H,W,C), at least one, with labels (n,), "
                f"got {images.dtype} {images.shape} and {labels.shape}"
            )
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"{part} labels must be in 0..{classes - 1}, got {labels.min()}..{labels.max()}")
    if min(settings.steps, settings.batch_size, settings.per_call) < 1:
        raise ValueError(f"steps, batch_size and per_call must be positive, got {settings}")


def _diverged(settings: Settings) -> str:
    return (
        "finetune: a network diverged (its loss is not a finite number): "
        f"try a learning rate smaller than {settings.learning_rate:g}"
    )
