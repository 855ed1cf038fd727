"""Layers shared by the networks; a `starts.Rule` initializes them, PyTorch's default unless specified."""

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
    """Convolution with parameters `kernel (size,size,I,features)` and, optionally, `bias (features,)`.

    Attributes:
        features: Number of output channels.
        size: Side of the kernel.
        stride: Step in both directions.
        padding: Zeros added on every side.
        bias: Whether to add a bias.
        form: Implementation of the convolution: see `ssdd_jax.models.convolution.conv`.
        start: Initializers of kernel and bias.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    bias: bool = True
    form: str = "auto"
    start: Rule = starts.pytorch

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `(B,H,W,I)` to `(B,H',W',features)`, in `x`'s precision."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel_start, bias_start = self.start(shape)
        kernel = parameter(self, "kernel", kernel_start, shape).astype(x.dtype)
        x = conv(x, kernel, stride=self.stride, padding=self.padding, form=self.form)
        if not self.bias:
            return x
        return x + parameter(self, "bias", bias_start, (self.features,)).astype(x.dtype).reshape(1, 1, 1, -1)


class DepthwiseConv(nn.Module):
    """Depthwise 3x3 convolution with padding 1: one parameter, `kernel (3,3,1,C)`.

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
    """Linear layer with parameters `kernel (I,features)` and `bias (features,)`.

    Attributes:
        features: Length of the output.
        start: Initializers of kernel and bias.
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
        # The bias gets explicit axes: implicit rank promotion is an error in this package's tests.
        return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))) + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def average_pool(x: Array) -> Array:
    """Average over 2x2 pixels: `(B,H,W,C)` to `(B,H/2,W/2,C)`."""
    x = jnp.asarray(x)
    # Four strided slices run faster than a window or a reshape and mean, forwards and backwards.
    top, bottom = x[:, ::2], x[:, 1::2]
    return 0.25 * (top[:, :, ::2] + top[:, :, 1::2] + bottom[:, :, ::2] + bottom[:, :, 1::2])


def max_pool(x: Array) -> Array:
    """Maximum over 2x2 pixels: `(B,H,W,C)` to `(B,H/2,W/2,C)`. Ties share the gradient."""
    row_maxima = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(row_maxima[:, :, ::2], row_maxima[:, :, 1::2])


def check_multiple(name: str, size: tuple[int, ...], multiple: int) -> None:
    """Raise a ValueError, naming the network, unless both sides of images `(H, W)` are multiples of `multiple`."""
    if any(side % multiple or side == 0 for side in size):
        sides = f"both sides must be multiples of {multiple}" if multiple > 1 else "both sides must be at least 1"
        raise ValueError(f"{name} does not take images of {size[0]}x{size[1]}: {sides}")
