"""Images stored as encoded files or records, decoded on demand."""

from __future__ import annotations

import dataclasses
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, UnidentifiedImageError

from ssdd_jax.data.images import TooDeep, check_memory, decode, one_line
from ssdd_jax.errors import UserError

# Images that one thread fetches and decodes per task.
_BLOCK = 128
# Most of the work on a small image holds the interpreter's lock. Measured on two cores: two threads read
# CIFAR-10 (1 kB an image) 10 % slower than one does, but 10 kB PNG and 100 kB JPEG files 1.8 times as fast.
_THREADS_FROM_BYTES = 4096
# The exceptions that Pillow's decoders, files and archives raise for damaged content.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """Encoded images of one part of a source, with the `read` method that `Part` needs.

    Attributes:
        fetch: Maps image indices to the encoded images.
        describe: Maps an image index to the name of the file or record, for messages.
        image_size: The height and width to resize to, or 0, as for `images.decode`.
        channels: 1 for grey, 3 for RGB.
    """

    fetch: Callable[[Sequence[int]], Sequence[bytes]]
    describe: Callable[[int], str]
    image_size: int
    channels: int = 3

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read and decode images.

        Args:
            rows: Image indices `(k,)`, at least one.

        Returns:
            `(k, H, W, channels)` uint8.

        Raises:
            UserError: If an image cannot be read (the message names it), two images differ in size, or all of them
                exceed the memory.
        """
        # The first image gives the shape, so that the result is allocated once and filled in place.
        order: list[int] = rows.tolist()
        sample = self._fetch(order[:1])[0]
        first = self._decode(order[0], sample)
        check_memory((len(order), *first.shape))
        images = np.empty((len(order), *first.shape), np.uint8)

        def fill(start: int) -> None:
            block = order[start : start + _BLOCK]
            for offset, (index, encoded) in enumerate(zip(block, self._fetch(block), strict=True), start):
                image = self._decode(index, encoded)
                if image.shape != first.shape:
                    raise UserError(
                        f"the images differ in size: {self.describe(order[0])} is {_size(first)} and "
                        f"{self.describe(index)} is {_size(image)} (width x height); give them one with "
                        "--config.data.image_size"
                    )
                images[offset] = image

        threads = min(8, os.cpu_count() or 1) if len(sample) >= _THREADS_FROM_BYTES else 1
        with ThreadPoolExecutor(threads) as pool:
            # `map` yields in order, so that the first bad image is the one reported; the rest is then cancelled.
            for _ in pool.map(fill, range(0, len(order), _BLOCK)):
                pass
        return images

    def _fetch(self, indices: Sequence[int]) -> Sequence[bytes]:
        try:
            return self.fetch(indices)
        except DAMAGE as error:
            # One after the other, to name the one that fails.
            for index in indices if len(indices) > 1 else ():
                self._fetch([index])
            raise UserError(f"{self.describe(indices[0])} cannot be read: {one_line(error)}") from error

    def _decode(self, index: int, encoded: bytes) -> np.ndarray:
        try:
            return decode(encoded, self.channels, self.image_size)
        except Image.DecompressionBombError as error:
            raise UserError(f"{self.describe(index)} is too large to be decoded safely: {_pixels(error)}") from error
        except TooDeep as error:
            raise UserError(f"{self.describe(index)}: {error}; save it with 8 or 16 bits") from error
        except DAMAGE as error:
            cause = "of no known format" if isinstance(error, UnidentifiedImageError) else one_line(error)
            raise UserError(
                f"{self.describe(index)} is not an image that can be read, or a damaged one ({cause}): "
                "replace it or take it away"
            ) from error


def _pixels(error: Image.DecompressionBombError) -> str:
    """Say how large an image may be; Pillow's text speaks of an attack."""
    size = re.search(r"\((\d+) pixels\)", str(error))
    most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return f"it has {int(size[1]) if size else most:,} pixels, and {most:,} are the most: reduce it, or take it away"


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
