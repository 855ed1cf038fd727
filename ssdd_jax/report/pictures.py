"""Images encoded as data URLs, which keep a page self-contained."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image


class Picture(NamedTuple):
    """An image of a page.

    Attributes:
        source: Data URL of the PNG.
        width: Width in pixels.
        height: Height in pixels.
        words: Alternative text.
    """

    source: str
    width: int
    height: int
    words: str


def pictures(images: np.ndarray, words: str) -> list[Picture]:
    """Encode images as PNG files.

    Args:
        images: Images uint8 `(n,H,W,C)`, C 1 or 3.
        words: Alternative text, to which the number of the image is appended.
    """
    return [picture(image, f"{words} {i}") for i, image in enumerate(images, 1)]


def picture(image: np.ndarray, words: str) -> Picture:
    """Encode an image `(H,W,C)` uint8, C 1 or 3, as a PNG file with the alternative text `words`."""
    height, width, channels = image.shape
    content = io.BytesIO()
    Image.fromarray(image[..., 0] if channels == 1 else image).save(content, "PNG", optimize=True)
    text = base64.b64encode(content.getvalue()).decode()
    return Picture(f"data:image/png;base64,{text}", width, height, words)
