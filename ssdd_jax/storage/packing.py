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
from ssdd_jax.storage import mosaic, quantize

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
# Type names of safetensors, for the size of a header.
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "U16", "int8": "I8"}
# The data set's constants, with their precisions beside packed arrays.
CONSTANTS = {"image_mean": "float32", "image_std": "float32", "target_mean": "float16", "target_scale": "float32"}


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
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Pack the arrays of a set.

    Args:
        arrays: Arrays by name.
        preprocessing: The data set's constants.
        images: Precision of the image part, or a code in `mosaic.CODES` for images in 0..255.
        targets: Precision of the feature part.
        quality: Of coded images, 1 to 100.

    Returns:
        The stored arrays by name, scales as `NAME.scale`, and what `unpack` needs to know of them, JSON values.
    """
    stored, facts = {}, {}
    for name, array in arrays.items():
        precision = precision_of(name, images=images, targets=targets)
        facts[name] = {"precision": precision, "shape": list(array.shape)}
        if precision in mosaic.CODES:
            pixels = np.asarray(jnp.round(255 * preprocessing.pixels(array))).astype(np.uint8)
            stored[name] = np.frombuffer(mosaic.encode(pixels, precision, quality), np.uint8)
            continue
        packed = quantize.pack(array, precision, axis=AXES.get(name, 0))
        stored[name] = packed.values
        if packed.scale is not None:
            stored[f"{name}.scale"] = packed.scale
    return stored, facts


def unpack(
    stored: Mapping[str, np.ndarray], facts: Mapping[str, Any], preprocessing: Preprocessing
) -> dict[str, Array]:
    """Invert `pack` up to its rounding.

    Args:
        stored: The stored arrays by name.
        facts: What `pack` returned beside them.
        preprocessing: The data set's constants.

    Returns:
        Arrays by name, float32.

    Raises:
        UserError: If coded images are damaged.
        ValueError: If the stored arrays are not those that the facts describe.
        KeyError: If one is missing.
    """
    arrays = {}
    for name, fact in facts.items():
        precision, shape = fact["precision"], tuple(int(size) for size in fact["shape"])
        if precision in mosaic.CODES:
            pixels = mosaic.decode(stored[name].tobytes(), shape)  # type: ignore[arg-type]
            arrays[name] = preprocessing.images(jnp.asarray(pixels))
            continue
        packed = quantize.Packed(stored[name], stored.get(f"{name}.scale"))
        arrays[name] = quantize.unpack(packed, precision, shape, axis=AXES.get(name, 0))
    return arrays


def size(
    shapes: Mapping[str, Sequence[int]], *, images: str, targets: str, channels: int, dim: int, coded: float = 0.0
) -> int:
    """Bound the bytes of the file of a set from above; it has a few hundred fewer at most.

    Args:
        shapes: Shapes of its arrays by name.
        images: Precision of the image part, or a code in `mosaic.CODES`.
        targets: Precision of the feature part.
        channels: Number of channels of an image.
        dim: Length of a target.
        coded: Bytes of each of the images that are coded; until they are known (0), these count as int8.
    """
    images = "int8" if images in mosaic.CODES else images
    pictures = math.ceil(coded * shapes["images"][0]) if coded else 0
    if coded:
        # A code is one array of bytes, about as long in the header as the images would be.
        shapes = {**shapes, "images": (0, 1, 1, channels)}
    constants = {"image_mean": (channels,), "image_std": (channels,), "target_mean": (dim,), "target_scale": ()}
    payload, names = 0, {}
    for name, shape in shapes.items():
        precision, axis = precision_of(name, images=images, targets=targets), AXES.get(name, 0)
        payload += quantize.size(tuple(shape), precision, axis=axis)
        names[f"arrays/{name}"] = (_TYPES.get(precision, "U8"), len(shape))
        if precision.startswith("int"):
            names[f"arrays/{name}.scale"] = ("F16", 1)
    for name, shape in constants.items():
        payload += quantize.size(shape, CONSTANTS[name])
        names[f"preprocessing/{name}"] = (_TYPES[CONSTANTS[name]], len(shape))
    return payload + header(names, payload) + pictures


def header(names: Mapping[str, tuple[str, int]], payload: int) -> int:
    """Bound the bytes of a file's header from above: every size and offset as long as that of the payload.

    Args:
        names: Type and number of axes of each tensor, by name.
        payload: Bytes of all tensors.
    """
    longest = int("9" * len(str(payload)))
    entries = {
        name: {"dtype": kind, "shape": [longest] * axes, "data_offsets": [longest, longest]}
        for name, (kind, axes) in names.items()
    }
    # Its length in 8 bytes, and spaces up to a multiple of 8.
    return 8 + len(json.dumps(entries, separators=(",", ":"))) + 7


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
