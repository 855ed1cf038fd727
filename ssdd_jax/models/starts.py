"""Parameter initializers that also record their distribution, so that a whole network can be drawn at once.

A `Start` is a Flax initializer. While a network is traced it is also sown next to the parameter, so that
`models.initialize` knows the distribution of every leaf without drawing it.
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

# Collection in which initializers are sown; `init` and `apply` drop it unless it is requested.
COLLECTION = "intermediates"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Start:
    """Initializer with independent values of one distribution.

    Attributes:
        kind: `uniform` in [-`value`, `value`), `normal` with standard deviation `value`, or `constant`.
        value: Parameter of the distribution.
    """

    kind: str
    value: float

    @property
    def random(self) -> bool:
        """True if the values are random, False if they are constant."""
        return self.kind != "constant"

    def of(self, draw: Array) -> Array:
        """Transform `draw (...)`, uniform in [-1, 1), to values of this distribution."""
        draw = jnp.asarray(draw)
        if self.kind == "uniform":
            return self.value * draw
        # The inverse error function is infinite at -1, which occurs once in 2**23 draws.
        least = jnp.nextafter(jnp.asarray(-1.0, draw.dtype), jnp.asarray(0.0, draw.dtype))
        return self.value * math.sqrt(2.0) * lax.erf_inv(jnp.maximum(draw, least))

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        """Draw an array `(*shape)` of this distribution."""
        if not self.random:
            return jnp.full(shape, self.value, dtype)
        return self.of(jax.random.uniform(key, shape, dtype, minval=-1.0))


Rule = Callable[[tuple[int, ...]], tuple[Start, Start]]
"""Maps the shape of a kernel, `(h,w,I,O)` or `(I,O)`, to the initializers of the kernel and of the layer's bias."""


def constant(value: float) -> Start:
    """Return the initializer that sets every value to `value`."""
    return Start("constant", value)


def normal(deviation: float) -> Start:
    """Return the initializer with a normal distribution of mean 0."""
    return Start("normal", deviation)


def pytorch(shape: tuple[int, ...]) -> tuple[Start, Start]:
    """Apply PyTorch's default, a `Rule`: kernel and bias uniform within `1 / sqrt(fan_in)`."""
    start = Start("uniform", math.prod(shape[:-1]) ** -0.5)
    return start, start


def kaiming(shape: tuple[int, ...]) -> tuple[Start, Start]:
    """Apply the default of torchvision's ResNets, a `Rule`: Gaussian of variance `2 / fan_out`, bias 0."""
    return normal(math.sqrt(2.0 / math.prod((*shape[:-2], shape[-1])))), constant(0.0)


def transformer(shape: tuple[int, ...]) -> tuple[Start, Start]:
    """Apply the default of timm's vision transformers, a `Rule`: Gaussian of standard deviation 0.02, bias 0.

    timm truncates the distribution at +-2, which is a hundred standard deviations and has no effect.
    """
    return normal(0.02), constant(0.0)


def parameter(module: nn.Module, name: str, start: Start, shape: tuple[int, ...]) -> Array:
    """Declare a parameter of `module`, initialized in float32.

    Args:
        module: The module whose `__call__` is running.
        name: Name of the parameter.
        start: Initializer.
        shape: Shape of the parameter.

    Returns:
        The parameter `(*shape)`, in the precision of the variables that the module was applied with.
    """
    # Sown only while initializing: `apply` must not carry the collection. The reduction keeps a single entry.
    if module.is_initializing():
        module.sow(COLLECTION, name, start, init_fn=lambda: None, reduce_fn=lambda _, last: last)
    return module.param(name, start, shape, jnp.float32)
