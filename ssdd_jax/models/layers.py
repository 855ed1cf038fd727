"""The layers that the networks share; what they begin as is a `starts.Rule`, PyTorch's default unless said."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssdd_jax.models import starts
from ssdd_jax.models.convolution import conv, depthwise
from ssdd_jax.models.starts import Rule, parameter

Array = jax.Array


class Conv(nn.Module):
    """A convolution: parameters `kernel (size,size,I,features)` and, where asked for, `bias (features,)`.

    Attributes:
        features: Number of output channels.
        size: Side of the kernel.
        stride: Step in both directions.
        padding: Zeros added on every side.
        bias: Whether there is a bias.
        start: How it begins.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    bias: bool = True
    start: Rule = starts.pytorch

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `(B,H,W,I)` to `(B,H',W',features)`, in `x`'s precision."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel_start, bias_start = self.start(shape)
        kernel = parameter(self, "kernel", kernel_start, shape).astype(x.dtype)
        x = conv(x, kernel, stride=self.stride, padding=self.padding)
        if not self.bias:
            return x
        return x + parameter(self, "bias", bias_start, (self.features,)).astype(x.dtype).reshape(1, 1, 1, -1)


class DepthwiseConv(nn.Module):
    """A 3x3 convolution of each channel by itself, padded by 1: one parameter, `kernel (3,3,1,C)`.

    Attributes:
        stride: Step in both directions.
    """

    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `(B,H,W,C)` to `(B,H',W',C)`, in `x`'s precision."""
        shape = (3, 3, 1, x.shape[-1])
        kernel = parameter(self, "kernel", starts.pytorch(shape)[0], shape).astype(x.dtype)
        return depthwise(x, kernel, stride=self.stride, padding=1)


class Linear(nn.Module):
    """A linear layer: parameters `kernel (I,features)` and `bias (features,)`.

    Attributes:
        features: Numbers that come out.
        start: How it begins.
    """

    features: int
    start: Rule = starts.pytorch

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `(...,I)` to `(...,features)`, in `x`'s precision."""
        shape = (x.shape[-1], self.features)
        kernel_start, bias_start = self.start(shape)
        kernel = parameter(self, "kernel", kernel_start, shape).astype(x.dtype)
        bias = parameter(self, "bias", bias_start, (self.features,)).astype(x.dtype)
        return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))) + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def average_pool(x: Array) -> Array:
    """Means over 2x2 pixels: `(B,H,W,C)` to `(B,H/2,W/2,C)`."""
    # Four strided slices run faster than a window or a reshape and mean, forwards and backwards.
    top, bottom = x[:, ::2], x[:, 1::2]
    return 0.25 * (top[:, :, ::2] + top[:, :, 1::2] + bottom[:, :, ::2] + bottom[:, :, 1::2])


def max_pool(x: Array) -> Array:
    """The largest of 2x2 pixels: `(B,H,W,C)` to `(B,H/2,W/2,C)`. Equal ones share the gradient."""
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def check_multiple(name: str, size: tuple[int, ...], multiple: int) -> None:
    """Raise a ValueError unless both sides of images `(H, W)` are multiples of `multiple`, in the name of a network."""
    if any(side % multiple or side == 0 for side in size):
        sides = f"both sides must be multiples of {multiple}" if multiple > 1 else "both sides must be at least 1"
        raise ValueError(f"{name} does not take images of {size[0]}x{size[1]}: {sides}")
