"""Images as data addresses, so that a page needs no other file."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image


class Picture(NamedTuple):
    """An image of a page: the address that holds it, its size in pixels, and what it shows, in words."""

    source: str
    width: int
    height: int
    words: str


def pictures(images: np.ndarray, words: str) -> list[Picture]:
    """Each of `(n,H,W,C)` uint8, C 1 or 3, as a PNG; called `words` and its number."""
    return [picture(image, f"{words} {i}") for i, image in enumerate(images, 1)]


def picture(image: np.ndarray, words: str) -> Picture:
    """An image `(H,W,C)` uint8, C 1 or 3, as a PNG."""
    height, width, channels = image.shape
    content = io.BytesIO()
    Image.fromarray(image[..., 0] if channels == 1 else image).save(content, "PNG", optimize=True)
    text = base64.b64encode(content.getvalue()).decode()
    return Picture(f"data:image/png;base64,{text}", width, height, words)
