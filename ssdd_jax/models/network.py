"""What is the same for every network: its fresh variables, its number of parameters, its features in eval mode.

A network is a Flax module with an attribute `dim` that maps images `(B,H,W,C)` to features `(B,F)` and predictions
`(B,dim)`, `network.apply(variables, x, train=...)`; with `train=True` batch norm's statistics (`batch_stats`) must be
mutable. Predictions are a linear layer `fc` of the features.
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

# Images that go through a network together in eval mode on a CPU; 4 and 8 measured alike, 16 and 32 slower.
EVAL_CHUNK = 8

_STATISTICS = {"mean": jnp.zeros, "var": jnp.ones}


def initialize(key: Array, network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Fresh variables, distributed as those of `network.init`, out of a single draw.

    Each random array of its own costs up to a second of compilation on a CPU, wherever a model can be renewed. A
    network that has layers of other libraries, which do not say how they start, is left to its own `init`.

    Args:
        key: PRNG key.
        network: The network.
        image_shape: `(H,W,C)`.

    Returns:
        `params` and `batch_stats`, float32; `batch_stats` is empty without batch norm.

    Raises:
        ValueError: If the network does not take images of this size.
    """
    return dict(_initialize(key, network, tuple(image_shape)))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _initialize(key: Array, network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Any]:
    shapes = _traced(network, image_shape)
    params, stats = _by_path(shapes["params"]), _by_path(shapes.get("batch_stats", {}))
    starts = {path: start for path, start in _by_path(shapes.get(COLLECTION, {})).items() if isinstance(start, Start)}
    if starts.keys() != params.keys():
        own = network.init(key, jnp.zeros((1, *image_shape)), train=False)
        return {"params": own["params"], "batch_stats": own.get("batch_stats", {})}
    # Layer by layer, kernels before biases: the order is what makes a key mean the same network for ever.
    order = sorted((path for path in params if starts[path].random), key=lambda path: (path[:-1], path[-1] != "kernel"))
    draw = jax.random.uniform(key, (sum(params[path].size for path in order),), minval=-1.0)
    values, begin = {}, 0
    for path in order:
        end = begin + params[path].size
        values[path] = starts[path].of(draw[begin:end]).reshape(params[path].shape)
        begin = end
    # Sorted: in a set's order, which differs between processes, the program would not be found in a compilation cache.
    for path in sorted(params.keys() - values.keys()):
        values[path] = jnp.full(params[path].shape, starts[path].value, jnp.float32)
    moments = {path: _STATISTICS[path[-1]](leaf.shape) for path, leaf in stats.items()}
    return {"params": _nested(values), "batch_stats": _nested(moments)}


def count(network: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Number of parameters for images `(H,W,C)`; nothing is computed.

    Raises:
        ValueError: If the network does not take images of this size.
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(_traced(network, image_shape)["params"]))


def features(network: nn.Module, variables: Variables, x: Array) -> Array:
    """Features in eval mode (running statistics): images `(B,H,W,C)` to `(B,F)`.

    Args:
        network: The network.
        variables: Its `params` and `batch_stats`.
        x: Network inputs `(B,H,W,C)`.

    Returns:
        What goes into the last layer `(B,F)`.
    """

    def forward(images: Array) -> Array:
        found: tuple[Array, Array] = network.apply(variables, images, train=False)  # type: ignore[assignment]
        return found[0]

    # Without batch statistics a few images can go through all layers while they are in the cache.
    return chunks.through(forward, x, EVAL_CHUNK)


def _traced(network: nn.Module, image_shape: tuple[int, ...]) -> Any:
    """Shapes of all variables, and the starts of the parameters."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False, mutable=True), images)


def _by_path(tree: Mapping[str, Any], path: Path = ()) -> dict[Path, Any]:
    """The leaves of nested mappings, in the order of their sorted names."""
    found: dict[Path, Any] = {}
    for name, value in sorted(tree.items()):
        here = (*path, name)
        found |= _by_path(value, here) if isinstance(value, Mapping) else {here: value}
    return found


def _nested(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """The nested mappings of which `_by_path` makes `leaves`."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree
