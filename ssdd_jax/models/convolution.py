"""Convolutions used by every network: the standard one, and the depthwise one.

The fastest implementation depends on the backend (measured: `experiments/docs/speed.md`). On a CPU, XLA takes a slow
path for `lax.conv_general_dilated` inside a `lax.scan` or under a `vmap` over kernels. A matrix product over patches
("im2col") remains a (batched) matrix product everywhere, and with many channels Winograd's algorithm needs less than
half of its multiplications. On accelerators XLA's own convolution is used.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ssdd_jax.models import chunks, winograd

Array = jax.Array
Form = Callable[[Array, Array, int, int], Array]

# With fewer input or output channels, Winograd's sums cost more than the multiplications that they save.
WINOGRAD_CHANNELS = 8


def conv(x: Array, kernel: Array, *, stride: int = 1, padding: int = 1) -> Array:
    """Cross-correlate images with a kernel, as `torch.nn.functional.conv2d` does.

    Args:
        x: Images `(B,H,W,I)`.
        kernel: Kernel `(h,w,I,O)`.
        stride: Step in both directions.
        padding: Zeros added on each of the four sides.

    Returns:
        `(B,H',W',O)` with `H' = (H + 2 padding - h) // stride + 1`, likewise `W'`.

    Raises:
        ValueError: If the channels of `x` and `kernel` differ.
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[-1] != kernel.shape[2]:
        raise ValueError(f"conv needs x (B,H,W,I) and kernel (h,w,I,O), got {x.shape} and {kernel.shape}")
    return FORMS[form(x, kernel, stride, padding)](x, kernel, stride, padding)


def form(x: Array, kernel: Array, stride: int, padding: int) -> str:
    """Choose the fastest of `FORMS` on the default backend, for images `(B,H,W,I)` and a kernel `(h,w,I,O)`."""
    if jax.default_backend() != "cpu":
        return "lax"
    applicable = kernel.shape[:2] == (3, 3) and stride == 1 and padding == 1 and min(x.shape[1:3]) > 1
    # In half precision Winograd's sums would lose digits that the plain products keep.
    exact = jnp.finfo(x.dtype).bits >= 32
    return "winograd" if applicable and exact and min(kernel.shape[2:]) >= WINOGRAD_CHANNELS else "im2col"


def depthwise(x: Array, kernel: Array, *, stride: int = 1, padding: int = 1) -> Array:
    """Cross-correlate each channel with its own kernel: `torch.nn.functional.conv2d` with `groups=C`.

    Args:
        x: Images `(B,H,W,C)`.
        kernel: Kernel `(h,w,1,C)`.
        stride: Step in both directions.
        padding: Zeros added on each of the four sides.

    Returns:
        `(B,H',W',C)` with `H' = (H + 2 padding - h) // stride + 1`, likewise `W'`.

    Raises:
        ValueError: If the channels of `x` and `kernel` differ.
    """
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[2:] != (1, x.shape[-1]):
        raise ValueError(f"depthwise needs x (B,H,W,C) and kernel (h,w,1,C), got {x.shape} and {kernel.shape}")
    # A sum of shifted images: with one channel per kernel there is no matrix product to form.
    taps = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])
    shifted = _shifted(x, kernel.shape[:2], stride, padding)
    return functools.reduce(jnp.add, [image * tap for image, tap in zip(shifted, taps, strict=True)])


def _shifted(x: Array, window: tuple[int, ...], stride: int, padding: int) -> list[Array]:
    """Return, for each of the `h*w` offsets in the window, the input at that offset of every output: `(B,H',W',I)`."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height = (x.shape[1] - window[0]) // stride + 1
    width = (x.shape[2] - window[1]) // stride + 1
    rows, columns = (height - 1) * stride + 1, (width - 1) * stride + 1
    return [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(window[0]) for j in range(window[1])]


def _patches(x: Array, window: tuple[int, ...], stride: int, padding: int) -> Array:
    """Gather the neighbourhood of every output: `(B,H',W',h*w*I)`."""
    shifted = _shifted(x, window, stride, padding)
    return jnp.concatenate(shifted, axis=-1) if len(shifted) > 1 else shifted[0]


def _lax(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    sides = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(x, kernel, (stride, stride), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _im2col(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Convolve as a matrix product over patches, a chunk of images at a time; see `conv` for the shapes.

    The derivative is written out so that the backward pass is chunked too, and no patches are stored for it.
    """

    def convolve(images: Array) -> Array:
        return _product(images, kernel, stride, padding)

    return chunks.mapped(convolve, x, _images_per_chunk(x, kernel, stride, padding))


def _im2col_backward(stride: int, padding: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """Gradients with respect to images and kernel, given the gradient of the result `(B,H',W',O)`."""
    x, kernel = saved
    size = _images_per_chunk(x, kernel, stride, padding)

    def image_gradient(gradients: Array) -> Array:
        like = jax.ShapeDtypeStruct((len(gradients), *x.shape[1:]), x.dtype)
        return jax.linear_transpose(lambda images: _product(images, kernel, stride, padding), like)(gradients)[0]

    def kernel_gradient(images: Array, gradients: Array) -> Array:
        # XLA's product contracting the first axis of both is several times slower than a transposition and a product.
        patches = _patches(images, kernel.shape[:2], stride, padding)
        transposed = lax.optimization_barrier(patches.reshape(-1, patches.shape[-1]).T)
        return jnp.matmul(transposed, gradients.reshape(-1, gradients.shape[-1]))

    in_images = chunks.mapped(image_gradient, gradient, size)
    return in_images, chunks.summed(kernel_gradient, x, gradient, size).reshape(kernel.shape)


_im2col.defvjp(lambda x, kernel, *sizes: (_im2col(x, kernel, *sizes), (x, kernel)), _im2col_backward)


def _product(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    patches = _patches(x, kernel.shape[:2], stride, padding)
    return lax.dot_general(patches, kernel.reshape(-1, kernel.shape[-1]), (((3,), (0,)), ((), ())))


def _images_per_chunk(x: Array, kernel: Array, stride: int, padding: int) -> int:
    windows = zip(x.shape[1:3], kernel.shape[:2], strict=True)
    sides = [(side + 2 * padding - window) // stride + 1 for side, window in windows]
    # Per output position: one patch and its products with all kernels.
    values = math.prod(sides) * (math.prod(kernel.shape[:3]) + kernel.shape[3])
    return chunks.images_per_chunk(len(x), values * x.dtype.itemsize)


def _winograd(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    if kernel.shape[:2] != (3, 3) or (stride, padding) != (1, 1):
        raise ValueError(f"winograd is for 3x3, stride 1, padding 1, not {kernel.shape[:2]}, {stride}, {padding}")
    return winograd.conv(x, kernel)


# Implementations by name, `(x, kernel, stride, padding) -> (B,H',W',O)`; `winograd` requires 3x3, stride 1, padding 1.
FORMS: dict[str, Form] = {"lax": _lax, "im2col": _im2col, "winograd": _winograd}
