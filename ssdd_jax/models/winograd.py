"""The 3x3 convolution with 4/9 of the multiplications: Winograd's F(2x2,3x3), a few images at a time.

Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016 (https://arxiv.org/abs/1509.09308). Each
2x2 of outputs comes from a 4x4 of inputs: sixteen sums of inputs, sixteen sums of the kernel, sixteen matrix products
over the channels, four sums of these. All factors are 1 and 1/2, so that float32 loses nothing to speak of: the
difference from the plain sum is as small as that between two orders of it. The sums of a whole batch do not fit into
the cache, so they are made, used and dropped a few images at a time, in the backward pass too: that is what the
derivatives written out here are for.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from ssdd_jax.models import chunks

Array = jax.Array


@jax.custom_vjp
def conv(x: Array, kernel: Array) -> Array:
    """Cross-correlate images with a 3x3 kernel; stride 1, one zero added on each side.

    Args:
        x: Images `(B,H,W,I)`.
        kernel: Kernel `(3,3,I,O)`.

    Returns:
        `(B,H,W,O)`.
    """
    sums = _of_kernel(kernel)

    def some(images: Array) -> Array:
        products = lax.dot_general(_of_inputs(images), sums, (((2,), (1,)), ((0,), (0,))))
        return _to_outputs(products, images.shape)

    return chunks.mapped(some, x, chunks.images_per_chunk(len(x), _bytes_of_one(x, kernel.shape[3])))


@jax.custom_vjp
def _kernel_gradient(x: Array, gradient: Array) -> Array:
    """The derivative in the kernel `(3,3,I,O)`: images `(B,H,W,I)`, and the gradient of the result `(B,H,W,O)`."""

    def some(images: Array, gradients: Array) -> Array:
        return lax.dot_general(_of_inputs(images), _of_gradients(gradients), (((1,), (1,)), ((0,), (0,))))

    bytes_of_one = _bytes_of_one(x, gradient.shape[3])
    # Each chunk reads and writes the whole sum, sixteen numbers per pair of channels: it should be worth it.
    sum_bytes = 16 * x.shape[3] * gradient.shape[3] * x.dtype.itemsize
    size = chunks.images_per_chunk(len(x), bytes_of_one, least=-(-2 * sum_bytes // bytes_of_one))
    return _kernel_of(chunks.summed(some, x, gradient, size))


def _turned(kernel: Array) -> Array:
    """By 180 degrees, channels swapped: the derivative of a convolution in its images is the convolution with this."""
    # Its sums are read many times: once from here, not each time across the memory of the kernel as it is.
    return lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))


# Both maps are linear in each argument, and each derivative is one of the two again: they can be differentiated twice.
conv.defvjp(
    lambda x, kernel: (conv(x, kernel), (x, kernel)),
    lambda saved, out: (conv(out, _turned(saved[1])), _kernel_gradient(saved[0], out)),
)
_kernel_gradient.defvjp(
    lambda x, gradient: (_kernel_gradient(x, gradient), (x, gradient)),
    lambda saved, out: (conv(saved[1], _turned(out)), conv(saved[0], out)),
)


def _of_inputs(x: Array) -> Array:
    """Sixteen sums of each 4x4 of the padded images: `(B,H,W,I)` to `(16,B*T,I)`, T tiles of 2x2 an image."""
    _, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    rows = jnp.stack(_input_sums([x[:, k : k + height : 2] for k in range(4)]))
    both = jnp.stack(_input_sums([rows[:, :, :, k : k + width : 2] for k in range(4)]), axis=1)
    return both.reshape(16, -1, channels)


def _of_kernel(kernel: Array) -> Array:
    """Sixteen sums of the kernel: `(3,3,I,O)` to `(16,I,O)`."""
    both = [part for row in _kernel_sums(list(kernel)) for part in _kernel_sums(list(row))]
    return jnp.stack(both)


def _to_outputs(products: Array, shape: tuple[int, ...]) -> Array:
    """Four sums of the sixteen products `(16,B*T,O)`: the result `(B,H,W,O)` for images of `shape`."""
    batch, height, width, _ = shape
    down, across = -(-height // 2), -(-width // 2)
    tiles = products.reshape(4, 4, batch, down, across, -1)
    columns = [_output_sums([tiles[i, j] for i in range(4)]) for j in range(4)]
    rows = [_output_sums([columns[j][r] for j in range(4)]) for r in range(2)]
    both = jnp.stack([jnp.stack(row, axis=3) for row in rows], axis=2)
    return both.reshape(batch, 2 * down, 2 * across, -1)[:, :height, :width]


def _of_gradients(gradient: Array) -> Array:
    """The transpose of `_to_outputs` but for signs, which `_kernel_of` sets: `(B,H,W,O)` to `(16,B*T,O)`."""
    _, height, width, _ = gradient.shape
    gradient = jnp.pad(gradient, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows = jnp.stack(_gradient_sums([gradient[:, r::2] for r in range(2)]))
    both = jnp.stack(_gradient_sums([rows[:, :, :, c::2] for c in range(2)]), axis=1)
    return both.reshape(16, -1, gradient.shape[-1])


def _kernel_of(sums: Array) -> Array:
    """The transpose of `_of_kernel`, and the sign of what `_gradient_sums` gives last: `(16,I,O)` to `(3,3,I,O)`."""
    rows = _kernel_parts([jnp.stack(_kernel_parts(list(sums[4 * i : 4 * i + 4]))) for i in range(4)])
    return jnp.stack(rows)


def _input_sums(x: Sequence[Array]) -> list[Array]:
    a, b, c, d = x
    return [a - c, b + c, c - b, b - d]


def _kernel_sums(x: Sequence[Array]) -> list[Array]:
    a, b, c = x
    return [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c]


def _kernel_parts(x: Sequence[Array]) -> list[Array]:
    a, b, c, d = x
    return [a + 0.5 * (b + c), 0.5 * (b - c), 0.5 * (b + c) - d]


def _output_sums(x: Sequence[Array]) -> list[Array]:
    a, b, c, d = x
    return [a + b + c, b - c - d]


def _gradient_sums(x: Sequence[Array]) -> list[Array]:
    a, b = x
    return [a, a + b, a - b, b]


def _bytes_of_one(x: Array, channels: int) -> int:
    """Sixteen sums for every 2x2 of pixels, of inputs and of outputs with so many channels."""
    _, height, width, own = x.shape
    return 4 * height * width * (own + channels) * x.dtype.itemsize
