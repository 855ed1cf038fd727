"""The arrays of a packed set as one block of bytes, entropy-coded where that is shorter.

safetensors describes an array in 60 to 100 bytes, and the rounded numbers of a set are far from uniformly distributed:
a deflate stream (RFC 1951) of whole numbers, a byte each, is shorter than their bits one after the other. A block is
the length of its table in two bytes, the table, and the arrays in the table's order. The table is a deflate stream of a
line for each array: name, precision, coding, shape, and for coded images the bytes of the picture. The coding is a sum:
1 if the values are a deflate stream, 2 if their scales are. Numbers are little-endian.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ssdd_jax.storage import mosaic, quantize

# Values and scales are coded if that saves more bytes than their mark may take in the table.
LEAST_SAVED = 4
# An array of a block has fewer numbers.
MOST = 2**40


class Part(NamedTuple):
    """A stored array.

    Attributes:
        precision: A name in `quantize.NAMES`, or a code in `mosaic.CODES`.
        shape: Shape of the array.
        values: See `quantize.Packed`; of coded images the file of the picture, uint8 `(bytes,)`.
        scale: Scales of whole numbers, float16; None for all others.
    """

    precision: str
    shape: tuple[int, ...]
    values: np.ndarray
    scale: np.ndarray | None = None


def write(parts: Mapping[str, Part]) -> bytes:
    """Write arrays as a block.

    Args:
        parts: Arrays by name; a name has no white space.

    Returns:
        The block: on every platform `read` returns the same arrays from it.
    """
    coded = {name: code(part) for name, part in parts.items()}
    table = _table(
        [_line(name, part.precision, coded[name][1], part.shape, part.values.size) for name, part in parts.items()]
    )
    return len(table).to_bytes(2, "little") + table + b"".join(content for content, _ in coded.values())


def code(part: Part) -> tuple[bytes, int]:
    """Return an array's values and scales in their shortest form, and its coding."""
    values, coded = _shorter(_raw(part), _plain(part))
    scales = b"" if part.scale is None else _little(part.scale).tobytes()
    scales, scales_coded = _shorter(scales, scales)
    return values + scales, coded + 2 * scales_coded


def read(content: bytes, scales: Mapping[str, int]) -> dict[str, Part]:
    """Read what `write` returned.

    Args:
        content: The block.
        scales: Axis of the scales by name of the array; 0 where it is not named.

    Returns:
        Arrays by name.

    Raises:
        ValueError: If the content is not a block.
    """
    length = int.from_bytes(content[:2], "little")
    table, _ = _inflated(content[2 : 2 + length])
    rest, parts = content[2 + length :], {}
    for line in table.decode().splitlines():
        name, precision, coding, *numbers = line.split(" ")
        shape, coded = tuple(int(number) for number in numbers), int(coding)
        _check(all(number >= 0 for number in shape) and math.prod(shape) < MOST)
        if precision in mosaic.CODES:
            values, rest = _array(rest, np.uint8, shape[-1:], coded=bool(coded & 1))
            parts[name] = Part(precision, shape[:-1], values)
            continue
        values, rest = _values(rest, precision, shape, coded=bool(coded & 1))
        scale = None
        if precision.startswith("int"):
            count = shape[scales.get(name, 0)]
            scale, rest = _array(rest, np.float16, (count,), coded=bool(coded & 2))
        parts[name] = Part(precision, shape, values, scale)
    _check(not rest)
    return parts


def size(shapes: Mapping[str, tuple[str, Sequence[int]]], payload: int) -> int:
    """Bound the bytes of a block from above.

    Args:
        shapes: Precision and shape by name.
        payload: Bytes of all arrays, by the bits of their precisions.
    """
    lines = [_line(name, precision, 0, shape, 10**6) for name, (precision, shape) in shapes.items()]
    return 2 + len(_table(lines)) + len(lines) + payload


def _line(name: str, precision: str, coding: int, shape: Iterable[int], length: int) -> str:
    numbers = [coding, *shape, *([length] if precision in mosaic.CODES else [])]
    return " ".join([name, precision, *map(str, numbers)])


def _table(lines: Sequence[str]) -> bytes:
    return _deflated("\n".join(lines).encode(), zlib.Z_DEFAULT_STRATEGY)


def _raw(part: Part) -> bytes:
    """Bytes of an array's values by the bits of its precision."""
    bits = quantize.BITS.get(part.precision, 8)
    return _plain(part) if bits >= 8 else packed_bits(part.values, bits).tobytes()


def _plain(part: Part) -> bytes:
    """Bytes of an array's values, one for each whole number."""
    return _little(part.values).tobytes()


def _shorter(raw: bytes, plain: bytes) -> tuple[bytes, bool]:
    """Return the shortest of a raw form and of deflate streams of another, and whether it is one of these."""
    strategies = (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)
    coded = min((_deflated(plain, strategy) for strategy in strategies), key=len)
    return (coded, True) if len(coded) + LEAST_SAVED <= len(raw) else (raw, False)


def _deflated(content: bytes, strategy: int) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return stream.compress(content) + stream.flush()


def _inflated(content: bytes, count: int = 2**16) -> tuple[bytes, bytes]:
    """Read a deflate stream of at most `count` bytes; returns them, and what follows the stream."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = stream.decompress(content, count + 1)
    except zlib.error as error:
        raise ValueError(f"the block is damaged: {error}") from None
    _check(stream.eof)
    return plain, stream.unused_data


def _values(content: bytes, precision: str, shape: tuple[int, ...], *, coded: bool) -> tuple[np.ndarray, bytes]:
    if precision not in quantize.BITS:
        raise ValueError(f"unknown precision {precision!r}")
    bits = quantize.BITS[precision]
    if coded or bits >= 8:
        return _array(content, quantize.TYPES[precision], shape, coded=coded)
    count = -(-math.prod(shape) * bits // 8)
    _check(len(content) >= count)
    return unpacked_bits(np.frombuffer(content[:count], np.uint8), bits, shape), content[count:]


def _array(content: bytes, kind: type, shape: tuple[int, ...], *, coded: bool) -> tuple[np.ndarray, bytes]:
    """Read an array of a type at the start of some bytes; returns it, and what follows."""
    little = np.dtype(kind).newbyteorder("<")
    count = math.prod(shape) * little.itemsize
    plain, rest = _inflated(content, count) if coded else (content[:count], content[count:])
    _check(len(plain) == count)
    return np.frombuffer(plain, little).astype(kind).reshape(shape), rest


def _little(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("<"))


def _check(condition: bool) -> None:
    if not condition:
        raise ValueError("the block does not hold the arrays of its table")


def packed_bits(whole: np.ndarray, bits: int) -> np.ndarray:
    """Write whole numbers bit after bit, uint8 `(bytes,)`: each as its distance from the most negative one."""
    shifted = (whole.astype(np.int16).reshape(-1, 1) + 2 ** (bits - 1)).astype(np.uint8)
    return np.packbits(np.unpackbits(shifted, axis=1)[:, 8 - bits :].reshape(-1))


def unpacked_bits(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """Invert `packed_bits`: int8 `(*shape)`.

    Raises:
        ValueError: If there are too few bytes.
    """
    count = math.prod(shape)
    digits = np.unpackbits(packed)[: count * bits].reshape(count, bits)
    padded = np.concatenate([np.zeros((count, 8 - bits), np.uint8), digits], axis=1)
    return (np.packbits(padded, axis=1).reshape(shape).astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)
