"""Precisions: what is rounded is what is stored, its gradient is that of the identity, and its size is as counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdd_jax import config
from ssdd_jax.storage import quantize

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


def drawn(seed, shape, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 99),
    shape=SHAPES,
    precision=st.sampled_from(quantize.NAMES),
    axis=st.integers(-4, 3),
    scale=st.sampled_from((1e-3, 1.0, 300.0)),
)
def test_rounded_is_what_is_stored(seed, shape, precision, axis, scale):
    axis = axis % len(shape)
    array = drawn(seed, shape, scale)
    packed = quantize.pack(array, precision, axis=axis)
    stored = np.asarray(quantize.unpack(packed, precision, shape, axis=axis))
    np.testing.assert_array_equal(stored, np.asarray(quantize.rounded(array, precision, axis=axis)))
    bits = quantize.BITS[precision] * packed.values.size
    scales = 0 if packed.scale is None else packed.scale.nbytes
    assert quantize.size(shape, precision, axis=axis) == -(-bits // 8) + scales


@pytest.mark.parametrize("precision", quantize.NAMES)
def test_the_error_is_half_a_step(precision):
    array = drawn(0, (40, 30))
    error = np.abs(np.asarray(quantize.rounded(array, precision, axis=1)) - array)
    bits = quantize.BITS[precision]
    if precision.startswith("int"):
        # The scale, of 11 bits, may cut off a little of the largest value.
        step = np.abs(array).max(0) / (2 ** (bits - 1) - 1)
        assert (
            error <= 0.5 * step[None] * 1.01 + np.abs(array).max() * 2**-11
        ).all() and error.max() > 0.3 * step.min()
    else:
        mantissa = {"float32": 24, "float16": 11, "bfloat16": 8}[precision]
        assert (error <= np.abs(array) * 2.0**-mantissa + 2.0**-25).all()


@pytest.mark.parametrize("precision", quantize.NAMES)
def test_float64_stays_float64(precision, x64):
    """Not rounded at all where arrays are stored in full, so that methods can be compared with others in float64."""
    array = np.random.default_rng(0).normal(size=(4, 3))
    rounded = quantize.rounded(array, precision)
    assert rounded.dtype == np.float64
    stored = np.asarray(quantize.unpack(quantize.pack(array, precision), precision, array.shape))
    np.testing.assert_array_equal(np.asarray(rounded), array if precision == "float32" else stored)


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int3"])
def test_the_gradient_is_that_of_the_identity(precision):
    array, weights = drawn(1, (4, 3)), drawn(2, (4, 3))
    gradient = jax.grad(lambda x: jnp.sum(weights * quantize.rounded(x, precision)))(array)
    np.testing.assert_array_equal(np.asarray(gradient), weights)


def test_scales_are_those_of_the_axis():
    array = np.array([[1.0, 100.0], [-0.5, 25.0]], np.float32)
    assert quantize.pack(array, "int8", axis=1).scale.shape == (2,)
    by_column = np.asarray(quantize.rounded(array, "int8", axis=1))
    np.testing.assert_allclose(by_column, array, rtol=0.02)
    # With a scale per row the small numbers are lost.
    assert np.asarray(quantize.rounded(array, "int8", axis=0))[1, 0] == pytest.approx(-0.59, abs=0.01)


def test_zeros_stay_zeros():
    assert not np.asarray(quantize.rounded(np.zeros((3, 2)), "int4")).any()


@pytest.mark.parametrize(
    ("packed", "precision", "shape"),
    [
        (quantize.Packed(np.zeros(4, np.int8), np.ones(4, np.float16)), "int8", (5,)),
        (quantize.Packed(np.zeros(4, np.float32), None), "int8", (4,)),
        (quantize.Packed(np.zeros(4, np.int8), None), "int8", (4,)),
        (quantize.Packed(np.zeros(4, np.int8), np.ones(3, np.float16)), "int8", (4,)),
        (quantize.Packed(np.zeros(16, np.int8), np.ones(4, np.float16)), "int4", (4, 4)),
    ],
)
def test_another_form_is_refused(packed, precision, shape):
    with pytest.raises(ValueError, match=r"is stored as|needs \d+ scales"):
        quantize.unpack(packed, precision, shape)


@pytest.mark.parametrize("precision", ["int8", "int5", "int3"])
@pytest.mark.parametrize("count", [100, 3000])
def test_expected_bits_are_those_of_normal_numbers(precision, count):
    """Beside the entropy of rounded ones."""
    whole = quantize.pack(drawn(3, (count, 12)), precision, axis=1).values
    share = np.unique(whole, return_counts=True)[1] / whole.size
    entropy = -(share * np.log2(share)).sum()
    assert entropy - 0.1 < quantize.expected_bits(precision, count) < min(entropy + 0.5, quantize.BITS[precision])


def test_floats_are_expected_to_keep_their_bits():
    assert quantize.expected_bits("float16", 100) == 16 and quantize.expected_bits("int2", 1) <= 2


def test_the_config_knows_all_names():
    assert config.PRECISIONS == quantize.NAMES


@pytest.mark.parametrize("function", [quantize.rounded, quantize.pack])
def test_an_unknown_precision_is_refused(function):
    with pytest.raises(ValueError, match="unknown precision 'int9': known are float32"):
        function(np.zeros(3), "int9")
