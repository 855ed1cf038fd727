"""Vision transformers: an encoder of configurable size, and ViT-Tiny.

Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021; Touvron et al., "Training data-efficient image
transformers", ICML 2021 (DeiT-Ti). Layers and initializers are those of timm's `vit_tiny_patch16_224`: norms before
attention and MLP, a class token, learned position embeddings, one projection for queries, keys and values.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssdd_jax.models import starts
from ssdd_jax.models.layers import Linear, check_multiple
from ssdd_jax.models.norm import LayerNorm
from ssdd_jax.models.precision import at_least_float32
from ssdd_jax.models.starts import parameter

Array = jax.Array


class Patches(nn.Module):
    """Patch embedding with parameters `kernel (patch,patch,C,width)` and `bias (width,)`.

    Attributes:
        patch: Side of a patch in pixels.
        width: Length of a token.
    """

    patch: int
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `(B,H,W,C)` to `(B,H/patch*W/patch,width)`, patches in row-major order."""
        batch, height, width, channels = x.shape
        side = self.patch
        shape = (side, side, channels, self.width)
        kernel_start, bias_start = starts.pytorch(shape)
        kernel = parameter(self, "kernel", kernel_start, shape).astype(x.dtype)
        bias = parameter(self, "bias", bias_start, (self.width,)).astype(x.dtype)
        # Patches do not overlap: the strided convolution is a reshape and one matrix product.
        x = x.reshape(batch, height // side, side, width // side, side, channels)
        return jnp.einsum("bhiwjc,ijcf->bhwf", x, kernel).reshape(batch, -1, self.width) + bias.reshape(1, 1, -1)


class Attention(nn.Module):
    """Multi-head self-attention.

    Attributes:
        heads: Number of heads, a divisor of the width.
    """

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map tokens `(B,T,width)` to tokens of the same shape."""
        batch, tokens, width = x.shape
        # One projection for queries, keys and values, as in timm's checkpoints.
        joint = Linear(3 * width, starts.transformer, name="qkv")(x)
        query, key, value = jnp.moveaxis(joint.reshape(batch, tokens, 3, self.heads, width // self.heads), 2, 0)
        # Not jax.nn.dot_product_attention, which computes the same: on two CPU cores its forward pass took 0.6 to 1.1
        # of this one's time, but its gradient 1.02 to 1.32 (65 to 257 tokens, 3 to 12 heads of 64).
        scores = jnp.einsum("bqhd,bkhd->bhqk", query * (width // self.heads) ** -0.5, key)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), value)
        return Linear(width, starts.transformer, name="out")(mixed.reshape(batch, tokens, width))


class Block(nn.Module):
    """Pre-norm transformer block: attention and an MLP with one hidden layer, each with a shortcut.

    Attributes:
        heads: Number of heads.
        hidden: Number of hidden units; 0 for four times the width.
        epsilon: Constant added to the variance in the norms.
    """

    heads: int
    hidden: int = 0
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map tokens `(B,T,width)` to tokens of the same shape."""
        width = x.shape[-1]
        x = x + Attention(self.heads, name="attention")(LayerNorm(self.epsilon, name="norm1")(x))
        hidden = LayerNorm(self.epsilon, name="norm2")(x)
        hidden = Linear(self.hidden or 4 * width, starts.transformer, name="mlp1")(hidden)
        return x + Linear(width, starts.transformer, name="mlp2")(nn.gelu(hidden, approximate=False))


class Encoder(nn.Module):
    """Vision transformer up to and including its last norm.

    Attributes:
        patch: Side of a patch; H and W must be multiples of it.
        width: Length of a token.
        depth: Number of blocks.
        heads: Number of heads of each block.
        hidden: Number of hidden units of the MLPs; 0 for four times the width.
        epsilon: Constant added to the variance in the norms.
    """

    patch: int
    width: int = 192
    depth: int = 12
    heads: int = 3
    hidden: int = 0
    epsilon: float = 1e-6

    @property
    def features(self) -> int:
        """Length D of a feature vector."""
        return self.width

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Compute features of images `(B,H,W,C)`: the normalised class token `(B,width)`; `train` has no effect.

        Raises:
            ValueError: If H or W is not a multiple of `patch`.
        """
        return at_least_float32(_encoded(self, x, hidden=self.hidden, epsilon=self.epsilon))


def _encoded(module: Encoder | VisionTransformer, x: Array, *, hidden: int = 0, epsilon: float = 1e-6) -> Array:
    """Compute the normalised class token `(B,width)`; the layers become children of `module`, whose call is running."""
    check_multiple("the transformer", x.shape[1:3], module.patch)
    x = Patches(module.patch, module.width, name="patches")(x)
    token = parameter(module, "class_token", starts.normal(1e-6), (1, 1, module.width)).astype(x.dtype)
    x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, module.width)), x], axis=1)
    # The class token has a position of its own.
    x = x + parameter(module, "positions", starts.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
    for i in range(module.depth):
        x = Block(module.heads, hidden, epsilon, name=f"block{i}")(x)
    return LayerNorm(epsilon, name="norm")(x)[:, 0]


class VisionTransformer(nn.Module):
    """Vision transformer that maps images `(B,H,W,C)` to targets `(B,dim)`.

    Attributes:
        dim: Length D of a target.
        patch: Side of a patch; H and W must be multiples of it.
        width: Length of a token.
        depth: Number of blocks.
        heads: Number of heads of each block.
    """

    dim: int
    patch: int
    width: int = 192
    depth: int = 12
    heads: int = 3

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Compute features `(B,width)`, the normalised class token, and predictions `(B,dim)`; `train` has no effect.

        Raises:
            ValueError: If H or W is not a multiple of `patch`.
        """
        features = _encoded(self, x)
        return features, Linear(self.dim, starts.transformer, name="fc")(features)


def patch_side(image_shape: tuple[int, ...]) -> int:
    """Return the side of a patch for images `(H,W,C)`: an eighth of the image up to 64 pixels, 16 pixels beyond."""
    return max(1, image_shape[0] // 8) if image_shape[0] <= 64 else 16
