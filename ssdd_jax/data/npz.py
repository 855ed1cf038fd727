"""Reader of images from an `.npz` archive of NumPy arrays."""

from __future__ import annotations

import pathlib
import zipfile
import zlib

import numpy as np

from ssdd_jax.data.images import array_part, one_line
from ssdd_jax.data.source import ImageSource, Part
from ssdd_jax.errors import UserError

# Accepted names of each array; the first one present is used.
_KEYS = {
    "train_images": ("train_images", "images", "x_train", "x"),
    "train_labels": ("train_labels", "labels", "y_train", "y"),
    "test_images": ("test_images", "x_test"),
    "test_labels": ("test_labels", "y_test"),
    "class_names": ("class_names",),
}
# Images converted from floats at a time.
_FLOAT_BLOCK = 4096


def open_npz(path: pathlib.Path, image_size: int) -> ImageSource:
    """Open an archive; nothing in it is ever unpickled.

    Args:
        path: The archive. Images are under `train_images`, `images`, `x_train` or `x`, their labels under
            `train_labels`, `labels`, `y_train` or `y`, the test part under `test_images` or `x_test` and
            `test_labels` or `y_test`, names of the classes under `class_names`; only images are needed.
            Images are `(n, H, W, C)` or `(n, H, W)`, uint8 or floats in [0, 1]; labels are integers `(n,)`.
        image_size: The height and width to resize to, or 0.

    Returns:
        The source, with class names "0", "1", ... if the labels have no names.

    Raises:
        UserError: If the file is missing or damaged, or its arrays are not as described.
    """
    return as_source(path, _read(path), image_size)


def as_source(path: pathlib.Path, arrays: dict[str, np.ndarray], image_size: int) -> ImageSource:
    """Build a source from arrays in memory or mapped from disk.

    Args:
        path: The file or folder of the arrays, for messages.
        arrays: Arrays under the first of the names that `open_npz` accepts: images `(n, H, W, C)` or `(n, H, W)`,
            labels `(n,)`.
        image_size: The height and width to resize to, or 0.

    Returns:
        The source.

    Raises:
        UserError: If the arrays are not as described in `open_npz`.
    """
    # Labels without images usually mean a misspelt name, so they are refused rather than ignored.
    if "train_images" not in arrays:
        raise UserError(f"{path} holds no images: name the array one of {', '.join(_KEYS['train_images'])}")
    if "test_labels" in arrays and "test_images" not in arrays:
        raise UserError(f"{path} holds test labels but no test images ({' or '.join(_KEYS['test_images'])})")
    train = _part(path, arrays["train_images"], arrays.get("train_labels"), image_size)
    test = None
    if "test_images" in arrays:
        test = _part(path, arrays["test_images"], arrays.get("test_labels"), image_size)
    names: tuple[str, ...] = ()
    if "class_names" in arrays:
        names = tuple(str(name) for name in arrays["class_names"].ravel())
    elif train.labels is not None:
        labels = [part.labels for part in (train, test) if part is not None and part.labels is not None]
        names = tuple(str(label) for label in range(1 + max(int(values.max()) for values in labels)))
    return ImageSource(train, test, names)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Load the arrays that the archive has, under the names of `_KEYS`."""
    if not path.is_file():
        raise UserError(f"{path} is not a file: check --config.data.name")
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path} holds a single array: save it with numpy.savez as train_images")
            # An archive decompresses an array when it is indexed: arrays of other names are not read.
            stored = {name: next((key for key in keys if key in archive.files), None) for name, keys in _KEYS.items()}
            return {name: archive[key] for name, key in stored.items() if key is not None}
    except UserError:
        raise
    except (
        OSError,
        EOFError,
        ValueError,
        SyntaxError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        # NumPy has no error type for object arrays, only a message that names the argument.
        if "allow_pickle" in str(error):
            raise UserError(
                f"{path} holds pickled Python objects, which are never loaded: save plain uint8 and integer "
                "arrays with numpy.savez"
            ) from error
        raise UserError(f"{path} is not an .npz archive, or a damaged one: {one_line(error)}") from error


def _part(path: pathlib.Path, images: np.ndarray, labels: np.ndarray | None, image_size: int) -> Part:
    images = _images(path, images)
    return array_part(images, None if labels is None else _labels(path, labels, len(images)), image_size)


def _images(path: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """Check images and convert them to `(n, H, W, C)` uint8."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        raise UserError(
            f"{path} holds images of shape {images.shape}, channels first: save images.transpose(0, 2, 3, 1)"
        )
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.size == 0:
        raise UserError(
            f"{path} holds images of shape {images.shape}; (n, height, width) or (n, height, width, 1 or 3) is needed"
        )
    if images.dtype == np.uint8:
        return images
    numeric = np.issubdtype(images.dtype, np.number) and not np.issubdtype(images.dtype, np.complexfloating)
    values = f"values from {images.min()} to {images.max()}" if numeric else "no numbers"
    # Comparisons with NaN are false, so an array that contains one is refused.
    if not (np.issubdtype(images.dtype, np.floating) and images.min() >= 0 and images.max() <= 1):
        raise UserError(
            f"{path} holds images as {images.dtype} with {values}; uint8, or floats from 0 to 1, are needed"
        )
    converted = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), _FLOAT_BLOCK):  # in blocks, to bound the float32 copy
        block = images[start : start + _FLOAT_BLOCK].astype(np.float32)
        converted[start : start + _FLOAT_BLOCK] = np.rint(block * 255)
    return converted


def _labels(path: pathlib.Path, labels: np.ndarray, count: int) -> np.ndarray:
    """Check labels and convert them to `(n,)` int32."""
    # Keras stores the labels of CIFAR as a column.
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{path} holds labels as {labels.dtype} of shape {labels.shape}; one integer per image is needed"
        )
    if len(labels) != count:
        raise UserError(f"{path} holds {len(labels)} labels for {count} images")
    if labels.min() < 0 or labels.max() >= 2**31:
        raise UserError(f"{path} holds labels from {labels.min()} to {labels.max()}; they must count from 0")
    return labels.astype(np.int32)
