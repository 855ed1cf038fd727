"""Pairs as a folder of images with a file of targets."""

from __future__ import annotations

import io
import pathlib

import numpy as np
from PIL import Image

from ssdd_jax.data.encoded import DAMAGE
from ssdd_jax.data.folder import EXTENSIONS
from ssdd_jax.data.images import decode, one_line
from ssdd_jax.errors import UserError
from ssdd_jax.formats import archive, constants
from ssdd_jax.formats.content import Content, check_targets

FEATURES: tuple[str, ...] = ("features.npy", "features.npz")
UNDO = (
    "A network is given (pixels / 255 - image_mean) / image_std per channel and regresses the row of features.npy that "
    "the image has in the order of the file names: the teacher's features are that row * target_scale + target_mean."
)


def is_folder(path: pathlib.Path) -> bool:
    """Whether a folder holds a file of features for its images."""
    return any((path / name).is_file() for name in FEATURES)


def read(path: pathlib.Path) -> Content:
    """Read a folder of images, at any depth, in the order of their paths, with the targets of the same rows.

    Args:
        path: The folder, with `features.npy` `(P,D)`, or `features.npz` that has them as `targets` or as its only
            array. Images are grey if all of them are, else RGB.

    Raises:
        UserError: If an image is damaged or of another size, or the targets are not what they should be.
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
        folder: Where to.
        content: Of a set.
        pixels: uint8 `(P,H,W,C)`.
        names: The files' names, which sort as the rows do.
    """
    for name, picture in zip(names, pixels, strict=True):
        (folder / name).write_bytes(encode(picture))
    np.save(folder / FEATURES[0], content.targets, allow_pickle=False)


def encode(picture: np.ndarray) -> bytes:
    """The PNG of an image `(H,W,C)`, uint8, C 1 or 3."""
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(buffer, "PNG")
    return buffer.getvalue()


def file_names(count: int, views: list[str]) -> list[str]:
    """Names that sort as the rows do: `0012.png`, or `0012_rot90.png` where the rows are views, one after another."""
    width = max(4, len(str(count - 1)))
    of_row = [f"_{view}" for view in views for _ in range(count // len(views))] or [""] * count
    return [f"{row:0{width}d}{view}.png" for row, view in enumerate(of_row)]


def to_bytes(inputs: np.ndarray, image_mean: np.ndarray, image_std: np.ndarray) -> tuple[np.ndarray, int]:
    """Pixels of network inputs.

    Args:
        inputs: `(P,H,W,C)`.
        image_mean: `(C,)`.
        image_std: `(C,)`.

    Returns:
        uint8 `(P,H,W,C)`, and how many of these numbers lay outside 0..255 by more than rounding and were clipped.
    """
    levels = np.rint((inputs.astype(np.float64) * image_std + image_mean) * 255.0)
    clipped = np.clip(levels, 0, 255)
    return clipped.astype(np.uint8), int((levels != clipped).sum())


def _images(path: pathlib.Path) -> np.ndarray:
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in EXTENSIONS and not any(p.startswith(".") for p in file.relative_to(path).parts)
    )
    if not found:
        raise UserError(f"{path} holds no images (files that end in {', '.join(EXTENSIONS)})")
    channels = 1 if all([_is_grey(file) for file in found]) else 3  # a list: every file is looked at
    images = [_decode(file, channels) for file in found]
    for file, image in zip(found, images, strict=True):
        if image.shape != images[0].shape:
            sizes = [f"{name} is {a.shape[1]}x{a.shape[0]}" for name, a in ((found[0], images[0]), (file, image))]
            raise UserError(f"the images differ in size: {' and '.join(sizes)} (width x height); bring all to one")
    return np.stack(images)


def _is_grey(file: pathlib.Path) -> bool:
    try:
        with Image.open(file) as opened:
            return opened.mode in ("1", "L", "LA") or opened.mode.startswith("I")
    except DAMAGE as error:
        raise _unreadable(file, error) from None


def _decode(file: pathlib.Path, channels: int) -> np.ndarray:
    try:
        return decode(file.read_bytes(), channels)
    except DAMAGE as error:
        raise _unreadable(file, error) from None


def _unreadable(file: pathlib.Path, error: BaseException) -> UserError:
    return UserError(f"{file} is not an image that can be read, or a damaged one ({one_line(error)}): replace it")
