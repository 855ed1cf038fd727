"""The ConvNet of the field: blocks of 3x3 convolution, norm, ReLU and 2x2 average pooling, then a linear layer.

Batch norm and widths 128-256-512 at 32x32, 64-128-256-512 at 64x64 (KRR-ST, section 4; Boost-SSDD, section 4); instance
norm and 128 channels in every block (MKDT). Parameters start as PyTorch's defaults do: uniform within
`1 / sqrt(fan_in)`, biases included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssdd_jax.models.convolution import conv
from ssdd_jax.models.norm import BatchNorm, InstanceNorm

Array = jax.Array
Variables = Mapping[str, Any]

# What the layers of a norm are called.
NORMS = {"batch": "bn", "instance": "in"}


def _uniform(fan_in: int) -> nn.initializers.Initializer:
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """A 3x3 convolution with bias, `(B,H,W,I)` to `(B,H,W,width)`."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to `x (B,H,W,I)`."""
        fan_in = 9 * x.shape[-1]
        kernel = self.param("kernel", _uniform(fan_in), (3, 3, x.shape[-1], self.width))
        bias = self.param("bias", _uniform(fan_in), (self.width,))
        return conv(x, kernel) + bias.reshape(1, 1, 1, -1)


class Linear(nn.Module):
    """A linear layer with bias, `(B,I)` to `(B,width)`."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to `x (B,I)`."""
        kernel = self.param("kernel", _uniform(x.shape[-1]), (x.shape[-1], self.width))
        bias = self.param("bias", _uniform(x.shape[-1]), (self.width,))
        return x @ kernel + bias.reshape(1, -1)


class ConvNet(nn.Module):
    """Images `(B,H,W,C)` to targets `(B,dim)`.

    Attributes:
        widths: Channels of each block; H and W must be divisible by `2 ** len(widths)`.
        dim: Length D of a target.
        norm: `batch` or `instance`.

    Raises:
        ValueError: If `norm` is neither.
    """

    widths: tuple[int, ...]
    dim: int
    norm: str = "batch"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Features `(B,F)`, the flattened last block, and predictions `(B,dim)`.

        Batch norm uses the batch's own statistics and updates the running ones (collection `batch_stats`) when
        `train`, and the running ones otherwise. Instance norm does the same in both.

        Raises:
            ValueError: If H or W is not divisible by `2 ** len(widths)`.
        """
        check_divisible(x.shape[1:3], len(self.widths))
        for i, width in enumerate(self.widths):
            x = Conv(width, name=f"conv{i}")(x)
            name = f"{NORMS[self.norm]}{i}"
            if self.norm == "batch":
                x = BatchNorm(name=name)(x, use_running_average=not train)
            else:
                x = InstanceNorm(name=name)(x)
            x = _average_pool(nn.relu(x))
        features = x.reshape(x.shape[0], -1)
        return features, Linear(self.dim, name="fc")(features)


def check_divisible(size: tuple[int, ...], blocks: int) -> None:
    """Raise a ValueError unless an image of `size (H, W)` can be halved `blocks` times."""
    if any(side % 2**blocks or side == 0 for side in size):
        raise ValueError(
            f"images of {size[0]}x{size[1]} cannot be halved {blocks} times: "
            f"both sides must be multiples of {2**blocks}"
        )


def from_variables(variables: Variables) -> ConvNet:
    """The network that `variables` belong to, read off the names and shapes of its parameters."""
    params = variables["params"]
    widths = tuple(params[f"conv{i}"]["bias"].shape[-1] for i in range(sum(k.startswith("conv") for k in params)))
    norm = next((norm for norm, prefix in NORMS.items() if f"{prefix}0" in params), "batch")
    return ConvNet(widths, params["fc"]["bias"].shape[-1], norm)


def initialize(key: Array, network: ConvNet, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Fresh variables, distributed as those of `network.init`, out of a single draw.

    Each random array of its own costs a second of compilation on a CPU, wherever a model can be renewed.

    Args:
        key: PRNG key.
        network: The network.
        image_shape: `(H,W,C)`.

    Returns:
        `params` and `batch_stats`, which is empty with instance norm.
    """
    images = jnp.zeros((1, *image_shape))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=False))
    params: dict[str, Any] = {}
    draw = jax.random.uniform(key, (_drawn(shapes["params"]),), minval=-1.0)
    for name, layer in shapes["params"].items():
        if "kernel" in layer:
            kernel, bias = layer["kernel"], layer["bias"]
            weights, biases, draw = jnp.split(draw, (kernel.size, kernel.size + bias.size))
            bound = (kernel.size // kernel.shape[-1]) ** -0.5
            params[name] = {"kernel": bound * weights.reshape(kernel.shape), "bias": bound * biases}
        else:
            params[name] = {"scale": jnp.ones(layer["scale"].shape), "bias": jnp.zeros(layer["bias"].shape)}
    stats = {
        name: {"mean": jnp.zeros(layer["mean"].shape), "var": jnp.ones(layer["var"].shape)}
        for name, layer in shapes.get("batch_stats", {}).items()
    }
    return {"params": params, "batch_stats": stats}


def _drawn(params: Mapping[str, Any]) -> int:
    return sum(leaf.size for layer in params.values() if "kernel" in layer for leaf in layer.values())


def _average_pool(x: Array) -> Array:
    # Four strided slices run faster than a window or a reshape and mean, forwards and backwards.
    top, bottom = x[:, ::2], x[:, 1::2]
    return 0.25 * (top[:, :, ::2] + top[:, :, 1::2] + bottom[:, :, ::2] + bottom[:, :, 1::2])
