"""How parameters begin: each layer says it where it makes them, and a whole network is drawn from that at once.

A `Start` is an initialiser as Flax knows it. It is also left beside the parameter while a network is traced, so that
`models.initialize` learns the distribution of every leaf without drawing it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

# The collection, never kept by `init` or `apply` unless asked for, in which starts are left.
COLLECTION = "intermediates"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Start:
    """Independent numbers of one distribution.

    Attributes:
        kind: `uniform` within `value` of 0, `normal` with the standard deviation `value`, or `constant`.
        value: That number.
    """

    kind: str
    value: float

    @property
    def random(self) -> bool:
        """Whether there is anything to draw."""
        return self.kind != "constant"

    def of(self, draw: Array) -> Array:
        """Numbers of this distribution, like `draw (...)`, which is uniform in [-1, 1)."""
        if self.kind == "uniform":
            return self.value * draw
        # The inverse error function is infinite at -1, which comes up once in 2**23 numbers.
        least = jnp.nextafter(jnp.asarray(-1.0, draw.dtype), jnp.asarray(0.0, draw.dtype))
        return self.value * math.sqrt(2.0) * lax.erf_inv(jnp.maximum(draw, least))

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        """Draw numbers of this distribution `(*shape)`."""
        if not self.random:
            return jnp.full(shape, self.value, dtype)
        return self.of(jax.random.uniform(key, shape, dtype, minval=-1.0))


Rule = Callable[[tuple[int, ...]], tuple[Start, Start]]
"""From the shape of a kernel, `(h,w,I,O)` or `(I,O)`, to the starts of the kernel and of the layer's bias."""


def constant(value: float) -> Start:
    """The same number everywhere."""
    return Start("constant", value)


def normal(deviation: float) -> Start:
    """Gaussian around 0."""
    return Start("normal", deviation)


def pytorch(shape: tuple[int, ...]) -> tuple[Start, Start]:
    """PyTorch's default, a `Rule`: kernel and bias uniform within `1 / sqrt(fan_in)`."""
    start = Start("uniform", math.prod(shape[:-1]) ** -0.5)
    return start, start


def kaiming(shape: tuple[int, ...]) -> tuple[Start, Start]:
    """The convolutions of torchvision's ResNets, a `Rule`: Gaussian of variance `2 / fan_out`, bias 0."""
    return normal(math.sqrt(2.0 / math.prod((*shape[:-2], shape[-1])))), constant(0.0)


def transformer(shape: tuple[int, ...]) -> tuple[Start, Start]:
    """The linear layers of timm's vision transformers, a `Rule`: Gaussian of deviation 0.02, bias 0.

    timm calls it truncated, at +-2, which is a hundred deviations.
    """
    return normal(0.02), constant(0.0)


def parameter(module: nn.Module, name: str, start: Start, shape: tuple[int, ...]) -> Array:
    """A float32 parameter of `module`.

    Args:
        module: The module whose `__call__` runs.
        name: Of the parameter.
        start: How it begins.
        shape: Its shape.

    Returns:
        The parameter `(*shape)`, in the precision in which it was handed over.
    """
    if module.is_initializing():
        module.sow(COLLECTION, name, start, init_fn=lambda: None, reduce_fn=lambda _, last: last)
    return module.param(name, start, shape, jnp.float32)
