"""Batch, instance and layer normalisation with PyTorch's conventions, shared by every network of the package.

Flax's own module keeps the biased batch variance in its running average; networks trained or compared
elsewhere expect the unbiased one. The update here is `running = 0.9 * running + 0.1 * batch`.
"""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from ssdd_jax.models.starts import constant, parameter

Array = jax.Array

EPSILON = 1e-5
MOMENTUM = 0.1
"""PyTorch's `momentum`: the weight of the new batch (Flax and optax would call this 0.9)."""


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel.

    Args:
      x: activations `(..., C)`.

    Returns:
      Mean `(C,)` and variance `(C,)`, in `x`'s precision and never below float32.
    """
    x = x.astype(_statistics_dtype(x))
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axis=axes, keepdims=True)
    # Two passes: the difference of E[x^2] and E[x]^2 cancels badly in float32 where the mean is large.
    variance = jnp.mean(jnp.square(x - mean), axis=axes)
    return mean.reshape(-1), variance


def standardize(x: Array, mean: Array, variance: Array, scale: Array | None = None) -> Array:
    """`scale (x - mean) / sqrt(variance + 1e-5)` over the last axis.

    Args:
      x: activations `(..., C)`.
      mean: `(C,)`.
      variance: `(C,)`, biased.
      scale: `(C,)`, or nothing for 1. Multiplied into the small factor here, it costs no pass over `x`, nor one
        more sum over it in the backward pass.

    Returns:
      An array like `x`, in the precision of the statistics.
    """
    shape = (1,) * (x.ndim - 1) + (-1,)
    factor = jax.lax.rsqrt(variance + EPSILON)
    factor = factor if scale is None else factor * scale
    return (x.astype(mean.dtype) - mean.reshape(shape)) * factor.reshape(shape)


@jax.custom_vjp
def normalize(x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    """Batch normalisation by the input's own statistics, with the derivative that takes the fewest passes over it.

    Args:
      x: activations `(..., C)`.
      scale: `(C,)`, in the precision of the statistics.
      bias: `(C,)`, likewise.

    Returns:
      `scale (x - mean) / sqrt(variance + 1e-5) + bias`, like `x`; and the mean and the biased variance `(C,)`, which
      are to be kept, not differentiated: a gradient in them is ignored.
    """
    return _normalized(x, scale, bias)


def _normalized(x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    mean, variance = moments(x)
    y = standardize(x, mean, variance, scale) + bias.reshape((1,) * (x.ndim - 1) + (-1,))
    return y.astype(x.dtype), mean, variance


def _normalize_forward(x: Array, scale: Array, bias: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    y, mean, variance = _normalized(x, scale, bias)  # by its own derivative: the second one needs that of the moments
    return (y, mean, variance), (x, scale, mean, variance)


def _normalize_backward(saved: tuple[Array, ...], gradients: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    x, scale, mean, variance = saved
    gradient = gradients[0].astype(mean.dtype)
    axes, shape = tuple(range(x.ndim - 1)), (1,) * (x.ndim - 1) + (-1,)
    centred = x.astype(mean.dtype) - mean.reshape(shape)
    inverse = jax.lax.rsqrt(variance + EPSILON)
    in_bias = jnp.sum(gradient, axis=axes)
    in_scale = inverse * jnp.sum(gradient * centred, axis=axes)
    count = x.size // x.shape[-1]
    along = (inverse * in_scale / count).reshape(shape)
    in_x = (inverse * scale).reshape(shape) * (gradient - (in_bias / count).reshape(shape) - centred * along)
    return in_x.astype(x.dtype), in_scale, in_bias


normalize.defvjp(_normalize_forward, _normalize_backward)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, as `torch.nn.BatchNorm1d` and `BatchNorm2d` do it.

    Variables: `params` `scale (C,)` and `bias (C,)` where `affine`; `batch_stats` `mean (C,)` and `var (C,)`,
    the running mean and the running *unbiased* variance. With running statistics and the collection `moments` mutable,
    the input's own mean and *biased* variance are left there, under the same names.

    Attributes:
      affine: whether there are a learned scale and bias.
      first_scale: what the scale starts as.
    """

    affine: bool = True
    first_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array, *, use_running_average: bool) -> Array:
        """Normalises `x`, and in training moves the running statistics.

        Args:
          x: activations `(B, H, W, C)` or `(B, C)`.
          use_running_average: normalise by the running statistics (evaluation), not the batch's (training).

        Returns:
          An array of `x`'s shape and dtype.
        """
        channels, dtype = x.shape[-1], _statistics_dtype(x)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale, bias = jnp.ones(channels, dtype), jnp.zeros(channels, dtype)
        if self.affine:
            scale = parameter(self, "scale", constant(self.first_scale), (channels,)).astype(dtype)
            bias = parameter(self, "bias", constant(0.0), (channels,)).astype(dtype)
        if use_running_average:
            if not self.is_initializing() and self.is_mutable_collection("moments"):
                for name, value in zip(("mean", "var"), moments(x), strict=True):
                    self.sow("moments", name, value, init_fn=lambda: None, reduce_fn=lambda _, last: last)
            y = standardize(x, running_mean.value.astype(dtype), running_var.value.astype(dtype), scale)
            return (y + bias.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)
        y, mean, variance = normalize(x, scale, bias)
        if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
            count = x.size // channels
            running_mean.value = _moved(running_mean.value, mean)
            running_var.value = _moved(running_var.value, variance * (count / max(count - 1, 1)))
        return y


class InstanceNorm(nn.Module):
    """Each image and channel normalised over its pixels, as `torch.nn.GroupNorm` with one channel per group does it.

    Variables: `params` `scale (C,)` and `bias (C,)`; the same in training and evaluation.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises `x`.

        Args:
          x: activations `(B, H, W, C)`.

        Returns:
          An array of `x`'s shape and dtype.
        """
        chex.assert_rank(x, 4)
        dtype = _statistics_dtype(x)
        scale = parameter(self, "scale", constant(1.0), x.shape[-1:]).astype(dtype)
        bias = parameter(self, "bias", constant(0.0), x.shape[-1:]).astype(dtype)
        y = jax.vmap(lambda image: standardize(image, *moments(image), scale))(x)
        return (y + bias.reshape(1, 1, 1, -1)).astype(x.dtype)


class LayerNorm(nn.Module):
    """Each position normalised over its channels, as `torch.nn.LayerNorm` does it.

    Variables: `params` `scale (C,)` and `bias (C,)`; the same in training and evaluation.

    Attributes:
      epsilon: added to the variance; vision transformers use 1e-6.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises `x (..., C)`; returns an array of its shape and dtype."""
        dtype, shape = _statistics_dtype(x), (1,) * (x.ndim - 1) + (-1,)
        scale = parameter(self, "scale", constant(1.0), x.shape[-1:]).astype(dtype).reshape(shape)
        bias = parameter(self, "bias", constant(0.0), x.shape[-1:]).astype(dtype).reshape(shape)
        centred = x.astype(dtype) - jnp.mean(x.astype(dtype), axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(x.dtype)


def _statistics_dtype(x: Array) -> jnp.dtype:
    """At least float32."""
    return x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.dtype(jnp.float32)


def _moved(running: Array, batch: Array) -> Array:
    """The running statistic after one more batch, in its own precision and without a gradient."""
    batch = jax.lax.stop_gradient(batch).astype(running.dtype)
    return (1.0 - MOMENTUM) * running + MOMENTUM * batch
