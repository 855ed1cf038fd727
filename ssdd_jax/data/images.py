"""Decode, resize and convert images with Pillow."""

from __future__ import annotations

import io
import math
import pathlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ssdd_jax.data import metadata
from ssdd_jax.data.source import Part
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files

T = TypeVar("T")

# How to turn an image upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(encoded: bytes, channels: int, image_size: int = 0) -> np.ndarray:
    """Decode one image file: rotated upright, composited on white, and of an animation the first frame.

    Args:
        encoded: The content of the file, in any format that Pillow reads.
        channels: 1 for grey, 3 for RGB.
        image_size: 0 to keep the size; otherwise the shorter side is resized to it (bilinear) and the longer
            side is centre-cropped to it.

    Returns:
        `(H, W, channels)` uint8.

    Raises:
        OSError: If the content is not an image or is damaged. Pillow's decoders raise further types of error for
            damaged content: see `encoded.DAMAGE`. Damaged metadata are ignored.
    """
    image = eight_bit(upright(encoded)).convert("L" if channels == 1 else "RGB")
    if image_size:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels)


def upright(encoded: bytes) -> Image.Image:
    """Decode the pixels of an image file, and turn them by the orientation in its metadata if that is readable.

    Args:
        encoded: The content of the file.

    Returns:
        The image, in its own mode.

    Raises:
        OSError: As `decode`.
    """
    return _without_damaged_metadata(_upright, encoded)


def size(file: pathlib.Path) -> tuple[int, int]:
    """Return the width and height of an image file, as stored, without decoding it.

    Raises:
        OSError: As `decode`.
    """
    try:
        with Image.open(file) as image:
            return image.size
    except Exception:
        return _without_damaged_metadata(lambda encoded: Image.open(io.BytesIO(encoded)).size, file.read_bytes())


def _without_damaged_metadata(read: Callable[[bytes], T], encoded: bytes) -> T:
    """Read an image file; if that fails, without its metadata."""
    try:
        return read(encoded)
    except Exception as error:
        # Pillow parses profiles and texts together with the pixels, and fails on the whole file.
        for orientation in (True, False):
            stripped = metadata.without(encoded, orientation=orientation)
            try:
                if stripped is not None:
                    return read(stripped)
            except Exception:
                continue
        raise error


def _upright(encoded: bytes) -> Image.Image:
    with Image.open(io.BytesIO(encoded)) as image:
        image.load()
        # Cameras store a rotation in EXIF instead of rotating the pixels. `ImageOps.exif_transpose` would also write
        # the EXIF block anew, which fails for blocks with other faults.
        try:
            turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        except Exception:  # parsers of metadata raise errors of many types
            turn = None
        return image if turn is None else image.transpose(turn)


def resize(images: np.ndarray, image_size: int) -> np.ndarray:
    """Resize decoded images in the way of `decode`.

    Args:
        images: `(n, H, W, C)` uint8, C is 1 or 3.
        image_size: The new height and width, or 0 to return the images as they are.

    Returns:
        `(n, image_size, image_size, C)` uint8.
    """
    if image_size in (0, images.shape[1]) and image_size in (0, images.shape[2]):
        return images
    # One image at a time into one array: a list of images and its stack would need the memory twice.
    check_memory((len(images), image_size, image_size, images.shape[3]))
    resized = np.empty((len(images), image_size, image_size, images.shape[3]), np.uint8)
    for index, pixels in enumerate(images):
        image = Image.fromarray(pixels[..., 0] if images.shape[3] == 1 else pixels)
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
        resized[index] = np.asarray(image).reshape(resized.shape[1:])
    return resized


def to_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Convert decoded images to grey or to colour.

    Args:
        images: `(n, H, W, C)` uint8, C is 1 or 3.
        channels: 3 repeats a grey channel; 1 takes the luma of ITU-R 601 from colour, rounded as Pillow's mode "L",
            which `decode` uses too.

    Returns:
        `(n, H, W, channels)` uint8; the input itself if it already has these channels.

    Raises:
        ValueError: If `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, not {channels}")
    if images.shape[3] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=3)
    grey = np.empty((*images.shape[:3], 1), np.uint8)
    for index, pixels in enumerate(images):
        grey[index, ..., 0] = np.asarray(Image.fromarray(pixels).convert("L"))
    return grey


def array_part(images: np.ndarray, labels: np.ndarray | None, image_size: int) -> Part:
    """Wrap an array of images as a `Part`.

    Args:
        images: `(n, H, W, C)` uint8, in memory or mapped from disk.
        labels: `(n,)` int32, or None.
        image_size: The height and width to resize to when images are read, or 0.

    Returns:
        The part. Reading all images in their order returns the array itself instead of a copy.
    """

    def read(rows: np.ndarray) -> np.ndarray:
        # Fancy indexing would copy an array that is mapped from disk into memory.
        if len(rows) == len(images) and np.array_equal(rows, np.arange(len(images))):
            return resize(images, image_size)
        check_memory((len(rows), *images.shape[1:]))
        return resize(images[rows], image_size)

    return Part(len(images), labels, read)


def check_memory(shape: tuple[int, ...]) -> None:
    """Check that uint8 images fit into the machine's memory before they are decoded or copied.

    Args:
        shape: Shape `(n, H, W, C)` of the images.

    Raises:
        UserError: If they do not fit; the message names the setting that keeps them on disk.
    """
    size, memory = math.prod(shape), files.machine_bytes()
    if size > memory:
        raise UserError(
            f"{shape[0]:,} images take {size / 1e9:.1f} GB and the machine has {memory / 1e9:.1f} GB of memory: name a "
            "folder with --config.data.cache_dir, where they are kept and mapped into memory"
        )


def one_line(error: BaseException) -> str:
    """Return the text of an error as a single line."""
    return " ".join(str(error).split()) or type(error).__name__


class TooDeep(ValueError):
    """An intact image whose values do not fit 16 bits."""


def eight_bit(image: Image.Image) -> Image.Image:
    """Convert an image to 8 bits per channel, grey or colour; transparent pixels are composited on white.

    Raises:
        TooDeep: If its values need more than 16 bits, or are floating-point numbers.
    """
    # Pillow's conversion of mode "I" clips instead of scaling; 257 is 65535 / 255.
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise TooDeep(f"its grey values run from {values.min()} to {values.max()}, beyond 16 bits")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if image.mode == "F":
        raise TooDeep("its values are floating-point numbers")
    if image.has_transparency_data:
        # The colour of transparent pixels is arbitrary: composite the image on white.
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas
    if image.mode not in ("1", "L", "RGB"):
        return image.convert("RGB")
    return image
