"""3x3 convolution with 4/9 of the multiplications: Winograd's F(2x2,3x3), a few images at a time.

Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016 (https://arxiv.org/abs/1509.09308). Each
2x2 tile of outputs is computed from a 4x4 tile of inputs: sixteen sums of inputs, sixteen sums of the kernel, sixteen
matrix products over the channels, and four sums of these. All factors are 1 and 1/2, so the loss of precision in
float32 is negligible: the difference from the direct sum is as small as that between two summation orders. The sums of
a whole batch do not fit into the cache. They are therefore computed, used and discarded a few images at a time, in the
backward pass too, which is why the derivatives are written out here.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from ssdd_jax.models import chunks

Array = jax.Array


def conv(x: Array, kernel: Array) -> Array:
    """Cross-correlate images with a 3x3 kernel; stride 1, one zero added on each side.

    Args:
        x: Images `(B,H,W,I)`.
        kernel: Kernel `(3,3,I,O)`.

    Returns:
        `(B,H,W,O)`.
    """
    sums = _of_kernel(kernel)  # once for all chunks

    def convolve(images: Array) -> Array:
        products = lax.dot_general(_of_inputs(images), sums, (((2,), (1,)), ((0,), (0,))))
        return _to_outputs(products, images.shape)

    return chunks.mapped(convolve, x, chunks.images_per_chunk(len(x), _bytes_of_one(x, kernel.shape[3])))


def kernel_gradient(x: Array, gradient: Array) -> Array:
    """Compute the gradient in the kernel `(3,3,I,O)` from images `(B,H,W,I)` and a gradient `(B,H,W,O)`."""

    def products(images: Array, gradients: Array) -> Array:
        return lax.dot_general(_of_inputs(images), _of_gradients(gradients), (((1,), (1,)), ((0,), (0,))))

    bytes_of_one = _bytes_of_one(x, gradient.shape[3])
    # Each chunk reads and writes the whole sum, sixteen values per pair of channels: small chunks would not pay off.
    sum_bytes = 16 * x.shape[3] * gradient.shape[3] * x.dtype.itemsize
    size = chunks.images_per_chunk(len(x), bytes_of_one, least=-(-2 * sum_bytes // bytes_of_one))
    return _kernel_of(chunks.summed(products, x, gradient, size))


def image_gradient(kernel: Array, gradient: Array) -> Array:
    """Compute the gradient in the images `(B,H,W,I)` from a kernel `(3,3,I,O)` and a gradient `(B,H,W,O)`."""
    # It is the convolution with the kernel rotated by 180 degrees and its channels swapped. The barrier stores that
    # kernel: its sums are read many times, and would gather from the original layout each time.
    return conv(gradient, lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3)))


def _of_inputs(x: Array) -> Array:
    """Compute sixteen sums of each 4x4 tile: `(B,H,W,I)` to `(16,B*T,I)`, T output tiles of 2x2 per image."""
    _, height, width, channels = x.shape
    # One zero around the image, and one more after an odd side to complete the last tile.
    x = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    vertical = jnp.stack(_input_sums([x[:, k : k + height : 2] for k in range(4)]))
    both = jnp.stack(_input_sums([vertical[:, :, :, k : k + width : 2] for k in range(4)]), axis=1)
    return both.reshape(16, -1, channels)


def _of_kernel(kernel: Array) -> Array:
    """Compute sixteen sums of the kernel: `(3,3,I,O)` to `(16,I,O)`."""
    both = [part for row in _kernel_sums(list(kernel)) for part in _kernel_sums(list(row))]
    return jnp.stack(both)


def _to_outputs(products: Array, shape: tuple[int, ...]) -> Array:
    """Combine the sixteen products `(16,B*T,O)` to the result `(B,H,W,O)` for images of `shape`."""
    batch, height, width, _ = shape
    down, across = -(-height // 2), -(-width // 2)
    tiles = products.reshape(4, 4, batch, down, across, -1)
    columns = [_output_sums([tiles[i, j] for i in range(4)]) for j in range(4)]
    rows = [_output_sums([columns[j][r] for j in range(4)]) for r in range(2)]
    both = jnp.stack([jnp.stack(row, axis=3) for row in rows], axis=2)
    # Odd sides were padded to whole tiles: the last row and column are cut off again.
    return both.reshape(batch, 2 * down, 2 * across, -1)[:, :height, :width]


def _of_gradients(gradient: Array) -> Array:
    """Transpose `_to_outputs`, except for signs, which `_kernel_of` restores: `(B,H,W,O)` to `(16,B*T,O)`."""
    _, height, width, _ = gradient.shape
    gradient = jnp.pad(gradient, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    vertical = jnp.stack(_gradient_sums([gradient[:, r::2] for r in range(2)]))
    both = jnp.stack(_gradient_sums([vertical[:, :, :, c::2] for c in range(2)]), axis=1)
    return both.reshape(16, -1, gradient.shape[-1])


def _kernel_of(sums: Array) -> Array:
    """Transpose `_of_kernel` and restore the sign of the last of `_gradient_sums`: `(16,I,O)` to `(3,3,I,O)`."""
    rows = _kernel_parts([jnp.stack(_kernel_parts(list(sums[4 * i : 4 * i + 4]))) for i in range(4)])
    return jnp.stack(rows)


# The transforms below are the matrices B, G and A of the paper (section 4.1) in one dimension, and their transposes.


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
    """Size of the sums of one image: sixteen per 2x2 pixels, for the inputs and for `channels` outputs."""
    _, height, width, input_channels = x.shape
    return 4 * height * width * (input_channels + channels) * x.dtype.itemsize
