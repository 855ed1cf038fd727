"""Frozen networks, with the preprocessing that turns a data set's images into their inputs."""

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
"""Resize methods, by their names in `jax.image.resize`; with antialiasing, as in torchvision."""


@flax.struct.dataclass
class Frozen:
    """A network in evaluation mode behind its preprocessing.

    Attributes:
        variables: The network's `params` and, with batch norm, `batch_stats`.
        scale: Factor for the images `(1,1,1,C)`; None if they are already normalised as the network expects.
        shift: Offset added after scaling `(1,1,1,C)`. For a network of three channels, a single channel is broadcast.
        network: The network.
        size: Side of its inputs in pixels; 0 to use images at their own size.
        resize: One of `RESIZE`.
        exact: Compute in full float32, even where the backend's default for float32 products is less precise.
    """

    variables: Variables
    scale: Array | None = None
    shift: Array | None = None
    network: Backbone = flax.struct.field(pytree_node=False, default=ResNet())
    size: int = flax.struct.field(pytree_node=False, default=0)
    resize: str = flax.struct.field(pytree_node=False, default="linear")
    exact: bool = flax.struct.field(pytree_node=False, default=False)

    def apply(self, x: Array, *, mutable: list[str] | bool = False) -> Any:
        """Compute features `(B,D)` of images `(B,H,W,C)`, like `network.apply`.

        Args:
            x: Images.
            mutable: Collections to return as well, as in Flax.

        Returns:
            Features, or a pair of features and collections if `mutable` is not False.
        """
        if self.scale is not None and self.shift is not None:
            x = x * self.scale + self.shift
        # For published weights, whose features must agree with their source's: TF32 would not reproduce them.
        with jax.default_matmul_precision("float32") if self.exact else contextlib.nullcontext():
            x = resized(x, self.size, self.resize)
            return self.network.apply(self.variables, x, train=False, mutable=mutable)


def of(backbone: Variables | Frozen) -> Frozen:
    """Wrap a backbone as `Frozen`.

    Args:
        backbone: Variables of a `ResNet` without preprocessing, or a `Frozen`, which is returned unchanged.
    """
    if isinstance(backbone, Frozen):
        return backbone
    return Frozen(backbone, network=resnet.from_params(backbone["params"]))


def resized(x: Array, size: int, method: str = "linear") -> Array:
    """Resize images `(B,H,W,C)` to `(B,size,size,C)`; a `size` of 0 leaves them unchanged."""
    x = jnp.asarray(x)
    if size == 0 or x.shape[1:3] == (size, size):
        return x
    return jax.image.resize(x, (len(x), size, size, x.shape[3]), method, antialias=True)


class Judged(nn.Module):
    """Backbone with a linear layer, the interface for evaluation: maps images `(B,H,W,C)` to targets `(B,dim)`.

    Attributes:
        dim: Length D of a target.
        backbone: The network below the linear layer.
        channels: Number of channels of its inputs; a single channel is repeated.
        size: Side of its inputs in pixels; 0 to use images at their own size.
        resize: One of `RESIZE`.
    """

    dim: int
    backbone: nn.Module
    channels: int = 3
    size: int = 0
    resize: str = "linear"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Compute features `(B,F)` and predictions `(B,dim)`."""
        # Grey images get three equal channels for backbones that expect colour.
        x = jnp.broadcast_to(x, (*x.shape[:3], self.channels))
        backbone: Any = self.backbone
        features = backbone(resized(x, self.size, self.resize), train=train)
        return features, Linear(self.dim, starts.pytorch, name="fc")(features)
