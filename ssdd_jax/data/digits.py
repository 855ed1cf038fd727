"""Scikit-learn's handwritten digits: a small set of real images that needs no download."""

from __future__ import annotations

import numpy as np

from ssdd_jax.data.images import array_part
from ssdd_jax.data.source import ImageSource


def open_digits(image_size: int) -> ImageSource:
    """Open the 1,797 digits of 8x8 grey pixels, in ten classes, without a test part.

    Args:
        image_size: The height and width to resize to, or 0 for 8.

    Returns:
        The source; images are `(n, image_size, image_size, 1)`, with values from 0 to 255.
    """
    from sklearn.datasets import load_digits  # takes longer to load than the rest of the package

    digits = load_digits()
    # The grey values are stored as 0 to 16.
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    names = tuple(str(name) for name in digits.target_names)
    return ImageSource(array_part(images, digits.target.astype(np.int32), image_size), None, names)
