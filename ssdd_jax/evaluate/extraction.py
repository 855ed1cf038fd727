"""Features of frozen networks, and the statistics of their batch norm on images of the target."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax import models
from ssdd_jax.data import mapped
from ssdd_jax.data.preprocess import from_bytes
from ssdd_jax.models import norm

Array = jax.Array
Variables = Any

# Images per forward pass in feature extraction.
EXTRACT = 256


def calibrate(
    network: nn.Module, variables: Variables, images: np.ndarray, *, mean: np.ndarray, std: np.ndarray
) -> Variables:
    """Replace the running statistics of batch norm by the exact statistics of images, which need no labels.

    Every layer gets the mean and the unbiased variance of its inputs in a forward pass in train mode, in which the
    layers before it are normalised by their own statistics of the same images.

    Args:
        network: The architecture.
        variables: Variables of one network.
        images: Images uint8 `(n,H,W,C)`, which pass through the network together: some hundreds.
        mean: Mean of each channel `(C,)`, of pixels in 0..1.
        std: Standard deviation of each channel `(C,)`.

    Returns:
        The variables with new `batch_stats`; unchanged for a network without batch norm.
    """
    if not jax.tree.leaves(variables.get("batch_stats", {})):
        return variables
    constants = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return {**variables, "batch_stats": _statistics(variables, jnp.asarray(images), *constants, network=network)}


@functools.partial(jax.jit, static_argnames="network")
def _statistics(variables: Variables, images: Array, mean: Array, std: Array, *, network: nn.Module) -> Any:
    # A running statistic that starts at zero becomes `MOMENTUM` times that of the batch.
    zeros = {**variables, "batch_stats": jax.tree.map(jnp.zeros_like, variables["batch_stats"])}
    _, updated = network.apply(zeros, from_bytes(images, mean, std), train=True, mutable=["batch_stats"])
    return jax.tree.map(lambda leaf: leaf / norm.MOMENTUM, updated["batch_stats"])


def extract(
    network: nn.Module,
    variables: Variables,
    images: np.ndarray,
    *,
    mean: np.ndarray,
    std: np.ndarray,
    path: pathlib.Path | None = None,
) -> np.ndarray:
    """Extract features of a frozen network, a batch at a time.

    Args:
        network: The architecture.
        variables: Variables of one network.
        images: Images uint8 `(n,H,W,C)`.
        mean: Mean of each channel `(C,)`, of pixels in 0..1.
        std: Standard deviation of each channel `(C,)`.
        path: A `.npy` file to write the features to, batch by batch; None to hold them in memory.

    Returns:
        Features `(n,F)`, float32; mapped from the file if there is one.

    Raises:
        UserError: If the disk is full.
    """
    constants = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)

    def batches() -> Iterator[np.ndarray]:
        for begin in range(0, len(images), EXTRACT):
            batch = images[begin : begin + EXTRACT]
            # The last batch is padded to avoid recompilation.
            padded = np.concatenate([batch, np.zeros((EXTRACT - len(batch), *batch.shape[1:]), np.uint8)])
            yield np.asarray(_features(variables, padded, *constants, network=network))[: len(batch)]

    if path is not None:
        mapped.write(path, batches(), len(images))
        return mapped.read(path)
    # Filled in place: joining a list of batches would need the memory twice.
    features = np.empty((len(images), width(network, variables, images.shape[1:])), np.float32)
    for number, batch in enumerate(batches()):
        features[number * EXTRACT :][: len(batch)] = batch
    return features


def width(network: nn.Module, variables: Variables, image_shape: Sequence[int]) -> int:
    """Return the length F of a network's features of images `(H,W,C)`; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(functools.partial(models.features, network), variables, images).shape[1]


@functools.partial(jax.jit, static_argnames="network")
def _features(variables: Variables, images: Array, mean: Array, std: Array, *, network: nn.Module) -> Array:
    return models.features(network, variables, from_bytes(images, mean, std))
