"""How well the decoded samples that Boost-SSDD starts from teach, for the choice of its sizes.

The measure is the method's outer loss before the first step: kernel ridge regression from the features of untrained
networks, on images that no basis was fitted to. The error of decoded images and targets alone cannot say how many
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
from ssdd_jax.methods.budget import Sizes
from ssdd_jax.models import architectures, initialize

Array = jax.Array

# Images that take part, of which every fifth is held out; images per batch, which untrained batch norm is based on.
IMAGES, FOLDS, BATCH = 10_000, 5, 250
# Shares of the kernel's trace: the best counts, since untrained features need more than the trained ones of the pool.
RIDGES = (1e-4, 1e-3, 1e-2)
NETWORKS = 1


def score_of(config: ConfigDict, source: Source) -> Callable[[Sizes], float]:
    """Prepare the measure of sizes.

    Args:
        config: See `ssdd_jax.config.default`; its student is the architecture.
        source: The data, with all training images or a random part of them.

    Returns:
        A function of sizes: the share of the variance of held-out targets that is predicted (R2), mean over networks.
    """
    images, targets = source.images[:IMAGES], jnp.asarray(source.targets[:IMAGES])
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
        rows = np.arange(-(-count // size) * size) % count
        batches = inputs[rows].reshape(-1, size, *shape)
        found = lax.map(lambda one: network.apply(variables, one, train=True, mutable=["batch_stats"])[0][0], batches)
        return found.reshape(len(rows), -1)[:count]

    predict = jax.jit(krr.predict)
    networks = [initialize(key, network, shape) for key in jax.random.split(jax.random.key(0), NETWORKS)]
    known = [features(variables, tested) for variables in networks]
    spread = jnp.sum(jnp.square(wanted - wanted.mean(0)[None]))
    kept: dict[tuple[int, int], Array] = {}
    target_mean, target_bases = _bases(targets[~held])

    def score(sizes: Sizes) -> float:
        if sizes.base_size not in kept:
            low = decoder.downsample(source.preprocessing.images(images[~held]), sizes.base_size)
            kept[sizes.base_size] = low.reshape(len(low), -1)
        low = kept[sizes.base_size]
        mean, bases = _bases(low)
        chosen = slice(min(sizes.M, len(low)))
        small = _projected(low[chosen], mean, bases[:, : sizes.U]).reshape(-1, *sizes.base_size, shape[-1])
        decoded = decoder.upsample(small, (shape[0], shape[1]))
        taught = _projected(targets[~held][chosen], target_mean, target_bases[:, : sizes.V])
        found = []
        for variables, of_tested in zip(networks, known, strict=True):
            own = features(variables, decoded)
            errors = [jnp.sum(jnp.square(predict(own, taught, of_tested, ridge) - wanted)) for ridge in RIDGES]
            found.append(1 - float(jnp.nanmin(jnp.stack(errors)) / spread))
        return float(np.mean(found))

    return score


@jax.jit
def _bases(vectors: Array) -> tuple[Array, Array]:
    """Mean `(d,)` and principal directions `(d,d)`, the largest variance first."""
    mean = vectors.mean(0)
    with jax.default_matmul_precision("highest"):
        centred = vectors - mean[None]
        return mean, jnp.linalg.eigh(centred.T @ centred)[1][:, ::-1]


@jax.jit
def _projected(vectors: Array, mean: Array, bases: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return mean[None] + (vectors - mean[None]) @ bases @ bases.T
