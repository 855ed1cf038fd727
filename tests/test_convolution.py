"""The one convolution against `lax.conv_general_dilated`: values, first and second derivatives, vmap, scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit
from jax import lax

from ssdd_jax.models import conv, convolution


def reference(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def arrays(size=3, count=5, side=7, channels=(2, 3)):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(count, side, side + 1, channels[0]))
    return jnp.asarray(x), jnp.asarray(generator.normal(size=(size, size, *channels)))


def derivatives(apply):
    """Value, gradients and the gradients of the gradients' squares, in one compiled function."""

    def value(x, kernel):
        return jnp.sum(jnp.sin(apply(x, kernel)))

    def first(x, kernel):
        return jax.grad(value, argnums=(0, 1))(x, kernel)

    def squares(x, kernel):
        return sum(jnp.sum(jnp.square(gradient)) for gradient in first(x, kernel))

    return jit(lambda *a: (apply(*a), first(*a), jax.grad(squares, argnums=(0, 1))(*a)))


# Two of the five images of 7x8 and two channels fit into a chunk of these bytes (float64), so that one is left over.
SMALL = 2 * 7 * 8 * 9 * 2 * 8


def chunked(monkeypatch, chunk_bytes):
    """Chunks of so many bytes, and no batch too small for them."""
    monkeypatch.setattr(convolution, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(convolution, "CHUNKS_AT_LEAST", 0)


@pytest.mark.parametrize(
    ("stride", "padding", "size", "chunk_bytes"),
    [(1, 1, 3, SMALL), (1, 0, 3, SMALL), (1, 2, 5, SMALL), (1, 1, 3, 2**22), (1, 1, 1, SMALL), (2, 1, 3, SMALL)],
)
def test_equals_lax(x64, monkeypatch, stride, padding, size, chunk_bytes):
    chunked(monkeypatch, chunk_bytes)
    x, kernel = arrays(size)
    found = derivatives(lambda x, kernel: conv(x, kernel, stride=stride, padding=padding))(x, kernel)
    expected = derivatives(lambda x, kernel: reference(x, kernel, stride, padding))(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, expected)


def test_small_chunks_are_used(x64, monkeypatch):
    """Otherwise the test above would compare one chunk with itself: two and two images in a loop, and one more."""

    def graph():
        return str(jax.make_jaxpr(lambda *a: conv(*a))(*arrays()))

    chunked(monkeypatch, SMALL)
    assert convolution._images_per_chunk(*arrays()) == 2
    assert "scan[" in graph()
    chunked(monkeypatch, 2**22)
    assert "scan[" not in graph()


def test_vmap_over_kernels(x64, monkeypatch):
    chunked(monkeypatch, SMALL)
    x, kernel = arrays()
    kernels = jnp.stack([kernel, -2 * kernel, kernel**2])

    def gradients(apply):
        return jit(jax.vmap(jax.grad(lambda kernel: jnp.sum(jnp.sin(apply(x, kernel))))))(kernels)

    expected = gradients(lambda x, kernel: reference(x, kernel, 1, 1))
    np.testing.assert_allclose(gradients(conv), expected, rtol=1e-9, atol=1e-9)


def test_inside_a_scan(x64):
    x, kernel = arrays(channels=(2, 2))

    def repeated(apply):
        return lax.scan(lambda x, _: (jnp.tanh(apply(x, kernel)), None), x, length=3)[0]

    np.testing.assert_allclose(
        repeated(conv), repeated(lambda x, kernel: reference(x, kernel, 1, 1)), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    ("x", "kernel"), [((1, 4, 4, 3), (3, 3, 2, 5)), ((4, 4, 3), (3, 3, 3, 5)), ((1, 4, 4, 3), (3, 3, 3))]
)
def test_wrong_shapes_are_refused(x, kernel):
    with pytest.raises(ValueError, match=r"conv needs x \(B,H,W,I\)"):
        conv(jnp.ones(x), jnp.ones(kernel))
