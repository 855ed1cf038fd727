"""ConvNet of the distillation literature: blocks of 3x3 convolution, norm, ReLU and 2x2 average pooling.

A linear layer follows. Batch norm and widths 128-256-512 at 32x32, 64-128-256-512 at 64x64 (KRR-ST, section 4;
Boost-SSDD, section 4); instance norm and 128 channels in every block (MKDT). Parameters are initialized with PyTorch's
defaults: uniform within `1 / sqrt(fan_in)`, biases included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from ssdd_jax.models.layers import Conv, Linear, average_pool
from ssdd_jax.models.network import initialize
from ssdd_jax.models.norm import BatchNorm, InstanceNorm
from ssdd_jax.models.precision import at_least_float32

__all__ = ["NORMS", "ConvNet", "check_divisible", "from_variables", "initialize"]

Array = jax.Array
Variables = Mapping[str, Any]

# Prefix of the layer names of each norm.
NORMS = {"batch": "bn", "instance": "in"}


class ConvNet(nn.Module):
    """ConvNet that maps images `(B,H,W,C)` to targets `(B,dim)`.

    Attributes:
        widths: Channels of each block; H and W must be divisible by `2 ** len(widths)`.
        dim: Length D of a target.
        norm: Normalisation layer, `batch` or `instance`.
        form: Implementation of the convolutions: see `ssdd_jax.models.convolution.conv`.

    Raises:
        ValueError: If `norm` is neither of these.
    """

    widths: tuple[int, ...]
    dim: int
    norm: str = "batch"
    form: str = "auto"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Compute features `(B,F)`, the flattened last block, and predictions `(B,dim)`, both at least float32.

        Args:
            x: Images `(B,H,W,C)`.
            train: If True, batch norm uses the statistics of the batch and updates the running ones (collection
                `batch_stats`); otherwise it uses the running statistics. Instance norm does not depend on it.

        Returns:
            Features and predictions.

        Raises:
            ValueError: If H or W is not divisible by `2 ** len(widths)`.
        """
        check_divisible(x.shape[1:3], len(self.widths))
        for i, width in enumerate(self.widths):
            x = Conv(width, form=self.form, name=f"conv{i}")(x)
            name = f"{NORMS[self.norm]}{i}"
            if self.norm == "batch":
                x = BatchNorm(name=name)(x, use_running_average=not train)
            else:
                x = InstanceNorm(name=name)(x)
            x = average_pool(nn.relu(x))
        # The last layer stays in float32: its closed-form counterpart (`krr`) is ill-conditioned.
        features = at_least_float32(x.reshape(x.shape[0], -1))
        return features, Linear(self.dim, name="fc")(features)


def check_divisible(size: tuple[int, ...], blocks: int) -> None:
    """Raise a ValueError unless an image of `size (H, W)` can be halved `blocks` times."""
    if any(side % 2**blocks or side == 0 for side in size):
        raise ValueError(
            f"images of {size[0]}x{size[1]} cannot be halved {blocks} times: "
            f"both sides must be multiples of {2**blocks}"
        )


def from_variables(variables: Variables, *, form: str = "auto") -> ConvNet:
    """Reconstruct the network that `variables` belong to from the names and shapes of its parameters.

    Args:
        variables: `params` and `batch_stats` of a `ConvNet`.
        form: Implementation of the convolutions, which the variables do not depend on.

    Returns:
        The network.
    """
    params = variables["params"]
    widths = tuple(params[f"conv{i}"]["bias"].shape[-1] for i in range(sum(k.startswith("conv") for k in params)))
    norm = next((norm for norm, prefix in NORMS.items() if f"{prefix}0" in params), "batch")
    return ConvNet(widths, params["fc"]["bias"].shape[-1], norm, form)
