"""MobileNet V2 for small images.

Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: inverted residuals and linear bottlenecks", CVPR 2018, in the
variant of KRR-ST (`models/mobilenet.py`): stride 1 in the stem and the second stage, expansion 2, ReLU in place of
ReLU6, and a projected shortcut where only the width changes.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssdd_jax.models import layers
from ssdd_jax.models.norm import BatchNorm

Array = jax.Array


class BlockGroup(NamedTuple):
    """Blocks of one width.

    Attributes:
        expansion: Inner channels per input channel.
        width: Number of output channels.
        blocks: Number of blocks.
        stride: Stride of the first block; the others have 1.
    """

    expansion: int
    width: int
    blocks: int
    stride: int


STAGES = (
    BlockGroup(1, 16, 1, 1),
    BlockGroup(2, 24, 2, 1),
    BlockGroup(2, 32, 3, 2),
    BlockGroup(2, 64, 4, 2),
    BlockGroup(2, 96, 3, 1),
    BlockGroup(2, 160, 3, 2),
    BlockGroup(2, 320, 1, 1),
)

_Pointwise = functools.partial(layers.Conv, size=1, padding=0, bias=False)


class Block(nn.Module):
    """Inverted residual: expansion, depthwise convolution, linear projection; with a shortcut if the stride is 1.

    Attributes:
        expansion: Inner channels per input channel.
        width: Number of output channels.
        stride: Stride of the depthwise convolution.
    """

    expansion: int
    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map `(B,H,W,I)` to `(B,ceil(H/stride),ceil(W/stride),width)`."""
        y = _Pointwise(self.expansion * x.shape[-1], name="expand")(x)
        y = nn.relu(BatchNorm(name="norm1")(y, use_running_average=not train))
        y = layers.DepthwiseConv(self.stride, name="depthwise")(y)
        y = nn.relu(BatchNorm(name="norm2")(y, use_running_average=not train))
        # No ReLU after the projection: the bottleneck is linear (section 3.2 of the paper).
        y = _Pointwise(self.width, name="project")(y)
        y = BatchNorm(name="norm3")(y, use_running_average=not train)
        if self.stride != 1:
            return y
        # KRR-ST's variant projects the shortcut where the paper has none.
        if x.shape[-1] != self.width:
            x = _Pointwise(self.width, name="shortcut")(x)
            x = BatchNorm(name="shortcut_norm")(x, use_running_average=not train)
        return y + x


class MobileNet(nn.Module):
    """MobileNet V2 that maps images `(B,H,W,C)` to targets `(B,dim)`.

    Attributes:
        dim: Length D of a target.
        stages: Groups of blocks.
        stem: Number of channels before the blocks.
        head: Number of channels after the blocks, the length F of the features.
    """

    dim: int
    stages: tuple[BlockGroup, ...] = STAGES
    stem: int = 32
    head: int = 1280

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Compute features `(B,head)`, averages over the last map, and predictions `(B,dim)`."""
        x = layers.Conv(self.stem, bias=False, name="stem")(x)
        x = nn.relu(BatchNorm(name="stem_norm")(x, use_running_average=not train))
        for i, stage in enumerate(self.stages):
            for j in range(stage.blocks):
                stride = stage.stride if j == 0 else 1
                x = Block(stage.expansion, stage.width, stride, name=f"stage{i + 1}_block{j + 1}")(x, train=train)
        x = _Pointwise(self.head, name="head")(x)
        x = nn.relu(BatchNorm(name="head_norm")(x, use_running_average=not train))
        features = jnp.mean(x, axis=(1, 2))
        return features, layers.Linear(self.dim, name="fc")(features)
