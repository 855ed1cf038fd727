"""Batch, instance and layer normalisation with PyTorch's conventions, shared by every network of the package.

Flax's own module keeps the biased batch variance in its running average; networks trained or compared elsewhere expect
the unbiased one. The update here is `running = 0.9 * running + 0.1 * batch`.
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
"""PyTorch's `momentum`, the weight of the new batch (0.9 in the convention of Flax and Optax)."""


def moments(x: Array) -> tuple[Array, Array]:
    """Compute the mean and the biased variance of each channel.

    Args:
        x: Activations `(...,C)`.

    Returns:
        Mean `(C,)` and variance `(C,)`, in `x`'s precision but at least float32.
    """
    x = x.astype(_statistics_dtype(x))
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axis=axes, keepdims=True)
    # Two passes: the difference of E[x^2] and E[x]^2 cancels badly in float32 where the mean is large.
    variance = jnp.mean(jnp.square(x - mean), axis=axes)
    return mean.reshape(-1), variance


def standardize(x: Array, mean: Array, variance: Array, scale: Array | None = None) -> Array:
    """Compute `scale (x - mean) / sqrt(variance + 1e-5)` over the last axis.

    Args:
        x: Activations `(...,C)`.
        mean: Mean `(C,)`.
        variance: Biased variance `(C,)`.
        scale: Scale `(C,)`, or None for 1. It is multiplied into the factor of shape `(C,)`, which saves a pass over
            `x`, and a sum over it in the backward pass.

    Returns:
        An array like `x`, in the precision of the statistics.
    """
    shape = (1,) * (x.ndim - 1) + (-1,)
    factor = jax.lax.rsqrt(variance + EPSILON)
    factor = factor if scale is None else factor * scale
    return (x.astype(mean.dtype) - mean.reshape(shape)) * factor.reshape(shape)


@jax.custom_vjp
def normalize(x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    """Normalise a batch by its own statistics, with a derivative that needs the fewest passes over it.

    Args:
        x: Activations `(...,C)`.
        scale: Scale `(C,)`, in the precision of the statistics.
        bias: Bias `(C,)`, likewise.

    Returns:
        `scale (x - mean) / sqrt(variance + 1e-5) + bias`, like `x`; and the mean and the biased variance `(C,)`, which
        are for the running statistics: gradients with respect to them are ignored.
    """
    return _normalized(x, scale, bias)


def _normalized(x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    mean, variance = moments(x)
    y = standardize(x, mean, variance, scale) + bias.reshape((1,) * (x.ndim - 1) + (-1,))
    return y.astype(x.dtype), mean, variance


def _normalize_forward(x: Array, scale: Array, bias: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    # Not `normalize` itself: second derivatives need the ordinary derivative of the moments.
    y, mean, variance = _normalized(x, scale, bias)
    return (y, mean, variance), (x, scale, mean, variance)


def _normalize_backward(saved: tuple[Array, ...], gradients: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    x, scale, mean, variance = saved
    gradient = gradients[0].astype(mean.dtype)
    axes, shape = tuple(range(x.ndim - 1)), (1,) * (x.ndim - 1) + (-1,)
    centred = x.astype(mean.dtype) - mean.reshape(shape)
    inverse = jax.lax.rsqrt(variance + EPSILON)
    # Two sums over the batch; everything else is elementwise.
    in_bias = jnp.sum(gradient, axis=axes)
    in_scale = inverse * jnp.sum(gradient * centred, axis=axes)
    count = x.size // x.shape[-1]
    # The mean and the variance depend on `x` too: the gradient loses its components along 1 and along `centred`.
    along = (inverse * in_scale / count).reshape(shape)
    in_x = (inverse * scale).reshape(shape) * (gradient - (in_bias / count).reshape(shape) - centred * along)
    return in_x.astype(x.dtype), in_scale, in_bias


normalize.defvjp(_normalize_forward, _normalize_backward)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes except the last, like `torch.nn.BatchNorm1d` and `BatchNorm2d`.

    Variables: `params` `scale (C,)` and `bias (C,)` if `affine`; `batch_stats` `mean (C,)` and `var (C,)`, the running
    mean and the running *unbiased* variance. If running statistics are used and the collection `moments` is mutable,
    the input's mean and *biased* variance are stored there, under the same names.

    Attributes:
        affine: Whether to learn a scale and a bias.
        first_scale: Initial value of the scale.
    """

    affine: bool = True
    first_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array, *, use_running_average: bool) -> Array:
        """Normalise `x` and, in training, update the running statistics.

        Args:
            x: Activations `(B,H,W,C)` or `(B,C)`.
            use_running_average: If True, normalise by the running statistics (evaluation) instead of the batch's
                (training).

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
            # SC-DD compares the input's moments with the running ones; they are computed only on request.
            if not self.is_initializing() and self.is_mutable_collection("moments"):
                for name, value in zip(("mean", "var"), moments(x), strict=True):
                    self.sow("moments", name, value, init_fn=lambda: None, reduce_fn=lambda _, last: last)
            y = standardize(x, running_mean.value.astype(dtype), running_var.value.astype(dtype), scale)
            return (y + bias.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)
        y, mean, variance = normalize(x, scale, bias)
        if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
            # PyTorch keeps the unbiased variance: the factor is n / (n - 1).
            count = x.size // channels
            running_mean.value = _updated(running_mean.value, mean)
            running_var.value = _updated(running_var.value, variance * (count / max(count - 1, 1)))
        return y


class InstanceNorm(nn.Module):
    """Instance normalisation over the pixels of each channel, like `torch.nn.GroupNorm` with one channel per group.

    Variables: `params` `scale (C,)` and `bias (C,)`. Training and evaluation do not differ.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalise `x`.

        Args:
            x: Activations `(B,H,W,C)`.

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
    """Layer normalisation over the channels of each position, like `torch.nn.LayerNorm`.

    Variables: `params` `scale (C,)` and `bias (C,)`. Training and evaluation do not differ.

    Attributes:
        epsilon: Constant added to the variance; vision transformers use 1e-6.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalise `x (...,C)`; returns an array of its shape and dtype."""
        dtype, shape = _statistics_dtype(x), (1,) * (x.ndim - 1) + (-1,)
        scale = parameter(self, "scale", constant(1.0), x.shape[-1:]).astype(dtype).reshape(shape)
        bias = parameter(self, "bias", constant(0.0), x.shape[-1:]).astype(dtype).reshape(shape)
        centred = x.astype(dtype) - jnp.mean(x.astype(dtype), axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(x.dtype)


def _statistics_dtype(x: Array) -> jnp.dtype:
    """Return the precision of the statistics: that of `x`, but at least float32."""
    return x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.dtype(jnp.float32)


def _updated(running: Array, batch: Array) -> Array:
    """Update a running statistic `(C,)` by one batch, in its own precision and without a gradient."""
    batch = jax.lax.stop_gradient(batch).astype(running.dtype)
    return (1.0 - MOMENTUM) * running + MOMENTUM * batch
