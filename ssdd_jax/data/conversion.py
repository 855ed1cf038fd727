"""Conversion of what a caller hands over, such as PIL images, PyTorch tensors and data sets, to NumPy arrays.

The functions of the package that take arrays of a user convert them here. What is unambiguous is converted; otherwise
the error says what to do with the values that are there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence, Set
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from ssdd_jax.data import images as pixels
from ssdd_jax.data.encoded import DAMAGE
from ssdd_jax.errors import UserError

# Keys under which data sets of PyTorch, TFDS and Hugging Face have an image.
IMAGE_KEYS = ("image", "img", "images", "pixel_values", "x")
# The largest value of pixels in 0..255 is at least this.
LEAST_WHITE = 64
# Values converted at a time.
_BLOCK = 4096


def to_images(where: str, images: Any) -> np.ndarray:
    """Convert images to uint8.

    Args:
        where: Name of the argument, for messages.
        images: Images of one size: an array of NumPy, JAX or PyTorch, `(n,H,W,C)`, `(n,C,H,W)` or `(n,H,W)` with C 1 or
            3; a sequence of such images or of PIL images; or a data set with a length, whose items are images, tuples
            that begin with one, or mappings with one. Values are uint8, other numbers from 0 to 255, or floats in
            [0, 1].

    Returns:
        uint8 `(n,H,W,C)`; the array itself if it is that already.

    Raises:
        UserError: If the images differ in size, or have another shape or other values.
    """
    return _levels(where, _channels_last(where, _stacked(where, images)))


def to_features(where: str, features: Any) -> np.ndarray:
    """Convert features to an array of NumPy.

    Args:
        where: Name of the argument, for messages.
        features: Features `(n,D)` or `(n,D,1,1)` of NumPy, JAX or PyTorch, in any precision and on any device; or a
            sequence of rows `(D,)` or of batches `(k,D)`.

    Returns:
        The array `(n,D)`; bfloat16 becomes float32.

    Raises:
        UserError: If the rows differ in length.
    """
    if isinstance(features, str | os.PathLike):
        raise UserError(f"{where} is a path: load its array first, as in numpy.load({os.fspath(features)!r})")
    if isinstance(features, Mapping):
        raise UserError(f"{where} is a mapping with {', '.join(map(str, features))}: give one of its arrays")
    if not _is_sequence(features):
        array = to_array(where, features)
    else:
        rows = [to_array(where, row) for row in _items(where, features)]
        rows = [row[:, :, 0, 0] if row.ndim == 4 and row.shape[2:] == (1, 1) else row for row in rows]
        if len({row.shape[1:] if row.ndim > 1 else row.shape for row in rows}) > 1 or len({r.ndim for r in rows}) > 1:
            raise UserError(
                f"{where} differ in shape: {rows[0].shape} first, and {_other(rows)} later; bring all to one"
            )
        array = np.concatenate(rows) if rows and rows[0].ndim == 2 else np.array(rows)
    # The last layer of a convolutional network has one pixel.
    return array[:, :, 0, 0] if array.ndim == 4 and array.shape[2:] == (1, 1) else array


def to_array(where: str, value: Any) -> np.ndarray:
    """Convert one array of NumPy, JAX, PyTorch, TensorFlow or PIL, or nested lists of numbers, to NumPy.

    Args:
        where: Name of the argument, for messages.
        value: The array `(...)`. Tensors of PyTorch may require gradients, be on a device, or have bfloat16.

    Returns:
        The array, of the same shape and type; PyTorch's bfloat16 becomes float32.

    Raises:
        UserError: If it is no array of numbers or text.
    """
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value  # perhaps mapped from disk
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # a tensor of PyTorch
        value = value.detach().cpu()
        # Types that NumPy does not have.
        value = value.float() if str(value.dtype).startswith(("torch.bfloat16", "torch.float8")) else value
    try:
        array = np.asarray(value)
    except Exception as error:  # each library has its own errors
        raise UserError(f"{where} cannot be converted to an array: {pixels.one_line(error)}") from None
    if array.dtype == object:
        with contextlib.suppress(ValueError):  # raised for lists of different lengths
            array = np.array(array.tolist())
    if array.dtype == object and not all(isinstance(item, str) for item in array.ravel()):
        raise UserError(f"{where} must be an array of numbers, not of {type(value).__name__} with other objects")
    return array


def widened(array: np.ndarray) -> np.ndarray:
    """Convert bfloat16, which NumPy does not count as floating point and stores as bytes, to float32.

    Args:
        array: An array `(...)` of any type.

    Returns:
        The array, as float32 if it was bfloat16.
    """
    if array.dtype.kind == "V" and array.dtype.itemsize == 2 and array.dtype.names is None:
        array = array.view(jnp.bfloat16)
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array


def _stacked(where: str, images: Any) -> np.ndarray:
    """Convert images to one array `(n,...)`."""
    if isinstance(images, str | os.PathLike):
        raise UserError(
            f"{where} is a path: images on disk are distilled by "
            f"python -m ssdd_jax.main --config=configs/folder.py:{os.fspath(images)}"
        )
    if isinstance(images, Mapping):
        return _stacked(where, _image_of(where, images))
    if isinstance(images, Image.Image):
        raise UserError(f"{where} is a single image: give a sequence of images")
    if not _is_sequence(images):
        return to_array(where, images)
    items = [_image_of(where, item) for item in _items(where, images)]
    if not items:
        raise UserError(f"{where} is empty: give at least one image")
    # A colour image among grey ones makes all of them RGB.
    grey = all(item.mode in ("1", "L", "I", "I;16", "I;16B") for item in items if isinstance(item, Image.Image))
    arrays = [_of_one(where, index, item, grey) for index, item in enumerate(items)]
    if all(array.ndim == 4 and array.shape[1:] == arrays[0].shape[1:] for array in arrays):  # batches
        return np.concatenate(arrays)
    if {array.ndim for array in arrays} == {2, 3} and {a.shape[2] for a in arrays if a.ndim == 3} == {3}:
        arrays = [np.repeat(array[..., None], 3, 2) if array.ndim == 2 else array for array in arrays]
    for index, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            sizes = [f"{place} has the shape {arrays[place].shape}" for place in (0, index)]
            raise UserError(
                f"{where} differ in size: number {' and number '.join(sizes)} (height, width, ...); bring all to one: "
                f"PIL images by [x.resize({arrays[0].shape[1::-1]}) for x in images]"
            )
    return np.stack(arrays)


def _is_sequence(value: Any) -> bool:
    """Return whether something has to be read item by item: it is no array, but a list or a data set."""
    if isinstance(value, np.ndarray):
        return value.dtype == object
    if isinstance(value, memoryview | bytes | bytearray):
        return False
    # A column of a table may hold images as objects.
    return not hasattr(value, "__array__") or str(getattr(value, "dtype", "")) == "object"


def _items(where: str, values: Any) -> list[Any]:
    if isinstance(values, np.ndarray | list | tuple):
        return list(values)
    if not hasattr(values, "__iter__") and not hasattr(values, "__getitem__"):
        raise UserError(f"{where} is a {type(values).__name__}: give an array, a list or a data set")
    if isinstance(values, Set) or not (hasattr(values, "__len__") and hasattr(values, "__getitem__")):
        # The order of features must be that of the images: a loader may shuffle, and a generator ends.
        loaded = hasattr(values, "dataset")
        advice = "the data set that it loads, loader.dataset" if loaded else "a list or an array, as in list(...)"
        raise UserError(
            f"{where}: a {type(values).__name__} has no fixed order, in which features could be given: give {advice}"
        )
    return [values[index] for index in range(len(values))]


def _image_of(where: str, item: Any) -> Any:
    """Return the image of an item of a data set: itself, the first of a tuple, or the one that a mapping names."""
    if isinstance(item, Mapping):
        key = next((key for key in IMAGE_KEYS if key in item), None)
        if key is None:
            there = ", ".join(map(str, item))
            raise UserError(
                f"{where}: there is no image under {', '.join(IMAGE_KEYS)}, only {there}: give one of these"
            )
        return item[key]
    if isinstance(item, tuple | list) and item and not np.isscalar(item[0]) and not isinstance(item[0], list):
        return item[0]
    return item


def _of_one(where: str, index: int, item: Any, grey: bool) -> np.ndarray:
    if isinstance(item, str | os.PathLike) or (isinstance(item, tuple | list) and item and isinstance(item[0], str)):
        raise UserError(f"{where} are paths: open them first, as in [PIL.Image.open(path) for path in paths]")
    if isinstance(item, bytes):
        raise UserError(f"{where} are encoded: open them first, as in [PIL.Image.open(io.BytesIO(x)) for x in encoded]")
    if not isinstance(item, Image.Image):
        return to_array(f"{where}: number {index}", item)
    try:
        return np.asarray(pixels.eight_bit(item).convert("L" if grey else "RGB"))
    except DAMAGE as error:
        raise UserError(f"{where}: number {index}: {pixels.one_line(error)}") from None


def _channels_last(where: str, array: np.ndarray) -> np.ndarray:
    """Bring images to `(n,H,W,C)`."""
    shape = array.shape
    if array.ndim == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):  # the order of PyTorch
        array = array.transpose(0, 2, 3, 1)
    if array.ndim == 3 and shape[2] in (1, 3):
        raise UserError(
            f"{where} have the shape {shape}, which is that of a single image: give (n, height, width, channels)"
        )
    array = array[..., None] if array.ndim == 3 else array
    if array.ndim == 4 and array.shape[3] == 4 and 0 not in shape:
        raise UserError(f"{where} have the shape {shape}, with transparency: leave it out, as in images[..., :3]")
    if array.ndim != 4 or array.shape[3] not in (1, 3) or 0 in shape:
        raise UserError(f"{where} must have the shape (n, height, width), or with 1 or 3 channels last, not {shape}")
    return array


def _finite(images: np.ndarray) -> np.ndarray:
    """Return which images of `(n,...)` have finite values only."""
    return np.isfinite(images).reshape(len(images), -1).all(1)


def _levels(where: str, array: np.ndarray) -> np.ndarray:
    """Convert pixels to uint8; the error explains how to convert values that have no clear meaning."""
    if array.dtype == np.uint8:
        return array
    array = widened(array)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where} must be numbers, not {array.dtype}")
    low, high = float(array.min()), float(array.max())
    floats = array.dtype.kind == "f"
    if floats and not (np.isfinite(low) and np.isfinite(high)):
        bad = next(
            at.start + int(np.argmin(finite)) for at in _blocks(array) if not (finite := _finite(array[at])).all()
        )
        raise UserError(f"{where} hold values that are not finite, first in the image of index {bad}")
    if floats and low >= 0 and high <= 1:
        return _in_blocks(array, 255)
    whole = not floats or all((array[at] == np.rint(array[at])).all() for at in _blocks(array))
    # Images that are all dark may as well have another white, or be normalised.
    if low >= 0 and LEAST_WHITE <= high <= 255:
        return _in_blocks(array, 1)
    raise UserError(
        f"{where} must be uint8, 0 to 255, not {array.dtype} from {low:g} to {high:g}: {_advice(low, high, whole)}"
    )


def _advice(low: float, high: float, whole: bool) -> str:
    """Say how pixels in a range that is not 0..255 become uint8."""
    if low >= 0 and high <= 1:
        return "if 1 is white, (255 * images).astype('uint8')"
    if low >= 0 and high <= 2 and not whole:  # resized with overshoot
        return "if these are pixels in 0..1, (255 * images.clip(0, 1)).round().astype('uint8')"
    if low >= 0 and high < LEAST_WHITE and whole:
        scaled = f"(images * (255 / {high:g})).round().astype('uint8')"
        return f"if {high:g} is white, {scaled}; if 255 is, images.astype('uint8')"
    if low >= 0 and high > 255 and (bits := next((bits for bits in (10, 12, 14, 16) if high < 2**bits), 0)):
        return f"if these are pixels of {bits} bits, (images * (255 / {2**bits - 1})).round().astype('uint8')"
    if -1 <= low and high <= 1:
        return "if these are pixels in -1..1, ((images + 1) * 127.5).round().astype('uint8')"
    if -LEAST_WHITE < low and high < LEAST_WHITE and not whole:
        return (
            "if they were normalised, undo it first: (255 * (images * std + mean)).round().clip(0, 255).astype('uint8')"
        )
    return "scale them to 0..255 and convert them with .round().clip(0, 255).astype('uint8')"


def _blocks(array: np.ndarray) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, len(array), _BLOCK)]


def _in_blocks(array: np.ndarray, scale: int) -> np.ndarray:
    converted = np.empty(array.shape, np.uint8)
    for at in _blocks(array):  # to bound the float32 copy
        converted[at] = np.rint(array[at].astype(np.float32) * scale)
    return converted


def _other(rows: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Return the first shape that is not that of the first row."""
    return next((row.shape for row in rows if row.shape != rows[0].shape), rows[0].shape)
