"""Networks whose weights stay as they are, and what turns a data set's images into what they take."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from ssdd_jax.models import resnet, starts
from ssdd_jax.models.layers import Linear
from ssdd_jax.models.resnet import ResNet
from ssdd_jax.models.vit import Encoder

Array = jax.Array
Variables = Mapping[str, Any]
Backbone = ResNet | Encoder

RESIZE = ("linear", "cubic", "lanczos3")
"""How images may be resized, as `jax.image.resize` calls it; smoothed where they shrink, as by torchvision."""


@flax.struct.dataclass
class Frozen:
    """A network in evaluation mode behind its preprocessing.

    Attributes:
        variables: The network's `params` and, with batch norm, `batch_stats`.
        scale: What given images are multiplied by, `(1,1,1,C)`; None if they are normalised as the network wants.
        shift: What is added then, `(1,1,1,C)`. One channel is given to a network of three as three equal ones.
        network: The network.
        size: Side of its inputs in pixels; 0 to take images as they are.
        resize: One of `RESIZE`.
        exact: Compute in full float32, also where products of float32 are less precise by default.
    """

    variables: Variables
    scale: Array | None = None
    shift: Array | None = None
    network: Backbone = flax.struct.field(pytree_node=False, default=ResNet())
    size: int = flax.struct.field(pytree_node=False, default=0)
    resize: str = flax.struct.field(pytree_node=False, default="linear")
    exact: bool = flax.struct.field(pytree_node=False, default=False)

    def apply(self, x: Array, *, mutable: list[str] | bool = False) -> Any:
        """What `network.apply` gives of images `(B,H,W,C)`: features `(B,D)`, and collections where asked for."""
        if self.scale is not None and self.shift is not None:
            x = x * self.scale + self.shift
        with jax.default_matmul_precision("float32") if self.exact else contextlib.nullcontext():
            x = resized(x, self.size, self.resize)
            return self.network.apply(self.variables, x, train=False, mutable=mutable)


def of(backbone: Variables | Frozen) -> Frozen:
    """A network by its variables, those of a `ResNet` that takes images as they are given; a `Frozen` as it is."""
    if isinstance(backbone, Frozen):
        return backbone
    return Frozen(backbone, network=resnet.from_params(backbone["params"]))


def resized(x: Array, size: int, method: str = "linear") -> Array:
    """Images `(B,H,W,C)` as `(B,size,size,C)`; as they are where `size` is 0."""
    if size == 0 or x.shape[1:3] == (size, size):
        return x
    return jax.image.resize(x, (len(x), size, size, x.shape[3]), method, antialias=True)


class Judged(nn.Module):
    """A backbone and a linear layer, as networks are judged by: images `(B,H,W,C)` to targets `(B,dim)`.

    Attributes:
        dim: Length D of a target.
        backbone: The network below.
        channels: Channels that it takes; a single one is repeated.
        size: Side of its inputs in pixels; 0 to take images as they are.
        resize: One of `RESIZE`.
    """

    dim: int
    backbone: nn.Module
    channels: int = 3
    size: int = 0
    resize: str = "linear"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Features `(B,F)` and predictions `(B,dim)`."""
        x = jnp.broadcast_to(x, (*x.shape[:3], self.channels))
        backbone: Any = self.backbone
        features = backbone(resized(x, self.size, self.resize), train=train)
        return features, Linear(self.dim, starts.pytorch, name="fc")(features)
