"""Weighted k-NN on frozen features."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

# Test images per k-NN batch; their similarities to all training images are in memory together.
KNN_CHUNK = 256


def knn(
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    *,
    classes: int,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> Array:
    """Classify test images by a weighted vote of their nearest training images (k-NN).

    Neighbours are the training images with the largest cosine similarity; each votes for its class with the weight
    `exp(similarity / temperature)`. Wu et al., "Unsupervised feature learning via non-parametric instance
    discrimination", CVPR 2018; 20 neighbours as in solo-learn (`utils/knn.py`).

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        classes: Number of classes.
        neighbours: Number of neighbours; all training images if there are fewer.
        temperature: Temperature of the weights; a smaller one gives nearer neighbours more weight.

    Returns:
        Test accuracy in percent, a scalar.
    """
    train, test = jax.tree.map(jnp.asarray, (train, test))
    chex.assert_rank([train[0], test[0]], 2)
    count = min(neighbours, len(train[0]))
    # Scaling the products instead of the training features avoids a copy of the features.
    shrink = 1 / jnp.maximum(jnp.linalg.norm(train[0], axis=1), 1e-12)

    def classify(query: Array) -> Array:
        direction = query / jnp.maximum(jnp.linalg.norm(query), 1e-12)
        similarity, nearest = lax.top_k((train[0] @ direction) * shrink, count)
        return vote(similarity, train[1][nearest], classes=classes, temperature=temperature)

    with jax.default_matmul_precision("highest"):
        predicted = lax.map(classify, test[0], batch_size=KNN_CHUNK)
    return 100.0 * jnp.mean((predicted == test[1]).astype(jnp.float32))


def vote(similarity: Array, labels: Array, *, classes: int, temperature: float) -> Array:
    """Return the class, an int32 scalar, with the largest weight of the neighbours.

    Args:
        similarity: Cosine similarities of the neighbours `(k,)`.
        labels: Their labels, int32 `(k,)`.
        classes: Number of classes.
        temperature: Temperature of the weights.
    """
    # Relative to the largest possible weight, which does not change the vote and avoids overflow.
    weights = jnp.exp((similarity - 1) / temperature)
    return jnp.argmax(jnp.zeros(classes, weights.dtype).at[labels].add(weights))
