"""Precisions of stored arrays: what is learned is rounded as it will be stored.

A set costs bytes, not numbers. Arrays are stored as float32, as floats of 16 bits, or as whole numbers of 2 to 8 bits
with one scale per basis or column. Rounding has the gradient of the identity (straight-through estimator; Bengio,
Léonard and Courville, arXiv:1308.3432), so that an optimisation sees the set as it will be read.
"""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

Array = jax.Array

# Bits of a stored number.
BITS = {"float32": 32, "bfloat16": 16, "float16": 16} | {f"int{bits}": bits for bits in range(8, 1, -1)}
NAMES = tuple(BITS)
# Types of the stored values.
TYPES = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16} | {
    name: np.int8 for name in NAMES if name.startswith("int")
}
_FLOATS = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}
# The smallest positive float16: the scale of a column of zeros.
_LEAST_SCALE = 2.0**-24


class Packed(NamedTuple):
    """An array as it is stored.

    Attributes:
        values: In the array's shape: float32, float16, bfloat16 as the uint16 of the same bits, whole numbers as int8.
        scale: Scales of whole numbers, float16, one per index of the axis; None for floats.
    """

    values: np.ndarray
    scale: np.ndarray | None


def rounded(array: Array, precision: str, *, axis: int = 0) -> Array:
    """Round an array to the values that `unpack(pack(array))` returns.

    Args:
        array: Any float array.
        precision: A name in `NAMES`; float32 leaves the array as it is, float64 too.
        axis: The axis whose indices have a scale each, for whole numbers.

    Returns:
        The rounded array, of the array's type, whose gradient in the array is that of the identity.

    Raises:
        ValueError: If the precision is unknown.
    """
    array, bits = jnp.asarray(array), _bits(precision)
    if bits == 32:
        return array
    fixed = lax.stop_gradient(array)
    single = fixed.astype(jnp.float32)
    value = single.astype(_FLOATS[precision]) if precision in _FLOATS else _values(*_codes(single, bits, axis), axis)
    # The difference is 0 exactly, so that the value is the stored one to the last bit.
    return lax.stop_gradient(value).astype(array.dtype) + (array - fixed)


def pack(array: Array, precision: str, *, axis: int = 0) -> Packed:
    """Convert an array to the form in which it is stored.

    Args:
        array: Any float array.
        precision: A name in `NAMES`.
        axis: The axis whose indices have a scale each, for whole numbers.

    Returns:
        The stored form.

    Raises:
        ValueError: If the precision is unknown.
    """
    array = jnp.asarray(array, jnp.float32)
    bits = _bits(precision)
    if bits == 32:
        return Packed(np.asarray(array), None)
    if precision in _FLOATS:
        values = np.asarray(array.astype(_FLOATS[precision]))
        return Packed(values.view(np.uint16) if precision == "bfloat16" else values, None)
    codes, scale = _codes(array, bits, axis)
    return Packed(np.asarray(codes).astype(np.int8), np.asarray(scale).astype(np.float16))


def unpack(packed: Packed, precision: str, shape: tuple[int, ...], *, axis: int = 0) -> Array:
    """Invert `pack` up to its rounding.

    Args:
        packed: The stored form.
        precision: The name that it was packed with.
        shape: Shape of the array.
        axis: The axis that it was packed with.

    Returns:
        The array `(*shape)`, float32.

    Raises:
        ValueError: If the precision is unknown, or the stored form is not that of such an array.
    """
    bits, values = _bits(precision), packed.values
    expected = np.dtype(TYPES[precision]), tuple(shape)
    if (values.dtype, values.shape) != expected:
        raise ValueError(f"an array {shape} in {precision} is stored as {expected}, not {(values.dtype, values.shape)}")
    if bits == 32 or precision == "float16":
        return jnp.asarray(values.astype(np.float32))
    if precision == "bfloat16":
        return jnp.asarray(values.view(ml_dtypes.bfloat16).astype(np.float32))
    if packed.scale is None or packed.scale.shape != (shape[axis],):
        raise ValueError(f"an array {shape} in {precision} needs {shape[axis]} scales")
    return _values(jnp.asarray(values, jnp.float32), jnp.asarray(packed.scale, jnp.float32), axis)


def size(shape: tuple[int, ...], precision: str, *, axis: int = 0) -> int:
    """Count the bytes of an array `(*shape)` with as many bits for each number as its precision has, and its scales.

    Raises:
        ValueError: If the precision is unknown.
    """
    bits = _bits(precision)
    scales = 0 if precision in _FLOATS or bits == 32 else 2 * shape[axis]
    return -(-math.prod(shape) * bits // 8) + scales


def expected_bits(precision: str, count: int) -> float:
    """Return the bits that entropy coding is expected to leave of a whole number.

    That is the entropy of normal numbers, of which the largest of `count` has set the scale, and 3 % for the code.

    Args:
        precision: A name in `NAMES`.
        count: Numbers that have a scale in common.
    """
    bits = _bits(precision)
    if not precision.startswith("int"):
        return bits
    # About the mean of the largest of so many, in deviations.
    largest = statistics.NormalDist().inv_cdf(1 - 0.28 / max(count, 1))
    deviation = (2 ** (bits - 1) - 1) / largest
    return min(bits, max(1.0, 1.03 * math.log2(math.sqrt(2 * math.pi * math.e) * deviation)))


def _bits(precision: str) -> int:
    if precision not in BITS:
        raise ValueError(f"unknown precision {precision!r}: known are {', '.join(NAMES)}")
    return BITS[precision]


def _codes(array: Array, bits: int, axis: int) -> tuple[Array, Array]:
    """Round to whole numbers between `-most` and `most`; the scale of an index is set by its largest value."""
    most = 2 ** (bits - 1) - 1
    others = tuple(k for k in range(array.ndim) if k != axis % array.ndim)
    largest = jnp.max(jnp.abs(array), axis=others) / most
    # The scale that is stored, so that codes fit it.
    scale = jnp.maximum(largest, _LEAST_SCALE).astype(jnp.float16).astype(jnp.float32)
    codes = jnp.clip(jnp.round(array / _along(scale, array.ndim, axis)), -most, most)
    return codes, scale


def _values(codes: Array, scale: Array, axis: int) -> Array:
    return codes * _along(scale, codes.ndim, axis)


def _along(scale: Array, ndim: int, axis: int) -> Array:
    return scale.reshape([-1 if k == axis % ndim else 1 for k in range(ndim)])
