"""Score of the sizes of a parameterized set, by which Boost-SSDD can choose them.

The score is the method's outer loss before the first step: kernel ridge regression from the features of an untrained
network, on images that no basis was fitted to. The error of decoded images and targets alone cannot say how many
images are worth how much accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from ssdd_jax import decoder, krr
from ssdd_jax.methods.base import Source
from ssdd_jax.methods.budget import IMAGE_WEIGHTS, MULTIPLES, Sizes
from ssdd_jax.models import architectures, initialize
from ssdd_jax.runtime import signs

Array = jax.Array

# Images that take part, of which every fifth is held out; images per batch, which untrained batch norm is based on.
IMAGES, FOLDS, BATCH = 10_000, 5, 250
# Shares of the kernel's trace: the best counts, since untrained features need more than the trained ones of the pool.
RIDGES = (1e-4, 1e-3, 1e-2)


def score_of(config: ConfigDict, source: Source, base_size: tuple[int, int]) -> Callable[[Sizes], float]:
    """Prepare the measure of sizes.

    Args:
        config: See `ssdd_jax.config.default`; its student is the architecture.
        source: The data, with all training images or a random part of them.
        base_size: Resolution `(h,w)` of the image bases.

    Returns:
        A function of sizes: the share of the variance of held-out targets that is predicted (R2).
    """
    # In an order of its own: data may be sorted by class.
    rows = np.random.default_rng(0).permutation(len(source.images))[:IMAGES]
    images, targets = source.images[rows], jnp.asarray(source.targets)[rows]
    held = np.arange(len(images)) % FOLDS == 0
    shape = tuple(images.shape[1:])
    name = architectures.convnet_name(config.student.widths, config.student.norm)
    network = architectures.make(name, targets.shape[1], shape)
    tested, wanted = source.preprocessing.images(images[held]), targets[held]

    @jax.jit
    def features(variables: Any, inputs: Array) -> Array:
        """Features `(n,F)` of inputs `(n,H,W,C)`, batch by batch; the last batch is filled up."""
        count = len(inputs)
        size = min(BATCH, count)
        filled = np.arange(-(-count // size) * size) % count
        batches = inputs[filled].reshape(-1, size, *shape)
        found = lax.map(lambda one: network.apply(variables, one, train=True, mutable=["batch_stats"])[0][0], batches)
        return found.reshape(len(filled), -1)[:count]

    predict = jax.jit(krr.predict)
    variables = initialize(jax.random.key(0), network, shape)
    known = features(variables, tested)
    spread = jnp.sum(jnp.square(wanted - wanted.mean(0)[None]))
    small = decoder.downsample(source.preprocessing.images(images[~held]), base_size)
    of_images, of_targets = _components(small.reshape(len(small), -1)), _components(targets[~held])

    def score(sizes: Sizes) -> float:
        low = _decoded(of_images, sizes.M, sizes.U).reshape(-1, *small.shape[1:])
        own = features(variables, decoder.upsample(low, (shape[0], shape[1])))
        decoded = _decoded(of_targets, sizes.M, sizes.V)
        errors = [jnp.sum(jnp.square(predict(own, decoded, known, ridge) - wanted)) for ridge in RIDGES]
        found = 1 - float(jnp.nanmin(jnp.stack(errors)) / spread)
        signs.count("sizes tried", len(IMAGE_WEIGHTS) * len(MULTIPLES))
        return found

    return score


def _components(vectors: Array) -> tuple[Array, Array, Array]:
    """Mean, principal components and coefficients of vectors `(n,d)`, as Boost-SSDD starts from them."""
    equal = jnp.full(len(vectors), 1 / len(vectors), vectors.dtype)
    most = min(vectors.shape[1], len(vectors) - 1)
    found: tuple[Array, Array, Array] = jax.jit(decoder.STARTS["pca"], static_argnums=4)(
        jax.random.key(0), vectors, equal, vectors, most
    )
    return found


def _decoded(components: tuple[Array, Array, Array], count: int, bases: int) -> Array:
    """Decode the first `count` vectors from so many components, all vectors if there are fewer."""
    mean, directions, coefficients = components
    with jax.default_matmul_precision("highest"):
        return mean[None] + coefficients[:count, :bases] @ directions[:bases]
