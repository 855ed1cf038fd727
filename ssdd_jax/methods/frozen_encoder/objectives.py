"""Losses of distilled images for a frozen encoder, as functions of features: gradient matching and closed form.

Linear Gradient Matching (LGM; Cazenavette, Torralba and Sitzmann, NeurIPS 2025, arXiv 2511.16674): the
gradients of a random linear head on distilled images point where those on real images do. CLP-DD ("Closed-Form
Linear-Probe Dataset Distillation for Pre-trained Vision Models", 2026, arXiv 2605.07194): the head that distilled
images determine, by ridge regression in closed form, classifies real images.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import optax

from ssdd_jax import krr

Array = jax.Array

# Deviation of a random head's weights; its bias is 0 (LGM's published code).
HEAD_STD = 0.01


def random_head(key: Array, dim: int, classes: int) -> Array:
    """Draw the weights `(D,classes)` of a linear head without bias, from features of length `dim`."""
    return HEAD_STD * jax.random.normal(key, (dim, classes))


def head_gradient(head: Array, features: Array, labels: Array) -> tuple[Array, Array]:
    """Compute the gradient of the mean cross-entropy in the weights and in the bias of a linear head of bias 0.

    In closed form, `features^T (softmax(features head) - onehot) / B`, so that a loss of it needs no gradient of a
    gradient.

    Args:
        head: Weights `(D,classes)`.
        features: Features `(B,D)`.
        labels: Classes, int `(B,)`.

    Returns:
        Gradients `(D,classes)` and `(classes,)`.
    """
    head, features = jnp.asarray(head), jnp.asarray(features)
    chex.assert_rank([head, features], 2)
    with jax.default_matmul_precision("highest"):
        errors = jax.nn.softmax(features @ head) - jax.nn.one_hot(labels, head.shape[1], dtype=features.dtype)
        return features.T @ errors / len(features), errors.mean(0)


def gradient_matching(real: tuple[Array, Array], distilled: tuple[Array, Array]) -> Array:
    """One minus the cosine of the angle between two gradients, a scalar between 0 and 2. Differentiable.

    Args:
        real: Gradient on real images, from `head_gradient`.
        distilled: Gradient on distilled images.
    """
    first, second = (jnp.concatenate([jnp.ravel(part) for part in pair]) for pair in (real, distilled))
    # PyTorch's bound, of each.
    norms = [jnp.maximum(jnp.linalg.norm(vector), 1e-8) for vector in (first, second)]
    return 1 - jnp.vdot(first / norms[0], second / norms[1], precision="highest")


def ridge_scores(features: Array, labels: Array, others: Array, *, classes: int, ridge_scale: float = 1e-3) -> Array:
    """Compute the scores of the head that ridge regression fits to labelled features. Differentiable.

    Args:
        features: Features `(P,D)`, centred.
        labels: Their classes, int `(P,)`.
        others: Features to classify `(n,D)`, centred likewise.
        classes: Number of classes.
        ridge_scale: Ridge as a share of the kernel's trace.

    Returns:
        Scores `(n,classes)`.
    """
    # The wanted scores are centred too: the head has no bias.
    wanted = jax.nn.one_hot(labels, classes, dtype=features.dtype) - 1 / classes
    return krr.predict(features, wanted, others, ridge_scale)


def closed_form(
    distilled: tuple[Array, Array],
    real: tuple[Array, Array],
    *,
    classes: int,
    ridge_scale: float = 1e-3,
    temperature: float = 0.1,
) -> Array:
    """Cross-entropy on real images of the head that ridge regression fits to distilled ones, a scalar. Differentiable.

    Args:
        distilled: Features `(P,D)` and classes, int `(P,)`.
        real: Features `(B,D)` and classes, int `(B,)`.
        classes: Number of classes.
        ridge_scale: Ridge as a share of the kernel's trace.
        temperature: Divides the predictions, which are fitted to 0 and 1, before the softmax.
    """
    scores = ridge_scores(*distilled, real[0], classes=classes, ridge_scale=ridge_scale)
    return optax.softmax_cross_entropy_with_integer_labels(scores / temperature, real[1]).mean()
