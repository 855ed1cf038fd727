"""A vision transformer, in the size that is called Tiny.

Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021; Touvron et al., "Training data-efficient image
transformers", ICML 2021 (DeiT-Ti). Layers and starts as timm's `vit_tiny_patch16_224`: norms before attention and
perceptron, a class token, learned positions, joint queries, keys and values.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssdd_jax.models import starts
from ssdd_jax.models.layers import Linear, check_multiple
from ssdd_jax.models.norm import LayerNorm
from ssdd_jax.models.starts import parameter

Array = jax.Array


class Patches(nn.Module):
    """A linear map of each patch: parameters `kernel (patch,patch,C,width)` and `bias (width,)`.

    Attributes:
        patch: Side of a patch in pixels.
        width: Numbers per patch.
    """

    patch: int
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `(B,H,W,C)` to `(B,H/patch*W/patch,width)`, patches row by row."""
        batch, height, width, channels = x.shape
        side = self.patch
        shape = (side, side, channels, self.width)
        kernel_start, bias_start = starts.pytorch(shape)
        kernel = parameter(self, "kernel", kernel_start, shape).astype(x.dtype)
        bias = parameter(self, "bias", bias_start, (self.width,)).astype(x.dtype)
        x = x.reshape(batch, height // side, side, width // side, side, channels)
        return jnp.einsum("bhiwjc,ijcf->bhwf", x, kernel).reshape(batch, -1, self.width) + bias.reshape(1, 1, -1)


class Attention(nn.Module):
    """Softmax attention of all tokens to all.

    Attributes:
        heads: Number of heads, a divisor of the width.
    """

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map tokens `(B,T,width)` to the like."""
        batch, tokens, width = x.shape
        joint = Linear(3 * width, starts.transformer, name="qkv")(x)
        query, key, value = jnp.moveaxis(joint.reshape(batch, tokens, 3, self.heads, width // self.heads), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query * (width // self.heads) ** -0.5, key)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), value)
        return Linear(width, starts.transformer, name="out")(mixed.reshape(batch, tokens, width))


class Block(nn.Module):
    """Attention and a perceptron of one hidden layer, each after a norm and around a shortcut.

    Attributes:
        heads: Number of heads.
        ratio: Hidden units per number of a token.
    """

    heads: int
    ratio: int = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map tokens `(B,T,width)` to the like."""
        x = x + Attention(self.heads, name="attention")(LayerNorm(name="norm1")(x))
        hidden = Linear(self.ratio * x.shape[-1], starts.transformer, name="mlp1")(LayerNorm(name="norm2")(x))
        return x + Linear(x.shape[-1], starts.transformer, name="mlp2")(nn.gelu(hidden, approximate=False))


class VisionTransformer(nn.Module):
    """Images `(B,H,W,C)` to targets `(B,dim)`.

    Attributes:
        dim: Length D of a target.
        patch: Side of a patch; H and W must be multiples of it.
        width: Numbers per token.
        depth: Number of blocks.
        heads: Heads of each.
    """

    dim: int
    patch: int
    width: int = 192
    depth: int = 12
    heads: int = 3

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Features `(B,width)`, the normed class token, and predictions `(B,dim)`; the same in training.

        Raises:
            ValueError: If H or W is not a multiple of `patch`.
        """
        check_multiple("the transformer", x.shape[1:3], self.patch)
        x = Patches(self.patch, self.width, name="patches")(x)
        token = parameter(self, "class_token", starts.normal(1e-6), (1, 1, self.width)).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], axis=1)
        x = x + parameter(self, "positions", starts.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        for i in range(self.depth):
            x = Block(self.heads, name=f"block{i}")(x)
        features = LayerNorm(name="norm")(x)[:, 0]
        return features, Linear(self.dim, starts.transformer, name="fc")(features)


def patch_side(image_shape: tuple[int, ...]) -> int:
    """Side of a patch for images `(H,W,C)`: an eighth of the image up to 64 pixels, 16 pixels beyond."""
    return max(1, image_shape[0] // 8) if image_shape[0] <= 64 else 16
