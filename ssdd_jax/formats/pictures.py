"""Pairs as a folder of images with a file of targets."""

from __future__ import annotations

import io
import pathlib

import numpy as np
from PIL import Image

from ssdd_jax.data.encoded import DAMAGE
from ssdd_jax.data.folder import EXTENSIONS, is_image
from ssdd_jax.data.images import decode, one_line, upright
from ssdd_jax.data.walk import files_below
from ssdd_jax.errors import UserError
from ssdd_jax.formats import archive, constants
from ssdd_jax.formats.content import Content, check_targets

FEATURES: tuple[str, ...] = ("features.npy", "features.npz")
UNDO = (
    "A network is given (pixels / 255 - image_mean) / image_std per channel and regresses the row of features.npy that "
    "the image has in the order of the file names: the teacher's features are that row * target_scale + target_mean."
)


def is_folder(path: pathlib.Path) -> bool:
    """Return whether a folder holds a file of features for its images."""
    return any((path / name).is_file() for name in FEATURES)


def read(path: pathlib.Path) -> Content:
    """Read a folder of images, at any depth, in the order of their paths, with the targets at the same indices.

    Args:
        path: The folder, with the targets `(P,D)` in `features.npy`, or in `features.npz` as `targets` or as its only
            array. Images are read as grey if all of them are, else as RGB.

    Returns:
        The pairs, with uint8 pixels, and their facts.

    Raises:
        UserError: If an image is damaged or differs in size, or the targets have another shape or type.
    """
    features_path = next(path / name for name in FEATURES if (path / name).is_file())
    arrays = archive.load_arrays(features_path)
    if len(arrays) != 1 and "targets" not in arrays:
        raise UserError(f"{features_path} holds {', '.join(arrays) or 'nothing'}: name the array targets")
    targets = arrays["targets"] if "targets" in arrays else next(iter(arrays.values()))
    return Content(_images(path), check_targets(str(features_path), targets), constants.read(path))


def write(folder: pathlib.Path, content: Content, pixels: np.ndarray, names: list[str]) -> None:
    """Write images and `features.npy`.

    Args:
        folder: Folder to write to.
        content: The pairs and their facts.
        pixels: uint8 `(P,H,W,C)`.
        names: File names, whose sorted order is that of the pairs.
    """
    for name, picture in zip(names, pixels, strict=True):
        (folder / name).write_bytes(encode(picture))
    np.save(folder / FEATURES[0], content.targets, allow_pickle=False)


def encode(picture: np.ndarray) -> bytes:
    """Encode an image `(H,W,C)`, uint8 with 1 or 3 channels, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(buffer, "PNG")
    return buffer.getvalue()


def file_names(count: int, views: list[str]) -> list[str]:
    """Build file names whose sorted order is that of the pairs.

    Args:
        count: Number of pairs P.
        views: Names of the views, each of which has an equal block of consecutive pairs; empty without views.

    Returns:
        Names such as `0012.png`, or `0012_rot90.png` with views.
    """
    # Leading zeros make the alphabetical order, in which folders are read, the numerical one.
    width = max(4, len(str(count - 1)))
    suffixes = [f"_{view}" for view in views for _ in range(count // len(views))] or [""] * count
    return [f"{index:0{width}d}{suffix}.png" for index, suffix in enumerate(suffixes)]


def to_bytes(inputs: np.ndarray, image_mean: np.ndarray, image_std: np.ndarray) -> tuple[np.ndarray, int]:
    """Convert network inputs to 8-bit pixels.

    Args:
        inputs: Network inputs `(P,H,W,C)`.
        image_mean: Mean of each channel `(C,)`.
        image_std: Standard deviation of each channel `(C,)`.

    Returns:
        uint8 `(P,H,W,C)`, and the number of values that lay outside 0..255 by more than rounding and were clipped.
    """
    # In float64, so that pixels that were bytes originally are restored exactly.
    levels = np.rint((inputs.astype(np.float64) * image_std + image_mean) * 255.0)
    clipped = np.clip(levels, 0, 255)
    return clipped.astype(np.uint8), int((levels != clipped).sum())


def _images(path: pathlib.Path) -> np.ndarray:
    # The same order as that of `file_names`; hidden files and folders (thumbnails, say) are ignored.
    paths = files_below(path, is_image).paths
    if not paths:
        raise UserError(f"{path} holds no images (files that end in {', '.join(EXTENSIONS)})")
    # A single colour image makes all of them RGB. A list, so that all files are checked for damage.
    channels = 1 if all([_is_grey(file) for file in paths]) else 3
    images = [_decode(file, channels) for file in paths]
    for file, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            sizes = [f"{name} is {a.shape[1]}x{a.shape[0]}" for name, a in ((paths[0], images[0]), (file, image))]
            raise UserError(f"the images differ in size: {' and '.join(sizes)} (width x height); bring all to one")
    return np.stack(images)


def _is_grey(file: pathlib.Path) -> bool:
    try:
        mode = upright(file.read_bytes()).mode
        return mode in ("1", "L", "LA") or mode.startswith("I")
    except DAMAGE as error:
        raise _unreadable(file, error) from None


def _decode(file: pathlib.Path, channels: int) -> np.ndarray:
    try:
        return decode(file.read_bytes(), channels)
    except DAMAGE as error:
        raise _unreadable(file, error) from None


def _unreadable(file: pathlib.Path, error: BaseException) -> UserError:
    return UserError(f"{file} is not an image that can be read, or a damaged one ({one_line(error)}): replace it")
