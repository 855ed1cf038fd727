"""Convolutions used by every network: the standard one, and the depthwise one.

The fastest implementation depends on the platform (measured: `docs/guides/speed.md`). On a CPU, XLA takes a slow path
for `lax.conv_general_dilated` inside a `lax.scan` or under a `vmap` over kernels. A matrix product over patches
("im2col") remains a (batched) matrix product everywhere, and with many channels Winograd's algorithm needs less than
half of its multiplications. On accelerators XLA's own convolution is the default.

A convolution is bilinear, so its derivatives of any order are three maps: the convolution itself, its gradient in the
images and its gradient in the kernel. Each form implements these three, and the platform that a program is lowered for,
not the one that it is traced on, decides between the forms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ssdd_jax.models import chunks, winograd

Array = jax.Array

# With fewer input or output channels, Winograd's sums cost more than the multiplications that they save.
WINOGRAD_CHANNELS = 8


class Geometry(NamedTuple):
    """Static description of a convolution.

    Attributes:
        image: Height and width of the images.
        window: Height and width of the kernel.
        stride: Step in both directions.
        padding: Zeros added on each of the four sides.
    """

    image: tuple[int, ...]
    window: tuple[int, ...]
    stride: int
    padding: int


class Form(NamedTuple):
    """One way to compute a convolution and its derivatives.

    Attributes:
        conv: Maps images `(B,H,W,I)` and a kernel `(h,w,I,O)` to `(B,H',W',O)`.
        image_gradient: Maps the kernel and a gradient `(B,H',W',O)` to the gradient in the images `(B,H,W,I)`.
        kernel_gradient: Maps the images and a gradient `(B,H',W',O)` to the gradient in the kernel `(h,w,I,O)`.
    """

    conv: Callable[[Array, Array, Geometry], Array]
    image_gradient: Callable[[Array, Array, Geometry], Array]
    kernel_gradient: Callable[[Array, Array, Geometry], Array]


def conv(x: Array, kernel: Array, *, stride: int = 1, padding: int = 1, form: str = "auto") -> Array:
    """Cross-correlate images with a kernel, as `torch.nn.functional.conv2d` does.

    Args:
        x: Images `(B,H,W,I)`.
        kernel: Kernel `(h,w,I,O)`.
        stride: Step in both directions.
        padding: Zeros added on each of the four sides.
        form: One of `FORMS`; `auto` is the fastest one of the platform that the program is compiled for.

    Returns:
        `(B,H',W',O)` with `H' = (H + 2 padding - h) // stride + 1`, likewise `W'`.

    Raises:
        ValueError: If the channels of `x` and `kernel` differ, or the form is unknown or not made for this kernel.
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[-1] != kernel.shape[2]:
        raise ValueError(f"conv needs x (B,H,W,I) and kernel (h,w,I,O), got {x.shape} and {kernel.shape}")
    geometry = Geometry(x.shape[1:3], kernel.shape[:2], stride, padding)
    if form not in ("auto", *FORMS):
        raise ValueError(f"unknown form {form!r} of the convolution: it is auto or one of {', '.join(FORMS)}")
    if form == "winograd" and not _winograd_applies(geometry):
        raise ValueError(f"winograd is for 3x3, stride 1, padding 1, not {kernel.shape[:2]}, {stride}, {padding}")
    return _conv(geometry, form, x, kernel)


def form_on(
    platform: str,
    x: Array | jax.ShapeDtypeStruct,
    kernel: Array | jax.ShapeDtypeStruct,
    stride: int = 1,
    padding: int = 1,
) -> str:
    """Name the form that `auto` stands for.

    Args:
        platform: The platform of the program, such as `cpu` or `cuda`.
        x: Images `(B,H,W,I)`, or their shape and type.
        kernel: Kernel `(h,w,I,O)`, likewise.
        stride: Step in both directions.
        padding: Zeros added on each of the four sides.

    Returns:
        One of `FORMS`.
    """
    if platform != "cpu":
        return "lax"
    applies = _winograd_applies(Geometry(x.shape[1:3], kernel.shape[:2], stride, padding)) and min(x.shape[1:3]) > 1
    # In half precision Winograd's sums would lose digits that the plain products keep.
    exact = jnp.finfo(x.dtype).bits >= 32
    return "winograd" if applies and exact and min(kernel.shape[2:]) >= WINOGRAD_CHANNELS else "im2col"


def _winograd_applies(geometry: Geometry) -> bool:
    return geometry.window == (3, 3) and (geometry.stride, geometry.padding) == (1, 1)


