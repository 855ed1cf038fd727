"""The one convolution that every network here uses, and the one of single channels.

XLA runs `lax.conv_general_dilated` on a CPU through a slow path as soon as it stands in a `lax.scan` or under a
`vmap` over kernels, and on a GPU a `vmap` over kernels turns it into a grouped convolution. Written as one matrix
product over patches ("im2col") it stays a (batched) matrix product everywhere. On a CPU the patches of a whole
batch do not fit into the cache, so they are made, used and dropped a few images at a time, in the backward pass
too: that is what the custom derivative is for.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

# Patches made at a time on a CPU: about the second-level cache of two cores; 1 to 32 MiB are within 10 % of it.
CHUNK_BYTES = 4 * 2**20
# With fewer chunks than this, they gain nothing and only take longer to compile.
CHUNKS_AT_LEAST = 8


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
    size = kernel.shape[0]
    # A 1x1 kernel needs no patches but the images themselves.
    suited = stride == 1 and size == kernel.shape[1] and padding < size and size > 1
    if (
        suited
        and jax.default_backend() == "cpu"
        and x.shape[0] * _patch_bytes(x, kernel) >= CHUNKS_AT_LEAST * CHUNK_BYTES
    ):
        return _chunked(x, kernel, padding)
    return _matmul(_patches(x, kernel.shape[:2], stride, padding), kernel)


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


def _matmul(patches: Array, kernel: Array) -> Array:
    return lax.dot_general(patches, kernel.reshape(-1, kernel.shape[-1]), (((3,), (0,)), ((), ())))


def _patch_bytes(x: Array, kernel: Array) -> int:
    """Size of one image's patches."""
    return x.shape[1] * x.shape[2] * kernel.shape[0] * kernel.shape[1] * x.shape[3] * x.dtype.itemsize


def _images_per_chunk(x: Array, kernel: Array) -> int:
    most = max(1, min(x.shape[0], CHUNK_BYTES // _patch_bytes(x, kernel)))
    # A chunk left over would be joined to the others by copying them all.
    even = [size for size in range(most, most // 2, -1) if x.shape[0] % size == 0]
    return even[0] if even else most


def _split(x: Array, size: int) -> tuple[Array, Array]:
    """The whole chunks `(count,size,...)` of `x`, and what is left over."""
    count = x.shape[0] // size
    return x[: count * size].reshape(count, size, *x.shape[1:]), x[count * size :]


def _forward(x: Array, kernel: Array, padding: int) -> Array:
    def one(chunk: Array) -> Array:
        return _matmul(_patches(chunk, kernel.shape[:2], 1, padding), kernel)

    chunks, rest = _split(x, _images_per_chunk(x, kernel))
    if len(chunks) < 2:
        return one(x)
    out = lax.map(one, chunks)
    out = out.reshape(-1, *out.shape[2:])
    return jnp.concatenate([out, one(rest)]) if len(rest) else out


def _kernel_gradient(x: Array, kernel: Array, gradient: Array, padding: int) -> Array:
    def one(chunk: Array, gradient_chunk: Array) -> Array:
        patches = _patches(chunk, kernel.shape[:2], 1, padding)
        return lax.dot_general(patches, gradient_chunk, (((0, 1, 2), (0, 1, 2)), ((), ())))

    size = _images_per_chunk(x, kernel)
    chunks, rest = _split(x, size)
    gradient_chunks, gradient_rest = _split(gradient, size)
    if len(chunks) < 2:
        return one(x, gradient).reshape(kernel.shape)
    total, _ = lax.scan(
        lambda total, pair: (total + one(*pair), None),
        one(chunks[0], gradient_chunks[0]),
        (chunks[1:], gradient_chunks[1:]),
    )
    total = total + one(rest, gradient_rest) if len(rest) else total
    return total.reshape(kernel.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _chunked(x: Array, kernel: Array, padding: int) -> Array:
    return _forward(x, kernel, padding)


def _chunked_forward(x: Array, kernel: Array, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return _forward(x, kernel, padding), (x, kernel)


def _chunked_backward(padding: int, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    # The derivative in the images is the convolution with the kernel turned by 180 degrees, channels swapped.
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return (
        _chunked(gradient, turned, kernel.shape[0] - 1 - padding),
        _kernel_gradient(x, kernel, gradient, padding),
    )


_chunked.defvjp(_chunked_forward, _chunked_backward)
