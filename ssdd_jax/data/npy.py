"""Reader of images from `.npy` files, which are memory-mapped and may exceed the memory."""

from __future__ import annotations

import pathlib

from ssdd_jax.data import mapped, npz
from ssdd_jax.data.source import ImageSource
from ssdd_jax.errors import UserError

NAMES = ("train_images", "train_labels", "test_images", "test_labels", "class_names")


def open_npy(path: pathlib.Path, image_size: int) -> ImageSource:
    """Open a folder or a file; nothing in it is ever unpickled.

    Args:
        path: One file of training images, or a folder that holds `train_images.npy`, and may hold `train_labels.npy`,
            `test_images.npy`, `test_labels.npy` and `class_names.npy` (text), of the types and shapes that
            `npz.open_npz` takes. If all images of a part are used unchanged (uint8, `image_size` 0, no `train_limit`,
            nothing held out), they stay on disk.
        image_size: The height and width to resize to, or 0.

    Returns:
        The source, with classes as in `npz.open_npz`.

    Raises:
        UserError: If the folder or its training images are missing, or an array is not as described.
    """
    if path.is_file() and path.suffix == ".npy":
        return npz.as_source(path, {"train_images": mapped.read(path)}, image_size)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: check --config.data.name")
    arrays = {name: mapped.read(path / f"{name}.npy") for name in NAMES if (path / f"{name}.npy").exists()}
    return npz.as_source(path, arrays, image_size)