@functools.cache
def _compiled(kind: str, geometry: Geometry, form: str, on_cpu: str) -> Callable[..., Array]:
    """Return the map `kind` of a form, `auto` being that of the platform of the lowering.

    It is the same function object for the same arguments, so that JAX traces each size once in a process.
    """

    def compute(name: str, *arrays: Array) -> Array:
        return getattr(FORMS[name], kind)(*arrays, geometry)

    if form != "auto":
        chosen: Callable[..., Array] = functools.partial(compute, form)
    else:
        cpu, others = (functools.partial(compute, name) for name in (on_cpu, "lax"))
        chosen = functools.partial(lax.platform_dependent, cpu=cpu, default=others)
    return jax.jit(chosen, inline=True)


# The three maps, each linear in both of its arrays. The derivatives of each are the other two.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv(geometry: Geometry, form: str, x: Array, kernel: Array) -> Array:
    on_cpu = form_on("cpu", x, kernel, geometry.stride, geometry.padding)
    return _compiled("conv", geometry, form, on_cpu)(x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _image_gradient(geometry: Geometry, form: str, kernel: Array, gradient: Array) -> Array:
    like = jax.ShapeDtypeStruct((len(gradient), *geometry.image, kernel.shape[2]), gradient.dtype)
    on_cpu = form_on("cpu", like, kernel, geometry.stride, geometry.padding)
    return _compiled("image_gradient", geometry, form, on_cpu)(kernel, gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _kernel_gradient(geometry: Geometry, form: str, x: Array, gradient: Array) -> Array:
    like = jax.ShapeDtypeStruct((*geometry.window, x.shape[3], gradient.shape[3]), x.dtype)
    on_cpu = form_on("cpu", x, like, geometry.stride, geometry.padding)
    return _compiled("kernel_gradient", geometry, form, on_cpu)(x, gradient)


def _saving(function: Callable[..., Array]) -> Callable[..., tuple[Array, tuple[Array, Array]]]:
    """Return the forward pass of a custom derivative: the result, and the arguments for the backward pass."""
    return lambda geometry, form, *arrays: (function(geometry, form, *arrays), arrays)


def _conv_backward(geometry: Geometry, form: str, saved: Any, out: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return _image_gradient(geometry, form, kernel, out), _kernel_gradient(geometry, form, x, out)


def _image_gradient_backward(geometry: Geometry, form: str, saved: Any, out: Array) -> tuple[Array, Array]:
    kernel, gradient = saved
    return _kernel_gradient(geometry, form, out, gradient), _conv(geometry, form, out, kernel)


def _kernel_gradient_backward(geometry: Geometry, form: str, saved: Any, out: Array) -> tuple[Array, Array]:
    x, gradient = saved
    return _image_gradient(geometry, form, out, gradient), _conv(geometry, form, x, out)


_conv.defvjp(_saving(_conv), _conv_backward)
_image_gradient.defvjp(_saving(_image_gradient), _image_gradient_backward)
_kernel_gradient.defvjp(_saving(_kernel_gradient), _kernel_gradient_backward)


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


def _lax(x: Array, kernel: Array, geometry: Geometry) -> Array:
    sides = ((geometry.padding, geometry.padding),) * 2
    strides = (geometry.stride, geometry.stride)
    return lax.conv_general_dilated(x, kernel, strides, sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _transposed(conv: Callable[[Array, Array, Geometry], Array]) -> Form:
    """Derive the two gradients of a convolution by transposing it."""

    def image_gradient(kernel: Array, gradient: Array, geometry: Geometry) -> Array:
        like = jax.ShapeDtypeStruct((len(gradient), *geometry.image, kernel.shape[2]), gradient.dtype)
        return jax.linear_transpose(lambda x: conv(x, kernel, geometry), like)(gradient)[0]

    def kernel_gradient(x: Array, gradient: Array, geometry: Geometry) -> Array:
        like = jax.ShapeDtypeStruct((*geometry.window, x.shape[3], gradient.shape[3]), x.dtype)
        return jax.linear_transpose(lambda kernel: conv(x, kernel, geometry), like)(gradient)[0]

    return Form(conv, image_gradient, kernel_gradient)


def _product(x: Array, kernel: Array, geometry: Geometry) -> Array:
    patches = _patches(x, geometry.window, geometry.stride, geometry.padding)
    return lax.dot_general(patches, kernel.reshape(-1, kernel.shape[-1]), (((3,), (0,)), ((), ())))


def _im2col(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolve as a matrix product over patches, a chunk of images at a time."""
    size = _images_per_chunk(x, kernel.shape, geometry)
    product = _paired_product if _is_paired(kernel.shape, geometry) else _product
    return chunks.mapped(lambda images: product(images, kernel, geometry), x, size)


def _im2col_image_gradient(kernel: Array, gradient: Array, geometry: Geometry) -> Array:
    transposed = _transposed(_product).image_gradient
    size = _images_per_chunk(gradient, kernel.shape, geometry)
    return chunks.mapped(lambda gradients: transposed(kernel, gradients, geometry), gradient, size)


def _im2col_kernel_gradient(x: Array, gradient: Array, geometry: Geometry) -> Array:
    shape = (*geometry.window, x.shape[3], gradient.shape[3])
    paired = _is_paired(shape, geometry)

    def of_chunk(images: Array, gradients: Array) -> Array:
        # XLA's product contracting the first axis of both is several times slower than a transposition and a product.
        if paired:
            patches = _paired_patches(images, geometry)
        else:
            patches = _patches(images, geometry.window, geometry.stride, geometry.padding)
        transposed = lax.optimization_barrier(patches.reshape(-1, patches.shape[-1]).T)
        return jnp.matmul(transposed, gradients.reshape(transposed.shape[1], -1))

    found = chunks.summed(of_chunk, x, gradient, _images_per_chunk(x, shape, geometry))
    return _of_paired_kernel(found, shape) if paired else found.reshape(shape)


# Of images with few channels a patch is gathered a few numbers at a time, which takes longer than its product. Two
# patches side by side share columns: one of w + 1 columns for both, and a kernel with two columns of outputs for it,
# have more multiplications, but longer and fewer pieces to gather (4 and 2.5 times as fast with 3 channels to 16).


def _is_paired(kernel: tuple[int, ...], geometry: Geometry) -> bool:
    """Return whether two neighbouring outputs are computed from one patch, for a kernel of shape `(h,w,I,O)`."""
    even = (geometry.image[1] + 2 * geometry.padding) % 2 == 0
    return geometry.window[1] == 3 and geometry.stride == 1 and even and kernel[2] < WINOGRAD_CHANNELS


def _paired_product(x: Array, kernel: Array, geometry: Geometry) -> Array:
    patches = _paired_patches(x, geometry)
    # The second output is that of the kernel one column further on.
    first, second = (jnp.pad(kernel, ((0, 0), sides, (0, 0), (0, 0))) for sides in ((0, 1), (1, 0)))
    both = jnp.stack([first, second], axis=3).reshape(patches.shape[-1], -1)
    out = lax.dot_general(patches, both, (((3,), (0,)), ((), ())))
    return out.reshape(*out.shape[:2], -1, kernel.shape[-1])


def _paired_patches(x: Array, geometry: Geometry) -> Array:
    """Gather the common neighbourhood of every two outputs side by side: `(B,H',W'/2,h*4*I)`."""
    padding, height = geometry.padding, geometry.window[0]
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    pairs = x.reshape(*x.shape[:2], x.shape[2] // 2, -1)
    rows, columns = x.shape[1] - height + 1, pairs.shape[2] - 1
    # Four columns are two pairs of them.
    parts = [pairs[:, i : i + rows, j : j + columns] for i in range(height) for j in range(2)]
    return jnp.concatenate(parts, axis=-1)


def _of_paired_kernel(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum the gradient of the kernel that `_paired_product` makes to that of the kernel `(h,w,I,O)`."""
    height, width, channels, outputs = shape
    gradient = gradient.reshape(height, width + 1, channels, 2, outputs)
    return gradient[:, :width, :, 0] + gradient[:, 1:, :, 1]


def _images_per_chunk(x: Array, kernel: tuple[int, ...], geometry: Geometry) -> int:
    """Choose the chunk for images or gradients `x` and a kernel of shape `(h,w,I,O)`."""
    windows = zip(geometry.image, geometry.window, strict=True)
    sides = [(side + 2 * geometry.padding - window) // geometry.stride + 1 for side, window in windows]
    # Per output position: one patch and its products with all kernels.
    values = math.prod(sides) * (math.prod(kernel[:3]) + kernel[3])
    # Thin patches were faster in smaller chunks, by up to a third.
    share = 4 if _is_paired(kernel, geometry) else 1
    return chunks.images_per_chunk(len(x), share * values * x.dtype.itemsize)


# Forms by name. `lax` is XLA's own convolution, a grouped one under a vmap over kernels; `patches` is one matrix
# product, a batched one under that vmap; `im2col` is the same in chunks that fit into a CPU's cache; `winograd`, also
# for a CPU, requires 3x3, stride 1, padding 1.
FORMS: dict[str, Form] = {
    "lax": _transposed(_lax),
    "patches": _transposed(_product),
    "im2col": Form(_im2col, _im2col_image_gradient, _im2col_kernel_gradient),
    "winograd": Form(
        lambda x, kernel, _: winograd.conv(x, kernel),
        lambda kernel, gradient, _: winograd.image_gradient(kernel, gradient),
        lambda x, gradient, _: winograd.kernel_gradient(x, gradient),
    ),
}
