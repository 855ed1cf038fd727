"""Linear heads on a frozen encoder, trained on a few labelled images alone.

Published with Linear Gradient Matching (`distillation/eval.py`): 1,000 epochs of Adam at 0.001 for a batch of 256,
scaled with the batch, down to 0 along a cosine; batches of 100; images mirrored and cropped at random, without noise.
Nothing is chosen by the test images. With few images, so few steps of so small a rate measure the scale of the
features; the head of ridge regression does not. Different here: the last batch of an epoch is filled up with others of
the images instead of smaller, and everything is float32. The baselines are real images: random ones, the nearest to the
mean of each class, and the nearest to each distilled image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ssdd_jax.methods.frozen_encoder import distortions, objectives
from ssdd_jax.training import epochs

Array = jax.Array


class Settings(NamedTuple):
    """Settings of a head's training; the defaults are the published ones.

    Attributes:
        epochs: Passes over the images.
        batch_size: Images per step.
        learning_rate: Adam's rate at the start, for a batch of 256.
        augmentation: The augmentation of the images.
    """

    epochs: int = 1000
    batch_size: int = 100
    learning_rate: float = 1e-3
    augmentation: distortions.Settings = distortions.Settings(noise=False)


class Head(NamedTuple):
    """A linear classifier: weights `(D,classes)` and bias `(classes,)`."""

    weights: Array
    bias: Array

    def scores(self, features: Array) -> Array:
        """Compute the logits `(n,classes)` of features `(n,D)`."""
        return jnp.asarray(features) @ self.weights + self.bias[None]


def train(
    key: Array,
    images: Array,
    labels: Array,
    encode: Callable[[Array], Array],
    *,
    classes: int,
    settings: Settings = Settings(),
) -> Head:
    """Train a head on augmented images.

    Args:
        key: PRNG key.
        images: Pixels between 0 and 1 `(P,H,W,C)`.
        labels: Classes, int `(P,)`.
        encode: Maps pixels `(b,H,W,C)` to features `(b,D)`.
        classes: Number of classes.
        settings: The training.

    Returns:
        The head.
    """
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    key_head, key_order, key_draws = jax.random.split(key, 3)
    size, per_epoch = epochs.batch_of(len(images), settings.batch_size)
    dim = jax.eval_shape(encode, images[:1]).shape[-1]
    optimizer = optax.inject_hyperparams(optax.adam)(settings.learning_rate * size / 256)
    head = Head(objectives.random_head(key_head, dim, classes), jnp.zeros(classes))

    def loss(head: Head, features: Array, wanted: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(head.scores(features), wanted).mean()

    def step(carry: tuple[Head, optax.OptState, Array], rows: Array) -> tuple[Head, optax.OptState, Array]:
        head, state, number = carry
        shape = (size, *images.shape[1:])
        drawn = distortions.draw(jax.random.fold_in(key_draws, number), shape, settings.augmentation)
        features = lax.stop_gradient(encode(distortions.apply(images[rows], drawn)))
        # The rate falls from epoch to epoch.
        share = (number // per_epoch).astype(jnp.float32) / settings.epochs
        rate = settings.learning_rate * size / 256 * (1 + jnp.cos(jnp.pi * share)) / 2
        state = state._replace(hyperparams={**state.hyperparams, "learning_rate": rate})
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of an integer
            updates, state = optimizer.update(jax.grad(loss)(head, features, labels[rows]), state)
        return optax.apply_updates(head, updates), state, number + 1

    start = head, optimizer.init(head), jnp.zeros((), jnp.int32)
    head, _, _ = epochs.run(
        key_order, start, step, count=len(images), batch_size=settings.batch_size, epochs=settings.epochs
    )
    return head


def ridge(features: Array, labels: Array, tested: Array, *, classes: int, ridge_scale: float = 1e-3) -> Array:
    """Classify by the head that ridge regression fits, which does not depend on the scale of the features.

    Args:
        features: Features of the labelled images `(P,D)`, centred.
        labels: Their classes, int `(P,)`.
        tested: Features `(n,D)`, centred likewise.
        classes: Number of classes.
        ridge_scale: Ridge as a share of the kernel's trace.

    Returns:
        Classes, int `(n,)`.
    """
    scores = objectives.ridge_scores(features, labels, tested, classes=classes, ridge_scale=ridge_scale)
    return scores.argmax(-1)


def random_images(key: Array, labels: np.ndarray, per_class: int, classes: int) -> np.ndarray:
    """Draw images of each class.

    Args:
        key: PRNG key.
        labels: Classes of the training images, int `(n,)`.
        per_class: Images of each class; all of them if there are fewer.
        classes: Number of classes.

    Returns:
        Their indices, int `(m,)`.
    """
    order = np.asarray(jax.random.permutation(key, len(labels)))
    return np.concatenate([order[labels[order] == label][:per_class] for label in range(classes)])


def centroids(features: np.ndarray, labels: np.ndarray, per_class: int, classes: int) -> np.ndarray:
    """Find the images whose features are nearest to the mean of their class.

    Args:
        features: Features of the training images `(n,D)`.
        labels: Their classes, int `(n,)`.
        per_class: Images of each class; all of them if there are fewer.
        classes: Number of classes.

    Returns:
        Their indices, int `(m,)`.
    """
    found = []
    for label in range(classes):
        rows = np.flatnonzero(labels == label)
        own = np.asarray(features[rows], np.float32)
        distances = np.linalg.norm(own - own.mean(0), axis=1) if len(rows) else np.zeros(0)
        found.append(rows[np.argsort(distances, kind="stable")[:per_class]])
    return np.concatenate(found)


def neighbours(queries: np.ndarray, query_labels: np.ndarray, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Find the image of the same class whose features point most nearly where those of each distilled image do.

    Args:
        queries: Features of distilled images `(P,D)`.
        query_labels: Their classes, int `(P,)`.
        features: Features of the training images `(n,D)`.
        labels: Their classes, int `(n,)`.

    Returns:
        Indices, int `(P,)`; fewer if there is no image of a class.
    """
    found = np.full(len(queries), -1, np.int64)
    for label in np.intersect1d(query_labels, labels):
        rows, chosen = np.flatnonzero(labels == label), np.flatnonzero(query_labels == label)
        own = np.asarray(features[rows], np.float32)
        own = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
        found[chosen] = rows[(queries[chosen] @ own.T).argmax(1)]
    return found[found >= 0]
