"""Images coded together: one PNG, WebP or JPEG picture of all images side by side.

A picture per image would spend more bytes on headers and tables than on pixels: a JPEG file of 32x32 pixels has over
600 bytes of them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from ssdd_jax.data.encoded import DAMAGE
from ssdd_jax.data.images import check_memory, one_line
from ssdd_jax.errors import UserError

# Codes, and the longest side of a picture in pixels.
CODES = {"png": 2**31 - 1, "webp": 16_383, "jpeg": 65_500}
LOSSY = ("webp", "jpeg")
# Quality that the number of coded images is chosen for, where none is given.
QUALITY = 50
# Numbers of channels that can be coded.
CHANNELS = (1, 3)
# Pixels of the images that bytes are measured on, at most.
PIXELS = 2**22
# Room for images that take more bytes than those that were measured, where no quality can be lowered.
MARGIN = 1.1


def bytes_each(images: np.ndarray, code: str, quality: int = 0) -> float:
    """Return the bytes of each of some images, uint8 `(n,H,W,C)`, coded together; a quality of 0 is `QUALITY`.

    Of large images the first few are measured: as many as a picture holds, and `PIXELS` allow.
    """
    height, width = images.shape[1:3]
    most = min((CODES[code] // max(height, width)) ** 2, max(8, PIXELS // (height * width)))
    images = images[: max(most, 1)]
    return len(encode(images, code, quality or QUALITY)) / len(images)


def least_bytes(shape: tuple[int, int, int], code: str) -> int:
    """Return the bytes of a black image `(H,W,C)` at the lowest quality: no image takes much less."""
    return len(encode(np.zeros((1, *shape), np.uint8), code, 1))


def room_each(images: np.ndarray, code: str, quality: int, *, held: Callable[[float], int]) -> float:
    """Return the bytes to reckon with for each of the images that will be chosen from among some.

    A lossy code takes the quality at which the chosen ones fit. One without a loss must fit as it is: its bytes are
    those of as many images as the budget holds, in a small picture more than in a large one, and `MARGIN` more.

    Args:
        images: uint8 `(n,H,W,C)`, random ones of the data.
        code: A name in `CODES`.
        quality: Of WebP and JPEG, 1 to 100; 0 for `QUALITY`.
        held: Maps the bytes of an image to the number of images that the budget holds.
    """
    size = bytes_each(images, code, quality)
    return size if code in LOSSY else MARGIN * bytes_each(images[: max(1, held(size))], code)


def encode(images: np.ndarray, code: str, quality: int = 100) -> bytes:
    """Code images as one picture.

    Args:
        images: uint8 `(n,H,W,C)`, with 1 or 3 channels.
        code: A name in `CODES`. PNG is lossless.
        quality: Of WebP and JPEG, 1 to 100.

    Returns:
        The content of the picture's file.

    Raises:
        UserError: If there are other numbers of channels, or more images than such a picture holds.
    """
    count, height, width, channels = images.shape
    if channels not in CHANNELS:
        raise UserError(f"images of {channels} channels cannot be coded as {code}: choose another storage.images")
    columns, rows = _grid(count)
    if max(columns * width, rows * height) > CODES[code]:
        raise UserError(
            f"{count:,} images of {height}x{width} are more than a {code} picture holds: choose storage.images=png, or "
            "fewer images"
        )
    # Empty places repeat the last image, which costs little.
    tiles = np.concatenate([images, np.repeat(images[-1:], columns * rows - count, axis=0)])
    sheet = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    picture = Image.fromarray(
        sheet.reshape(rows * height, columns * width, channels).squeeze(2 if channels == 1 else ())
    )
    file = io.BytesIO()
    if code == "png":
        picture.save(file, "PNG", optimize=True)
    elif code == "webp":
        picture.convert("RGB").save(file, "WEBP", quality=quality, method=6)
    else:
        picture.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def decode(content: bytes, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Decode what `encode` returned.

    Args:
        content: The content of the picture's file.
        shape: Shape of the images `(n,H,W,C)`.

    Returns:
        uint8 `(n,H,W,C)`.

    Raises:
        UserError: If the content is damaged, or is not a picture of such images.
    """
    count, height, width, channels = shape
    columns, rows = _grid(count)
    # Before the pixels are decoded: a small file may hold a large picture.
    check_memory((columns * rows, height, width, 3))
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.size != (columns * width, rows * height):
                raise UserError(f"the coded images are a picture of {picture.size}, not of {count} of {height}x{width}")
            sheet = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"the coded images cannot be decoded: {one_line(error)}") from None
    tiles = sheet.reshape(rows, height, columns, width, channels).swapaxes(1, 2)
    return tiles.reshape(rows * columns, height, width, channels)[:count]


def _grid(count: int) -> tuple[int, int]:
    """Return the columns and rows of a picture of `count` images, about a square."""
    columns = max(1, math.isqrt(max(count - 1, 0)) + 1)
    return columns, -(-count // columns)
