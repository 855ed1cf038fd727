"""Common interface of the networks: initialization, parameter count, and features in eval mode.

A network is a Flax module with an attribute `dim` that maps images `(B,H,W,C)` to features `(B,F)` and predictions
`(B,dim)`, `network.apply(variables, x, train=...)`; with `train=True` the collection `batch_stats` must be mutable.
Predictions are a linear layer `fc` of the features.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssdd_jax.models import chunks
from ssdd_jax.models.starts import COLLECTION, Start

Array = jax.Array
Variables = Mapping[str, Any]
Path = tuple[str, ...]

# Images per chunk in eval mode on a CPU; 4 and 8 were equally fast, 16 and 32 slower.
EVAL_CHUNK = 8

_STATISTICS = {"mean": jnp.zeros, "var": jnp.ones}


def initialize(key: Array, network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Initialize variables from a single random draw, with the same distribution as `network.init`.

    Each separate random array costs up to a second of compilation on a CPU, in every program that creates models. A
    network with layers of other libraries, whose initial distributions are unknown, is initialized by its own `init`.

    Args:
        key: PRNG key.
        network: The network.
        image_shape: `(H,W,C)`.

    Returns:
        `params` and `batch_stats`, float32; `batch_stats` is empty without batch norm.

    Raises:
        ValueError: If the network does not accept images of this size.
    """
    return dict(_initialize(key, network, tuple(image_shape)))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _initialize(key: Array, network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Any]:
    # Abstract evaluation yields shapes and initializers without computing or drawing anything.
    shapes = _traced(network, image_shape)
    params, stats = _by_path(shapes["params"]), _by_path(shapes.get("batch_stats", {}))
    starts = {path: start for path, start in _by_path(shapes.get(COLLECTION, {})).items() if isinstance(start, Start)}
    if starts.keys() != params.keys():
        variables = network.init(key, jnp.zeros((1, *image_shape)), train=False)
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    # Layer by layer, kernels before biases: a fixed order, so that a key always yields the same network.
    order = sorted((path for path in params if starts[path].random), key=lambda path: (path[:-1], path[-1] != "kernel"))
    draw = jax.random.uniform(key, (sum(params[path].size for path in order),), minval=-1.0)
    # One long uniform draw is cut into the parameters and mapped to each one's distribution.
    values, begin = {}, 0
    for path in order:
        end = begin + params[path].size
        values[path] = starts[path].of(draw[begin:end]).reshape(params[path].shape)
        begin = end
    # What is left is constant: scales and biases of norms, and zero biases. Sorted, because the order of a set differs
    # between processes, and another order is another program to a compilation cache.
    for path in sorted(params.keys() - values.keys()):
        values[path] = jnp.full(params[path].shape, starts[path].value, jnp.float32)
    moments = {path: _STATISTICS[path[-1]](leaf.shape) for path, leaf in stats.items()}
    return {"params": _nested(values), "batch_stats": _nested(moments)}


def count(network: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Count the parameters for images `(H,W,C)` by abstract evaluation.

    Raises:
        ValueError: If the network does not accept images of this size.
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(_traced(network, image_shape)["params"]))


def features(network: nn.Module, variables: Variables, x: Array) -> Array:
    """Compute features in eval mode (running statistics): images `(B,H,W,C)` to `(B,F)`.

    Args:
        network: The network.
        variables: Its `params` and `batch_stats`.
        x: Network inputs `(B,H,W,C)`.

    Returns:
        Inputs of the last layer `(B,F)`.
    """

    def forward(images: Array) -> Array:
        outputs: tuple[Array, Array] = network.apply(variables, images, train=False)  # type: ignore[assignment]
        return outputs[0]

    # Images are independent in eval mode, so a few can pass through all layers while they are in the cache.
    return chunks.through(forward, x, EVAL_CHUNK)


def _traced(network: nn.Module, image_shape: tuple[int, ...]) -> Any:
    """Return the shapes of all variables and the initializers of the parameters, by abstract evaluation."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False, mutable=True), images)


def _by_path(tree: Mapping[str, Any], path: Path = ()) -> dict[Path, Any]:
    """Flatten nested mappings into leaves by path, in the order of their sorted names."""
    leaves: dict[Path, Any] = {}
    for name, value in sorted(tree.items()):
        child = (*path, name)
        leaves |= _by_path(value, child) if isinstance(value, Mapping) else {child: value}
    return leaves


def _nested(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """Rebuild nested mappings from leaves by path: the inverse of `_by_path`."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree
