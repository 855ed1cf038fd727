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
    """One convolution.

    Attributes:
        width: Number of output channels.
        size: Side of the kernel; padded so that the map keeps its size.
        pool: Whether the map is halved afterwards.
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
    """Images `(B,H,W,C)` to targets `(B,dim)`.

    Attributes:
        layers: The convolutions; H and W must be multiples of `2 ** pools`.
        dim: Length D of a target.
    """

    layers: tuple[Layer, ...]
    dim: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Features `(B,F)`, the flattened last map, and predictions `(B,dim)`.

        Raises:
            ValueError: If H or W cannot be halved that often.
        """
        check_multiple("the network", x.shape[1:3], multiple(self.layers))
        for i, layer in enumerate(self.layers):
            x = Conv(layer.width, layer.size, padding=layer.size // 2, name=f"conv{i}")(x)
            x = BatchNorm(name=f"bn{i}")(x, use_running_average=not train)
            # The same as pooling after ReLU, and a quarter of the work.
            x = nn.relu(max_pool(x) if layer.pool else x)
        features = x.reshape(x.shape[0], -1)
        return features, Linear(self.dim, name="fc")(features)


def multiple(layers: tuple[Layer, ...]) -> int:
    """What the sides of an image must be a multiple of."""
    return 2 ** sum(layer.pool for layer in layers)
