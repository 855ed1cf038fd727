"""ResNets: the backbone of the self-supervised teacher, and students of several depths.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016 (Table 1), with the stem that solo-learn
and KRR-ST use for small images, a 3x3 convolution of stride 1 and padding 2 without max-pool, or with the paper's stem.
Bottlenecks have their stride in the 3x3 convolution, as in torchvision ("v1.5").
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssdd_jax.models import layers, starts
from ssdd_jax.models.norm import BatchNorm
from ssdd_jax.models.precision import at_least_float32

Array = jax.Array

STEM_PADDING = 2
"""Padding of the 3x3 stem: 32x32 images become 34x34, 17x17, 9x9 and 5x5 maps in the four stages."""
STEM_SIZES = (3, 7)
"""Sides of the stem's kernel: 3 has stride 1; 7 has stride 2 and padding 3, and a max-pool follows."""

Conv = functools.partial(layers.Conv, bias=False, start=starts.kaiming)
"""Convolution without bias, initialized as in torchvision's ResNets."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 projection where the shape changes.

    Attributes:
        features: Number of output channels.
        stride: Stride of the first convolution and of the shortcut.
        last_scale: Initial scale of the last norm before the sum.
        projection: If False, a shortcut that changes the shape has no parameters: it takes every `stride`-th pixel and
            adds channels of zeros, the same number before and after the others.
    """

    features: int
    stride: int = 1
    last_scale: float = 1.0
    projection: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map `(B,H,W,I)` to `(B,ceil(H/stride),ceil(W/stride),features)`."""
        shortcut = x
        if not self.projection:
            extra = self.features - x.shape[-1]
            channels = (extra // 2, extra - extra // 2)
            shortcut = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), channels))
        elif self.stride != 1 or x.shape[-1] != self.features:
            shortcut = Conv(self.features, size=1, stride=self.stride, padding=0, name="shortcut")(x)
            shortcut = BatchNorm(name="shortcut_norm")(shortcut, use_running_average=not train)
        x = Conv(self.features, stride=self.stride, name="conv1")(x)
        x = nn.relu(BatchNorm(name="norm1")(x, use_running_average=not train))
        x = Conv(self.features, name="conv2")(x)
        x = BatchNorm(first_scale=self.last_scale, name="norm2")(x, use_running_average=not train)
        return nn.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut, which is a 1x1 projection where the shape changes.

    Attributes:
        features: Number of channels of the 3x3 convolution; the block has four times as many outputs.
        stride: Stride of the 3x3 convolution and of the projection.
        last_scale: Initial scale of the last norm before the sum.
    """

    features: int
    stride: int = 1
    last_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map `(B,H,W,I)` to `(B,ceil(H/stride),ceil(W/stride),4*features)`."""
        shortcut, outputs = x, 4 * self.features
        if self.stride != 1 or x.shape[-1] != outputs:
            shortcut = Conv(outputs, size=1, stride=self.stride, padding=0, name="shortcut")(x)
            shortcut = BatchNorm(name="shortcut_norm")(shortcut, use_running_average=not train)
        x = Conv(self.features, size=1, padding=0, name="conv1")(x)
        x = nn.relu(BatchNorm(name="norm1")(x, use_running_average=not train))
        x = Conv(self.features, stride=self.stride, name="conv2")(x)
        x = nn.relu(BatchNorm(name="norm2")(x, use_running_average=not train))
        x = Conv(outputs, size=1, padding=0, name="conv3")(x)
        x = BatchNorm(first_scale=self.last_scale, name="norm3")(x, use_running_average=not train)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """ResNet up to and including the global average pool.

    Attributes:
        width: Channels of the first stage; features have length `8 * width`, with bottlenecks `32 * width`. 64 is the
            published network (ResNet-18: 11,168,832 parameters); 8 or 16 suit a small machine.
        blocks: Number of blocks in each of the four stages: (2, 2, 2, 2) is ResNet-18, (1, 1, 1, 1) ResNet-10.
        bottleneck: Use blocks of three convolutions instead of two; with (3, 4, 6, 3) blocks this is ResNet-50.
        last_scale: Initial scale of each block's last norm; 0 makes every block the identity.
        stem_start: Initializers of the stem.
        stem_size: One of `STEM_SIZES`.
        stem_padding: Zeros around the image before a 3x3 stem.
        projection: Project shortcuts where the shape changes (the paper's option B); False for shortcuts without
            parameters (option A, of its networks for CIFAR), which only basic blocks have.
    """

    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    last_scale: float = 1.0
    stem_start: starts.Rule = starts.kaiming
    stem_size: int = 3
    stem_padding: int = STEM_PADDING
    projection: bool = True

    @property
    def features(self) -> int:
        """Length D of a feature vector."""
        return self.width * 2 ** (len(self.blocks) - 1) * (4 if self.bottleneck else 1)

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Compute the features of a batch.

        Args:
            x: Normalised images `(B,H,W,C)`, floating point.
            train: If True, batch norm uses the batch's statistics and updates the running ones (`batch_stats` must be
                mutable).

        Returns:
            Features `(B,D)`, at least float32; `D = width * 2 ** (stages - 1)`, four times that with bottlenecks.
        """
        chex.assert_rank(x, 4)
        basic = functools.partial(BasicBlock, projection=self.projection)
        block_type = Bottleneck if self.bottleneck else basic
        small = self.stem_size == 3
        stride, padding = (1, self.stem_padding) if small else (2, 3)
        x = Conv(self.width, self.stem_size, stride, padding, start=self.stem_start, name="stem")(x)
        x = nn.relu(BatchNorm(name="stem_norm")(x, use_running_average=not train))
        x = x if small else _max_pool(x)
        # Every stage except the first halves the map in its first block and doubles the width.
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"stage{stage + 1}_block{block + 1}"
                x = block_type(self.width * 2**stage, stride, self.last_scale, name=name)(x, train=train)
        # The average is a feature, and features are float32 in every precision.
        return jnp.mean(at_least_float32(x), axis=(1, 2))


class ResNetClassifier(nn.Module):
    """ResNet with a linear layer, the interface for evaluation: maps images `(B,H,W,C)` to targets `(B,dim)`.

    Initialized as in KRR-ST (`models/resnet.py`): the last scale of each block is 0; the stem, which is replaced there
    after the rest has been initialized, has PyTorch's default.

    Attributes:
        dim: Length D of a target.
        width: Channels of the first stage.
        blocks: Number of blocks in each stage.
        bottleneck: Use blocks of three convolutions instead of two.
    """

    dim: int
    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Compute features `(B,F)`, the averages of the last stage, and predictions `(B,dim)`."""
        backbone = ResNet(self.width, self.blocks, self.bottleneck, 0.0, starts.pytorch, name="backbone")
        features = backbone(x, train=train)
        return features, layers.Linear(self.dim, name="fc")(features)


def from_params(params: Mapping[str, Any]) -> ResNet:
    """Reconstruct the `ResNet` that `params` belong to from their names and shapes.

    The padding of a 3x3 stem leaves no trace in the parameters: the default, 2, is assumed.
    """
    # Blocks are named `stage1_block1` and so on; only bottlenecks have a third convolution.
    names = [name for name in params if name.startswith("stage")]
    stages = [name.split("_")[0] for name in names]
    blocks = tuple(stages.count(stage) for stage in sorted(set(stages)))
    size, _, _, width = params["stem"]["kernel"].shape
    bottleneck = "conv3" in params["stage1_block1"]
    # The first block of the second stage changes the shape, whatever the sizes.
    projection = len(blocks) == 1 or "shortcut" in params["stage2_block1"]
    return ResNet(width, blocks, bottleneck, stem_size=size, projection=projection)


def _max_pool(x: Array) -> Array:
    """Max-pool over 3x3 pixels with stride 2 and padding 1: `(B,H,W,C)` to `(B,ceil(H/2),ceil(W/2),C)`."""
    # A constant of NumPy's: of an array that is traced, JAX does not recognise the maximum, and has no gradient.
    initial = np.asarray(-np.inf, x.dtype)
    return lax.reduce_window(x, initial, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
