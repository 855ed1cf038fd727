"""The one convolution that every network here uses, and the one of single channels.

What runs best differs by backend (measured: `experiments/docs/speed.md`). XLA runs `lax.conv_general_dilated` on a CPU
through a slow path as soon as it stands in a `lax.scan` or under a `vmap` over kernels; as a matrix product over
patches ("im2col") it stays a (batched) matrix product everywhere, and with many channels Winograd's algorithm needs
less than half of its multiplications. Accelerators bring convolutions of their own.
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

# With fewer channels on either side, Winograd's sums cost more than the multiplications that they save.
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
    """Which of `FORMS` runs best where the program runs, for images `(B,H,W,I)` and a kernel `(h,w,I,O)`."""
    if jax.default_backend() != "cpu":
        return "lax"
    suited = kernel.shape[:2] == (3, 3) and stride == 1 and padding == 1 and min(x.shape[1:3]) > 1
    # In half precision the sums would lose what the plain products keep.
    exact = jnp.finfo(x.dtype).bits >= 32
    return "winograd" if suited and exact and min(kernel.shape[2:]) >= WINOGRAD_CHANNELS else "im2col"


def depthwise(x: Array, kernel: Array, *, stride: int = 1, padding: int = 1) -> Array:
    """Cross-correlate each channel with a kernel of its own: `torch.nn.functional.conv2d` with `groups=C`.

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
    taps = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])
    shifted = _shifted(x, kernel.shape[:2], stride, padding)
    return functools.reduce(jnp.add, [image * tap for image, tap in zip(shifted, taps, strict=True)])


def _shifted(x: Array, window: tuple[int, ...], stride: int, padding: int) -> list[Array]:
    """For each place `h*w` in the window, what stands there wherever the kernel is put: `(B,H',W',I)`."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height = (x.shape[1] - window[0]) // stride + 1
    width = (x.shape[2] - window[1]) // stride + 1
    rows, columns = (height - 1) * stride + 1, (width - 1) * stride + 1
    return [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(window[0]) for j in range(window[1])]


def _patches(x: Array, window: tuple[int, ...], stride: int, padding: int) -> Array:
    """The `(B,H',W',h*w*I)` neighbourhoods that the kernel meets."""
    shifted = _shifted(x, window, stride, padding)
    return jnp.concatenate(shifted, axis=-1) if len(shifted) > 1 else shifted[0]


def _lax(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    sides = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(x, kernel, (stride, stride), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _im2col(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    def some(images: Array) -> Array:
        return _product(images, kernel, stride, padding)

    return chunks.mapped(some, x, _images_per_chunk(x, kernel, stride, padding))


def _im2col_backward(stride: int, padding: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    size = _images_per_chunk(x, kernel, stride, padding)

    def in_some(gradients: Array) -> Array:
        like = jax.ShapeDtypeStruct((len(gradients), *x.shape[1:]), x.dtype)
        return jax.linear_transpose(lambda images: _product(images, kernel, stride, padding), like)(gradients)[0]

    def in_kernel(images: Array, gradients: Array) -> Array:
        # XLA's product over the rows of both is several times slower than a transposition and a product.
        patches = _patches(images, kernel.shape[:2], stride, padding)
        turned = lax.optimization_barrier(patches.reshape(-1, patches.shape[-1]).T)
        return jnp.matmul(turned, gradients.reshape(-1, gradients.shape[-1]))

    in_images = chunks.mapped(in_some, gradient, size)
    return in_images, chunks.summed(in_kernel, x, gradient, size).reshape(kernel.shape)


_im2col.defvjp(lambda x, kernel, *sizes: (_im2col(x, kernel, *sizes), (x, kernel)), _im2col_backward)


def _product(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    patches = _patches(x, kernel.shape[:2], stride, padding)
    return lax.dot_general(patches, kernel.reshape(-1, kernel.shape[-1]), (((3,), (0,)), ((), ())))


def _images_per_chunk(x: Array, kernel: Array, stride: int, padding: int) -> int:
    windows = zip(x.shape[1:3], kernel.shape[:2], strict=True)
    sides = [(side + 2 * padding - window) // stride + 1 for side, window in windows]
    numbers = math.prod(sides) * (math.prod(kernel.shape[:3]) + kernel.shape[3])
    return chunks.images_per_chunk(len(x), numbers * x.dtype.itemsize)


def _winograd(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    if kernel.shape[:2] != (3, 3) or (stride, padding) != (1, 1):
        raise ValueError(f"winograd is for 3x3, stride 1, padding 1, not {kernel.shape[:2]}, {stride}, {padding}")
    return winograd.conv(x, kernel)


# By name, each `(x, kernel, stride, padding) -> (B,H',W',O)`; `winograd` is for 3x3, stride 1 and padding 1 alone.
FORMS: dict[str, Form] = {"lax": _lax, "im2col": _im2col, "winograd": _winograd}
