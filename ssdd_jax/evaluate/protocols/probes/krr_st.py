"""KRR-ST's linear probe: SGD on the features as they are (Lee et al., ICLR 2024)."""

from __future__ import annotations

from typing import NamedTuple

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
    key_init, key_order = jax.random.split(key)
    # Initial weights as those of `torch.nn.Linear`.
    bound = features.shape[1] ** -0.5
    weights = jax.random.uniform(key_init, (features.shape[1] + 1, classes), minval=-bound, maxval=bound)
    _, per_epoch = epochs.batch_of(len(features), settings.batch_size)
    # Whole epochs, so that the cosine reaches 0 in the last step.
    count = -(-settings.steps // per_epoch)
    schedule = optax.cosine_decay_schedule(settings.learning_rate, count * per_epoch)
    optimizer = optax.sgd(schedule, momentum=0.9)

    def loss(weights: Array, indices: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(weights, features[indices]), labels[indices]
        ).mean()

    def step(carry: tuple[Array, optax.OptState], indices: Array) -> tuple[Array, optax.OptState]:
        weights, opt_state = carry
        gradient = jax.grad(loss)(weights, indices)
        with jax.numpy_dtype_promotion("standard"):  # optax divides an integer by a float
            updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(weights, updates), opt_state

    carry = (weights, optimizer.init(weights))
    weights, _ = epochs.run(key_order, carry, step, count=len(features), batch_size=settings.batch_size, epochs=count)
    return weights
