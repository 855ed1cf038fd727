"""What a pre-trained network is worth as a start: all of its weights are trained further on a labelled target set.

The protocol of KRR-ST (Lee et al., ICLR 2024; `algorithms/finetune.py` and `test.py` of its published code). One
difference: the last batch of an epoch is filled up where the published one is smaller.
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

# Columns that a head has at least; above, a power of two. Targets of nearly as many classes share a compiled program.
HEAD_AT_LEAST = 16
# Test images that go through a network at a time.
PREDICT = 256
# Bytes of images that are gathered for a call.
GATHERED = 2**29
# What stands in the place of minus infinity, which has no gradient.
NEVER = -1e30


class Settings(NamedTuple):
    """How a network is fine-tuned: SGD with cosine annealing to 0, step by step.

    Attributes:
        steps: Published: 10,000 on CIFAR-10, CIFAR-100 and Tiny ImageNet, 5,000 on the other targets.
        batch_size: Images per step.
        learning_rate: Of the first step.
        momentum: Of SGD.
        weight_decay: Of every parameter; added to the gradient.
        padding: Black pixels on every side before the random crop.
        flip: Probability of a horizontal flip; published: 0.5, and 0 on SVHN.
        per_call: Steps per call of the compiled program, whose images are in memory together.
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
    """A network in training.

    Attributes:
        variables: `params` and `batch_stats`.
        velocity: SGD's momentum, one number per parameter.
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

    A compiled program depends on the network and the size of the images, not on how many images there are nor, but for
    the next power of two, on how many classes.

    Args:
        keys: PRNG keys `(S,)`: of the new head, the order of the images and their augmentation.
        network: The networks' module.
        variables: Their variables; every leaf has a leading axis S.
        train: Images uint8 `(n,H,W,C)` and labels int32 `(n,)`.
        test: Images uint8 `(m,H,W,C)` and labels int32 `(m,)`.
        classes: Number of classes.
        mean: Mean of each channel `(C,)` that a network's input is normalised by, of pixels in 0..1.
        std: Standard deviation of each channel `(C,)`.
        settings: How they are trained.
        together: Networks that are trained side by side; all by default. Memory, not results, depends on it.
        name: What the progress bar says; no bar if empty.

    Returns:
        Percent of test labels predicted after the last step, `(S,)`.

    Raises:
        ValueError: If there are no images, a label is not one of the classes, or a setting is not positive.
        UserError: If a network diverged.
    """
    count = len(keys)
    size = count if together is None else min(together, count)
    _check(train, test, classes, settings)
    if size < 1:
        raise ValueError(f"together must be positive, got {together} for {count} keys")
    options: dict[str, Any] = {"classes": jnp.int32(classes), "mean": jnp.asarray(mean), "std": jnp.asarray(std)}
    found = []
    for group in np.array_split(np.arange(count), -(-count // size)):
        own, mine = jax.tree.map(lambda leaf: leaf[group], (keys, variables))  # noqa: B023, used at once
        split = jax.vmap(lambda key: jax.random.split(key, 3))(own)
        wide, mine = _with_heads(split[:, 0], network, mine, classes=classes, shape=train[0].shape[1:])
        mine = fit(split[:, 1:], wide, mine, train, settings=settings, name=name, **options)
        found.append(_accuracy(wide, mine, test, **options))
    return np.concatenate(found)


def with_head(
    key: Array,
    network: nn.Module,
    variables: Variables,
    classes: int,
    image_shape: tuple[int, ...],
) -> tuple[nn.Module, Variables]:
    """The network with a new last layer; all else is kept, running statistics included.

    Args:
        key: PRNG key.
        network: The pre-trained network's module.
        variables: Its `params` and `batch_stats`.
        classes: Number of classes.
        image_shape: `(H,W,C)`.

    Returns:
        The module with `dim = classes`, and its variables.
    """
    changed: Any = network.clone(dim=classes)
    fresh = initialize(key, changed, image_shape)["params"]["fc"]
    return changed, {**variables, "params": {**variables["params"], "fc": fresh}}


def augment(key: Array, images: Array, *, padding: int, flip: float) -> Array:
    """Random crops of padded images, some of them mirrored left to right; every image by itself.

    Args:
        key: PRNG key.
        images: Pixels `(B,H,W,C)`, before they are normalised: 0 is black.
        padding: Black pixels on every side; a corner of the crop is one of `0 .. 2 padding` in both directions.
        flip: Probability of mirroring an image.

    Returns:
        An array like `images`.
    """
    key_crop, key_flip = jax.random.split(key)
    black = jnp.zeros(images.shape[-1:], images.dtype)
    cropped = transforms.random_crop(key_crop, images, black, padding=padding)
    return transforms.random_flip(key_flip, cropped, probability=flip)


def rates(settings: Settings) -> np.ndarray:
    """The rate of every step, float32 `(steps,)`, as `torch.optim.lr_scheduler.CosineAnnealingLR` has them."""
    done = np.arange(settings.steps) / settings.steps
    return (settings.learning_rate * 0.5 * (1 + np.cos(np.pi * done))).astype(np.float32)


def loss(
    params: Any, batch_stats: Any, x: Array, labels: Array, *, network: nn.Module, classes: Array
) -> tuple[Array, Any]:
    """Cross-entropy in train mode, and the updated running statistics.

    Args:
        params: The network's parameters.
        batch_stats: Its running statistics.
        x: Network inputs `(B,H,W,C)`.
        labels: int32 `(B,)`.
        network: Its module; `dim` may be larger than the number of classes.
        classes: Number of classes, a scalar; nothing depends on the columns of the head beyond.

    Returns:
        Mean over the batch, a scalar, and the new `batch_stats`.
    """
    chex.assert_rank([x, labels], [4, 1])
    variables = {"params": params, "batch_stats": batch_stats}
    found: Any = network.apply(variables, x, train=True, mutable=["batch_stats"])
    (_, logits), updated = found
    value = optax.softmax_cross_entropy_with_integer_labels(_possible(logits, classes), labels).mean()
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
    """One step of SGD, as `torch.optim.SGD` takes it.

    Args:
        key: PRNG key.
        state: The network.
        batch: Images uint8 `(B,H,W,C)` and labels int32 `(B,)`.
        rate: Of this step, a scalar.
        network: The module.
        classes: Number of classes, a scalar.
        mean: Of each channel `(C,)`.
        std: Of each channel `(C,)`.
        settings: Augmentation, momentum and weight decay.

    Returns:
        The network after the step, and the loss before it.
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
    """The steps `first .. first + count` of networks side by side; `batches` may hold more, lest a program is new."""
    first, count = span
    one = jax.vmap(lambda key, state, batch, rate: step(key, state, batch, rate, **options), in_axes=(0, 0, 0, None))

    def body(number: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
        batch = jax.tree.map(lambda part: lax.dynamic_index_in_dim(part, number, keepdims=False), batches)
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, first + number)
        return one(own, carry[0], batch, rates[number])

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
    """Networks side by side after all steps; the images of a call are gathered while the call before it runs.

    Args:
        keys: PRNG keys `(S,2)`: of each network's order and of its augmentation.
        network: Their module.
        variables: Their variables, with a leading axis S; donated.
        train: Images uint8 `(n,H,W,C)` and labels int32 `(n,)`.
        settings: How they are trained.
        name: What the progress bar says; no bar if empty.
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
    """Rows `(batch,)` of one mini-batch after another, without end: shuffled epochs, as `epochs.shuffled` has them.

    They are drawn by NumPy, since JAX would compile anew for every number of images.
    """
    seed = np.asarray(jax.random.key_data(key)).tolist()
    for number in itertools.count():
        order = np.random.default_rng([*seed, number]).permutation(count)
        yield from np.resize(order, (-(-count // batch_size), batch_size))


def _with_heads(
    keys: Array, network: nn.Module, variables: Variables, *, classes: int, shape: Any
) -> tuple[nn.Module, Variables]:
    """New heads of as many columns as the next power of two, zeros beyond the number of classes."""
    found = jax.vmap(lambda key, one: with_head(key, network, one, classes, shape)[1])(keys, variables)
    columns = max(HEAD_AT_LEAST, 1 << (classes - 1).bit_length())
    fc = found["params"]["fc"]
    fc = {name: jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, columns - classes)]) for name, leaf in fc.items()}
    wide: Any = network.clone(dim=columns)
    return wide, {**found, "params": {**found["params"], "fc": fc}}


def _possible(logits: Array, classes: Array) -> Array:
    """The logits `(B,dim)` without those of surplus columns."""
    return jnp.where((jnp.arange(logits.shape[-1]) < classes)[None], logits, NEVER)


@functools.partial(jax.jit, static_argnames="network")
def _predict(
    variables: Variables, images: Array, *, network: nn.Module, classes: Array, mean: Array, std: Array
) -> Array:
    """Classes `(S,B)` that networks side by side see in the same images, in eval mode."""

    def one(variables: Variables) -> Array:
        found: Any = network.apply(variables, from_bytes(images, mean, std), train=False)
        return jnp.argmax(_possible(found[1], classes), -1)

    return jax.vmap(one)(variables)


def _accuracy(
    network: nn.Module, variables: Variables, test: tuple[np.ndarray, np.ndarray], **options: Any
) -> np.ndarray:
    """Percent `(S,)`, a batch of test images at a time."""
    images, labels = test
    correct: Any = 0
    for begin in range(0, len(images), PREDICT):
        part, known = images[begin : begin + PREDICT], labels[begin : begin + PREDICT]
        padded = np.pad(part, ((0, PREDICT - len(part)), *((0, 0),) * 3))
        predicted = np.asarray(_predict(variables, padded, network=network, **options))[:, : len(part)]
        correct = correct + (predicted == known[None]).sum(1)
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
