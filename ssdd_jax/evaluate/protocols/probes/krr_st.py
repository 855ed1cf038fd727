"""KRR-ST's linear probe: SGD on the features as they are (Lee et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ssdd_jax.evaluate.protocols.probes.common import accuracy, logits
from ssdd_jax.training import epochs

Array = jax.Array


class SgdSettings(NamedTuple):
    """Settings of KRR-ST's linear probe: SGD, momentum 0.9, cosine decay, no weight decay.

    Attributes:
        steps: Number of SGD steps, rounded up to whole epochs.
        batch_size: Images per step.
        learning_rate: Learning rate of the first step.
    """

    steps: int = 5000
    batch_size: int = 512
    learning_rate: float = 0.2


def linear_krr_st(
    key: Array,
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    *,
    classes: int,
    settings: SgdSettings = SgdSettings(),
) -> Array:
    """Train a linear classifier on all labels by SGD and test it.

    Args:
        key: PRNG key.
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        classes: Number of classes.
        settings: Training settings.

    Returns:
        Test accuracy in percent, a scalar.
    """
    weights = fit_linear_krr_st(key, train, classes=classes, settings=settings)
    return accuracy(logits(weights, test[0]), test[1])


def fit_linear_krr_st(
    key: Array, train: tuple[Array, Array], *, classes: int, settings: SgdSettings = SgdSettings()
) -> Array:
    """Train a linear classifier on all labels by SGD.

    Args:
        key: PRNG key of the initial weights and of the order of the images.
        train: Features `(n,F)` and labels int32 `(n,)`.
        classes: Number of classes.
        settings: Training settings.

    Returns:
        Weights `(F+1,classes)`; the last row is the bias.
    """
    features, labels = map(jnp.asarray, train)
    chex.assert_rank([features, labels], [2, 1])
    chex.assert_equal_shape_prefix([features, labels], 1)
    made, (key_init, key_order) = training(features.shape, classes=classes, settings=settings), jax.random.split(key)
    weights, _ = epochs.run(
        key_order,
        made.init(key_init),
        lambda carry, indices: made.step(carry, features[indices], labels[indices]),
        count=len(features),
        batch_size=settings.batch_size,
        epochs=made.epochs,
    )
    return weights


class Training(NamedTuple):
    """Training of the probe; its carry holds the weights and the state of the optimizer.

    Attributes:
        init: `key -> carry`.
        step: `(carry, features (B,F), labels (B,)) -> carry`.
        epochs: Number of passes over the images.
        steps: Number of steps in all.
    """

    init: Callable[[Array], Any]
    step: Callable[[Any, Array, Array], Any]
    epochs: int
    steps: int


def training(shape: Sequence[int], *, classes: int, settings: SgdSettings) -> Training:
    """Build the training of the probe for features of the shape `(n,F)`."""
    examples, width = shape
    _, per_epoch = epochs.batch_of(examples, settings.batch_size)
    # Whole epochs, so that the cosine reaches 0 in the last step.
    count = -(-settings.steps // per_epoch)
    schedule = optax.cosine_decay_schedule(settings.learning_rate, count * per_epoch)
    optimizer = optax.sgd(schedule, momentum=0.9)

    def init(key: Array) -> tuple[Array, optax.OptState]:
        # Initial weights as those of `torch.nn.Linear`.
        weights = jax.random.uniform(key, (width + 1, classes), minval=-(width**-0.5), maxval=width**-0.5)
        return weights, optimizer.init(weights)

    def loss(weights: Array, features: Array, labels: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(weights, features), labels).mean()

    def step(carry: tuple[Array, optax.OptState], features: Array, labels: Array) -> tuple[Array, optax.OptState]:
        weights, opt_state = carry
        gradient = jax.grad(loss)(weights, features, labels)
        with jax.numpy_dtype_promotion("standard"):  # optax divides an integer by a float
            updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(weights, updates), opt_state

    return Training(init, step, count, count * per_epoch)
