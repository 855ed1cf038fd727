"""Frozen networks, with the preprocessing that turns a data set's images into their inputs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.models import resnet, starts
from ssdd_jax.models.layers import Linear
from ssdd_jax.models.resnet import ResNet
from ssdd_jax.models.vit import Encoder

Array = jax.Array
Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class HostFunction:
    """A function on the host in place of a network; it has no gradient.

    Attributes:
        function: Maps uint8 images `(B,H,W,C)` to features `(B,D)`.
        features: Length D of the features.
    """

    function: Callable[[np.ndarray], Any]
    features: int

    def apply(self, variables: Variables, x: Array, *, train: bool, mutable: list[str] | bool = False) -> Array:
        """Call the function on images `(B,H,W,C)` between 0 and 255, rounded; like a network's `apply`."""
        shape = jax.ShapeDtypeStruct((len(x), self.features), jnp.float32)
        return jax.pure_callback(self._on_host, shape, x, vmap_method="expand_dims")

    def _on_host(self, x: Any) -> np.ndarray:
        # A vmap adds axes on the left.
        images = np.asarray(x)
        pixels = np.clip(np.rint(images), 0, 255).astype(np.uint8).reshape(-1, *images.shape[-3:])
        found = np.asarray(self.function(pixels), np.float32)
        return found.reshape(*images.shape[:-3], self.features)


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
        shortest_side: Side that the shorter side of an image is resized to before a central crop of `size`; 0 to
            resize the whole image.
        exact: Compute in full float32, even where the backend's default for float32 products is less precise.
    """

    variables: Variables
    scale: Array | None = None
    shift: Array | None = None
    network: Backbone | HostFunction = flax.struct.field(pytree_node=False, default=ResNet())
    size: int = flax.struct.field(pytree_node=False, default=0)
    resize: str = flax.struct.field(pytree_node=False, default="linear")
    shortest_side: int = flax.struct.field(pytree_node=False, default=0)
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
            x = resized(x, self.size, self.resize, shortest_side=self.shortest_side)
            return self.network.apply(self.variables, x, train=False, mutable=mutable)


def of_function(function: Callable[[np.ndarray], Any], features: int, moments: tuple[np.ndarray, np.ndarray]) -> Frozen:
    """Wrap a function on the host as a network for normalised images.

    Args:
        function: Maps uint8 images `(B,H,W,C)` to features `(B,D)`.
        features: Length D of the features.
        moments: Mean and deviation of each channel `(C,)` that the images are normalised with, for pixels in 0..1.
    """
    mean, std = (255 * jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1) for values in moments)
    return Frozen({}, std, mean, network=HostFunction(function, features))


def of(backbone: Variables | Frozen) -> Frozen:
    """Wrap a backbone as `Frozen`.

    Args:
        backbone: Variables of a `ResNet` without preprocessing, or a `Frozen`, which is returned unchanged.
    """
    if isinstance(backbone, Frozen):
        return backbone
    return Frozen(backbone, network=resnet.from_params(backbone["params"]))


def resized(x: Array, size: int, method: str = "linear", *, shortest_side: int = 0) -> Array:
    """Resize images, whole or around a central crop.

    Args:
        x: Images `(B,H,W,C)`.
        size: Side of the result in pixels; 0 leaves the images unchanged.
        method: One of `RESIZE`.
        shortest_side: If not 0, the shorter side is resized to this length, the longer one in proportion, and the
            central square of `size` is cut out, as torchvision's `Resize` and `CenterCrop` do; at least `size`.

    Returns:
        Images `(B,size,size,C)`.
    """
    x = jnp.asarray(x)
    count, height, width, channels = x.shape
    # The sides before the crop, rounded as in torchvision.
    shortest = min(height, width)
    before = tuple(int(shortest_side * side / shortest) if shortest_side else size for side in (height, width))
    if size == 0 or before == (size, size) == (height, width):
        return x
    shape = (count, size, size, channels)
    if before == (size, size):
        return jax.image.resize(x, shape, method, antialias=True)
    # Only the crop is computed: the resized image is shifted by what lies to its left and above.
    scale = jnp.asarray([before[0] / height, before[1] / width], jnp.float32)
    shift = jnp.asarray([-round((side - size) / 2) for side in before], jnp.float32)
    return jax.image.scale_and_translate(x, shape, (1, 2), scale, shift, method, antialias=True)


class Judged(nn.Module):
    """Backbone with a linear layer, the interface for evaluation: maps images `(B,H,W,C)` to targets `(B,dim)`.

    Attributes:
        dim: Length D of a target.
        backbone: The network below the linear layer.
        channels: Number of channels of its inputs; a single channel is repeated.
        size: Side of its inputs in pixels; 0 to use images at their own size.
        resize: One of `RESIZE`.
        shortest_side: Side before a central crop, see `Frozen`.
    """

    dim: int
    backbone: nn.Module
    channels: int = 3
    size: int = 0
    resize: str = "linear"
    shortest_side: int = 0

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Compute features `(B,F)` and predictions `(B,dim)`."""
        # Grey images get three equal channels for backbones that expect colour.
        x = jnp.broadcast_to(x, (*x.shape[:3], self.channels))
        backbone: Any = self.backbone
        x = resized(x, self.size, self.resize, shortest_side=self.shortest_side)
        features = backbone(x, train=train)
        return features, Linear(self.dim, starts.pytorch, name="fc")(features)
