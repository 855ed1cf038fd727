"""ResNets of basic blocks for small images, ResNet-18 above all: the backbone of the self-supervised teacher.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016 (Table 1, 18 layers), with the
stem of solo-learn's networks for 32x32: a 3x3 convolution of stride 1 and padding 2, and no max-pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from ssdd_jax.models.convolution import conv
from ssdd_jax.models.norm import BatchNorm

Array = jax.Array

STEM_PADDING = 2
"""Padding of the 3x3 stem: 32x32 images become 34x34, 17x17, 9x9 and 5x5 maps in the four stages."""

# Kaiming normal over the outputs, as torchvision starts its ResNets.
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """A convolution without bias: one parameter, `kernel (size, size, I, O)`.

    Attributes:
      features: number of output channels O.
      size: side of the kernel.
      stride: step in both directions.
      padding: zeros added on every side.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `(B, H, W, I)` to `(B, H', W', O)`."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", _kernel_init, shape, jnp.float32)
        return conv(x, kernel.astype(x.dtype), stride=self.stride, padding=self.padding)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 projection where the shape changes.

    Attributes:
      features: number of output channels.
      stride: step of the first convolution and of the projection.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps `(B, H, W, I)` to `(B, ceil(H / stride), ceil(W / stride), features)`."""
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = Conv(self.features, size=1, stride=self.stride, padding=0, name="shortcut")(x)
            shortcut = BatchNorm(name="shortcut_norm")(shortcut, use_running_average=not train)
        x = Conv(self.features, stride=self.stride, name="conv1")(x)
        x = nn.relu(BatchNorm(name="norm1")(x, use_running_average=not train))
        x = Conv(self.features, name="conv2")(x)
        x = BatchNorm(name="norm2")(x, use_running_average=not train)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """A ResNet of basic blocks up to and including the global average pool.

    Attributes:
      width: channels of the first stage; the features have `8 * width` numbers. 64 is the published network
        (11,168,832 parameters); 8 or 16 suit a small machine.
      blocks: blocks in each of the four stages: (2, 2, 2, 2) is ResNet-18, (1, 1, 1, 1) ResNet-10.
    """

    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Features of a batch.

        Args:
          x: normalised images `(B, H, W, C)`, floating point.
          train: normalise by the batch and move the running statistics (`batch_stats` must be mutable).

        Returns:
          Features `(B, D)`, `D = width * 2 ** (stages - 1)`.
        """
        chex.assert_rank(x, 4)
        x = Conv(self.width, padding=STEM_PADDING, name="stem")(x)
        x = nn.relu(BatchNorm(name="stem_norm")(x, use_running_average=not train))
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"stage{stage + 1}_block{block + 1}"
                x = BasicBlock(self.width * 2**stage, stride=stride, name=name)(x, train=train)
        return jnp.mean(x, axis=(1, 2))


def from_params(params: Mapping[str, Any]) -> ResNet:
    """The network that `params` belong to, read off their names and shapes."""
    names = [name for name in params if name.startswith("stage")]
    stages = [name.split("_")[0] for name in names]
    blocks = tuple(stages.count(stage) for stage in sorted(set(stages)))
    return ResNet(params["stem"]["kernel"].shape[-1], blocks)
