"""The arrays of a distilled set in the form in which they are stored: precisions by array, coded images, bytes.

Image and feature parts have a precision each. What is small beside them (means, approximation networks) keeps at least
as many bits as it needs not to matter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.errors import UserError
from ssdd_jax.storage import container, mosaic, quantize
from ssdd_jax.storage.container import Part

Array = jax.Array

# The axis whose indices have a scale each, if an array is stored as whole numbers: a basis, a column of coefficients or
# of targets, or a channel.
AXES = {
    "image_bases": 0,
    "image_coefficients": -1,
    "image_mean": -1,
    "feature_bases": 0,
    "feature_coefficients": -1,
    "feature_mean": 0,
    "images": -1,
    "targets": -1,
}
_IMAGES = ("image_bases", "image_coefficients", "images")
_TARGETS = ("feature_bases", "feature_coefficients", "targets")
# The data set's constants, with their precisions beside packed arrays.
CONSTANTS = {"image_mean": "float32", "image_std": "float32", "target_mean": "float16", "target_scale": "float32"}
# Prefix of their names in a block; an array of a set may have the same name.
CONSTANT = "data."
# The only tensor of a packed set's file.
BLOCK = "set"


def precision_of(name: str, *, images: str, targets: str) -> str:
    """Return the precision of an array.

    Args:
        name: Name of the array in a set, such as `image_bases` or `networks.out_bias`.
        images: Precision of the image part, a name in `quantize.NAMES` or `mosaic.CODES`.
        targets: Precision of the feature part, a name in `quantize.NAMES`.
    """
    if name in _IMAGES:
        return images
    if name in _TARGETS:
        return targets
    part = images if name == "image_mean" else targets
    if part == "float32":
        return part
    return "int8" if name == "image_mean" and part.startswith("int") else "float16"


def rounded(name: str, array: Array, *, images: str, targets: str) -> Array:
    """Round an array of a set as it will be stored, with the gradient of the identity; see `quantize.rounded`."""
    return quantize.rounded(array, precision_of(name, images=images, targets=targets), axis=AXES.get(name, 0))


def pack(
    arrays: Mapping[str, Array], preprocessing: Preprocessing, *, images: str, targets: str, quality: int = 100
) -> dict[str, Part]:
    """Pack the arrays of a set.

    Args:
        arrays: Arrays by name.
        preprocessing: The data set's constants.
        images: Precision of the image part, or a code in `mosaic.CODES` for images in 0..255.
        targets: Precision of the feature part.
        quality: Of coded images, 1 to 100.

    Returns:
        The stored arrays by name.
    """
    stored = {}
    for name, array in arrays.items():
        precision, shape = precision_of(name, images=images, targets=targets), tuple(array.shape)
        if precision in mosaic.CODES:
            pixels = np.asarray(jnp.round(255 * preprocessing.pixels(array))).astype(np.uint8)
            picture = mosaic.encode(pixels, precision, quality)
            stored[name] = Part(precision, shape, np.frombuffer(picture, np.uint8))
            continue
        stored[name] = Part(precision, shape, *quantize.pack(array, precision, axis=AXES.get(name, 0)))
    return stored


def unpack(stored: Mapping[str, Part], preprocessing: Preprocessing) -> dict[str, Array]:
    """Invert `pack` up to its rounding.

    Args:
        stored: The stored arrays by name.
        preprocessing: The data set's constants.

    Returns:
        Arrays by name, float32.

    Raises:
        UserError: If coded images are damaged.
        ValueError: If the stored values are not those of such arrays.
    """
    arrays = {}
    for name, part in stored.items():
        if part.precision in mosaic.CODES:
            pixels = mosaic.decode(part.values.tobytes(), part.shape)  # type: ignore[arg-type]
            arrays[name] = preprocessing.images(jnp.asarray(pixels))
            continue
        packed = quantize.Packed(part.values, part.scale)
        arrays[name] = quantize.unpack(packed, part.precision, part.shape, axis=AXES.get(name, 0))
    return arrays


def write(stored: Mapping[str, Part], preprocessing: Preprocessing) -> dict[str, np.ndarray]:
    """Return the tensors of the file of a packed set: one block of bytes, with the data set's constants.

    Args:
        stored: What `pack` returned.
        preprocessing: The data set's constants. The mean of the features is written in float16 if it is one.
    """
    constants: dict[str, np.ndarray] = {
        name: np.asarray(value, np.float32) for name, value in preprocessing._asdict().items()
    }
    with np.errstate(over="ignore"):
        half = constants["target_mean"].astype(np.float16)
    if np.array_equal(half.astype(np.float32), constants["target_mean"]):
        constants["target_mean"] = half
    parts = {f"{CONSTANT}{name}": Part(str(value.dtype), value.shape, value) for name, value in constants.items()}
    return {BLOCK: np.frombuffer(container.write({**parts, **stored}), np.uint8)}


def read(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Part], Preprocessing]:
    """Invert `write`.

    Raises:
        ValueError: If the tensors are not those of a packed set.
        KeyError: If a constant is missing.
    """
    parts = container.read(tensors[BLOCK].tobytes(), AXES)
    constants = {name: jnp.asarray(parts.pop(f"{CONSTANT}{name}").values.astype(np.float32)) for name in CONSTANTS}
    return parts, Preprocessing(**constants)


def read_separate(stored: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> dict[str, Part]:
    """Read the arrays of a set of schema 2, in which each was a tensor: whole numbers of fewer than 8 bits bit by bit.

    Args:
        stored: The tensors by name, scales as `NAME.scale`.
        facts: Precision and shape by name.

    Raises:
        ValueError: If a tensor is too short.
        KeyError: If one is missing.
    """
    parts = {}
    for name, fact in facts.items():
        precision, shape, values = fact["precision"], tuple(int(size) for size in fact["shape"]), stored[name]
        if precision.startswith("int") and precision != "int8":
            values = container.unpacked_bits(values, quantize.BITS[precision], shape)
        parts[name] = Part(precision, shape, values, stored.get(f"{name}.scale"))
    return parts


def size(
    shapes: Mapping[str, Sequence[int]],
    *,
    images: str,
    targets: str,
    channels: int,
    dim: int,
    coded: float = 0.0,
    expected: bool = False,
) -> int:
    """Bound the bytes of the file of a set from above, or say about how many they will be.

    Args:
        shapes: Shapes of its arrays by name.
        images: Precision of the image part, or a code in `mosaic.CODES`.
        targets: Precision of the feature part.
        channels: Number of channels of an image.
        dim: Length of a target.
        coded: Bytes of each of the images that are coded; until they are known (0), these count as int8.
        expected: Whether numbers of the feature part count with the bits that entropy coding is expected to leave of
            them, instead of all their bits.
    """
    picture = images
    images = "int8" if images in mosaic.CODES else images
    stored, payload = {}, 0
    for name, shape in shapes.items():
        precision, axis, shape = precision_of(name, images=images, targets=targets), AXES.get(name, 0), tuple(shape)
        if coded and name == "images":
            stored[name], payload = (picture, shape), payload + math.ceil(coded * shape[0])
            continue
        stored[name], size = (precision, shape), quantize.size(shape, precision, axis=axis)
        if expected and name in _TARGETS:
            count = math.prod(shape)
            saved = quantize.BITS[precision] - quantize.expected_bits(precision, count // max(shape[axis], 1))
            size -= math.floor(saved * count / 8)
        payload += size
    constants = {"image_mean": (channels,), "image_std": (channels,), "target_mean": (dim,), "target_scale": ()}
    for name, shape in constants.items():
        stored[f"{CONSTANT}{name}"] = (CONSTANTS[name], shape)
        payload += quantize.size(shape, CONSTANTS[name])
    return _file_size(container.size(stored, payload))


def _file_size(block: int) -> int:
    """Return the bytes of a safetensors file that holds a block of so many bytes."""
    entry = {BLOCK: {"dtype": "U8", "shape": [block], "data_offsets": [0, block]}}
    text = len(json.dumps(entry, separators=(",", ":")))
    # The header's length takes 8 bytes, and spaces fill it up to a multiple of 8.
    return 8 + -(-text // 8) * 8 + block


def largest_quality(bytes_of: Callable[[int], int], limit: int, *, most: int = 100) -> int:
    """Find the highest quality of coded images at which a set fits.

    Args:
        bytes_of: Maps a quality, 1 to 100, to the bytes of the set.
        limit: The most bytes.
        most: The highest quality to try.

    Returns:
        The quality.

    Raises:
        UserError: If not even the lowest fits.
    """
    low, high = 0, most
    while low < high:
        middle = -(-(low + high) // 2)
        low, high = (middle, high) if bytes_of(middle) <= limit else (low, middle - 1)
    if not low:
        raise UserError(
            f"not even with the lowest quality do the coded images fit into {limit:,} bytes: raise this budget"
        )
    return low
