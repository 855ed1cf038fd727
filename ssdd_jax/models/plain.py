"""Plain stacks of convolution, batch norm, ReLU and 2x2 max-pooling: VGG-11 and AlexNet for small images.

Simonyan, Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015 (column A), and
Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural networks", NeurIPS 2012, in the
variants of KRR-ST (`models/vgg.py`, `models/alexnet.py`): one linear layer on the flattened last map, no dropout.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax

from ssdd_jax.models.layers import Conv, Linear, check_multiple, max_pool
from ssdd_jax.models.norm import BatchNorm

Array = jax.Array


class Layer(NamedTuple):
    """Configuration of one convolution.

    Attributes:
        width: Number of output channels.
        size: Side of the kernel; padding preserves the size of the map.
        pool: Whether max-pooling halves the map afterwards.
    """

    width: int
    size: int = 3
    pool: bool = False


VGG11 = (
    Layer(64, pool=True),
    Layer(128, pool=True),
    Layer(256),
    Layer(256, pool=True),
    Layer(512),
    Layer(512, pool=True),
    Layer(512),
    Layer(512, pool=True),
)
ALEXNET = (Layer(128, 5, True), Layer(192, 5, True), Layer(256), Layer(192), Layer(192, pool=True))


class Plain(nn.Module):
    """Plain network that maps images `(B,H,W,C)` to targets `(B,dim)`.

    Attributes:
        layers: The convolutions; H and W must be multiples of `2 ** pools`.
        dim: Length D of a target.
    """

    layers: tuple[Layer, ...]
    dim: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Compute features `(B,F)`, the flattened last map, and predictions `(B,dim)`.

        Raises:
            ValueError: If H or W is not a multiple of `2 ** pools`.
        """
        check_multiple("the network", x.shape[1:3], multiple(self.layers))
        for i, layer in enumerate(self.layers):
            x = Conv(layer.width, layer.size, padding=layer.size // 2, name=f"conv{i}")(x)
            x = BatchNorm(name=f"bn{i}")(x, use_running_average=not train)
            # Same result as pooling after ReLU, with a quarter of the work.
            x = nn.relu(max_pool(x) if layer.pool else x)
        features = x.reshape(x.shape[0], -1)
        return features, Linear(self.dim, name="fc")(features)


def multiple(layers: tuple[Layer, ...]) -> int:
    """Return the number that both sides of an image must be a multiple of."""
    return 2 ** sum(layer.pool for layer in layers)
