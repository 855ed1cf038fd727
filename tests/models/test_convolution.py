"""The one convolution against `lax.conv_general_dilated`: values, first and second derivatives, vmap, scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ssdd_jax.models import chunks, conv, convolution, winograd


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

    return jax.jit(lambda *a: (apply(*a), first(*a), jax.grad(squares, argnums=(0, 1))(*a)))


FORMS = [
    ("im2col", 1, 1, 3),
    ("im2col", 1, 0, 3),
    ("im2col", 1, 2, 5),
    ("im2col", 1, 0, 1),
    ("im2col", 2, 1, 3),
    ("winograd", 1, 1, 3),
    ("lax", 2, 1, 3),
    ("patches", 2, 1, 3),
]


def two_per_chunk(monkeypatch):
    """Chunks that hold Winograd's sums of two of the five images of 7x8 (8x8 with a row of zeros), float64."""
    jax.clear_caches()  # of convolutions traced with larger chunks
    monkeypatch.setattr(chunks, "BYTES", 2 * 4 * 8 * 8 * (2 + 3) * 8)


@pytest.mark.medium
@pytest.mark.parametrize(("form", "stride", "padding", "size"), FORMS)
def test_equals_lax(x64, monkeypatch, form, stride, padding, size):
    two_per_chunk(monkeypatch)
    x, kernel = arrays(size)
    found = derivatives(lambda x, kernel: convolution.conv(x, kernel, stride=stride, padding=padding, form=form))(
        x, kernel
    )
    expected = derivatives(lambda x, kernel: reference(x, kernel, stride, padding))(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, expected)


@pytest.mark.parametrize(
    ("width", "channels", "window", "padding"),
    [(8, 1, 3, 1), (8, 3, 3, 0), (8, 3, 1, 1), (6, 2, 5, 2), (8, 8, 3, 1), (7, 3, 3, 1), (9, 3, 3, 2)],
)
def test_two_outputs_from_one_patch(x64, monkeypatch, width, channels, window, padding):
    """And one each where the width is odd or there are many channels; in chunks of two images and in one."""
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(5, 7, width, channels)))
    kernel = jnp.asarray(generator.normal(size=(window, 3, channels, 4)))
    geometry = convolution.Geometry(x.shape[1:3], kernel.shape[:2], 1, padding)
    assert convolution._is_paired(kernel.shape, geometry) == (width % 2 == 0 and channels < 8)
    expected = derivatives(lambda x, kernel: reference(x, kernel, 1, padding))(x, kernel)
    one = convolution._images_per_chunk(x[:1], kernel.shape, geometry)
    for size in (2, 5):
        jax.clear_caches()
        monkeypatch.setattr(convolution, "_images_per_chunk", lambda *a, size=size: one * size)
        found = derivatives(lambda x, kernel: convolution.conv(x, kernel, padding=padding, form="im2col"))(x, kernel)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, expected)
    jax.clear_caches()


def test_small_chunks_are_used(x64, monkeypatch):
    """Otherwise the test above would compare one chunk with itself: two and two images in a loop, and one more."""
    x, kernel = arrays()

    def graph():
        return str(jax.make_jaxpr(lambda *a: winograd.conv(*a))(x, kernel))

    assert "scan[" not in graph()
    two_per_chunk(monkeypatch)
    assert chunks.images_per_chunk(5, 4 * 8 * 8 * (2 + 3) * 8) == 2
    assert "scan[" in graph()


@pytest.mark.medium
def test_winograd_is_as_exact_as_another_order_of_the_sum():
    """In float32, against float64: no worse than twice the error of the plain products."""
    generator = np.random.default_rng(1)
    x, kernel = generator.normal(size=(4, 8, 8, 64)), generator.normal(size=(3, 3, 64, 32)) / 24

    def errors(form, exact):
        found = convolution.conv(jnp.float32(x), jnp.float32(kernel), form=form)
        return np.abs(np.asarray(found, np.float64) - exact).max()

    with jax.enable_x64(True):
        exact = np.asarray(reference(jnp.asarray(x), jnp.asarray(kernel), 1, 1))
    assert errors("winograd", exact) < 2 * errors("im2col", exact) + 1e-7


@pytest.mark.parametrize(
    ("expected", "channels", "dtype", "stride"),
    [
        ("winograd", (8, 8), "float32", 1),
        ("im2col", (3, 64), "float32", 1),
        ("im2col", (64, 3), "float32", 1),
        ("im2col", (64, 64), "float32", 2),
        ("im2col", (64, 64), "bfloat16", 1),
    ],
)
def test_which_form_on_a_cpu(expected, channels, dtype, stride):
    x, kernel = jnp.ones((2, 8, 8, channels[0]), dtype), jnp.ones((3, 3, *channels), dtype)
    assert convolution.form_on("cpu", x, kernel, stride) == expected


def lowered(platform, form="auto"):
    """The program of value and both gradients of a convolution with 16 channels, as text."""

    def value(x, kernel):
        return jnp.sum(jnp.square(conv(x, kernel, form=form)))

    gradient = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
    arrays = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
    return gradient.trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_platform_of_the_program_decides(platform):
    """Traced on a CPU: XLA's convolution for an accelerator, Winograd's products here."""
    assert lowered(platform).count("stablehlo.convolution") == 3 and "dot_general" not in lowered(platform)
    assert "stablehlo.convolution" not in lowered("cpu") and "dot_general" in lowered("cpu")


def test_a_form_can_be_asked_for():
    assert "stablehlo.convolution" in lowered("cpu", "lax")
    assert "dot_general" in lowered("cuda", "patches") and "stablehlo.convolution" not in lowered("cuda", "patches")
    with pytest.raises(ValueError, match="unknown form 'fast' of the convolution: it is auto or one of lax, patches"):
        lowered("cpu", "fast")


def test_winograd_is_for_its_own_size():
    with pytest.raises(ValueError, match="winograd is for 3x3, stride 1, padding 1, not \\(3, 3\\), 2, 1"):
        convolution.conv(jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16)), stride=2, form="winograd")


@pytest.mark.parametrize("form", ["im2col", "winograd"])
def test_vmap_over_kernels(x64, monkeypatch, form):
    two_per_chunk(monkeypatch)
    x, kernel = arrays()
    kernels = jnp.stack([kernel, -2 * kernel, kernel**2])

    def gradients(apply):
        return jax.jit(jax.vmap(jax.grad(lambda kernel: jnp.sum(jnp.sin(apply(x, kernel))))))(kernels)

    expected = gradients(lambda x, kernel: reference(x, kernel, 1, 1))
    found = gradients(lambda x, kernel: convolution.conv(x, kernel, form=form))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


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
