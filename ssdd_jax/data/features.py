"""Teacher features: storage of the computed ones, and checks of precomputed ones supplied by the user."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ssdd_jax import augment
from ssdd_jax.data import conversion, mapped
from ssdd_jax.data.preprocess import parts
from ssdd_jax.errors import StoredError, UserError
from ssdd_jax.runtime import files, numpy_files

# Largest difference between equal features, relative to the features: a few roundings of float32.
SAME = 1e-6
# Features that differ by less are near the end of float32, whose squares are zero.
SMALLEST = 1e-30


class Features(NamedTuple):
    """The teacher's features of a data set, float32.

    Attributes:
        train: Features of the training images `(n,D)`; memory-mapped if they were loaded from disk.
        test: Features of the test images `(m,D)`, or None if the precomputed features have none.
    """

    train: np.ndarray
    test: np.ndarray | None


class Samples(NamedTuple):
    """Training images that initialise a method, and the teacher's features of their views.

    Attributes:
        rows: Indices of the training images, int32 `(M,)`.
        views: Features float32 `(views,M,D)`.
        changes: Changes to the config that the data decide, dotted keys to values: see `Method.settle`.
    """

    rows: np.ndarray
    views: np.ndarray
    changes: Mapping[str, Any] = {}


class Brought(NamedTuple):
    """Precomputed teacher features supplied by the user, float32.

    Attributes:
        train: Features of the training images `(n,D)`.
        test: Features of the test images `(m,D)`, or None.
        views: Features of the training images `(n,D)` by name of the view, for the views that were supplied.
    """

    train: np.ndarray
    test: np.ndarray | None
    views: dict[str, np.ndarray]


def read(path: str, *, train: int, test: int, views: tuple[str, ...]) -> Brought:
    """Read precomputed features and check them against the data set.

    A `.npy` file holds the features of the training images and stays on disk if they are float32. A `.npz` file holds
    `train`, and optionally `test` and, under the names of views (`rot90`, ...), the features of the training images in
    these views; a single array of any other name is taken for `train`. A `.pt` file of PyTorch holds one tensor, or
    tensors by these names.

    Args:
        path: The file.
        train: Number of training images n.
        test: Number of test images m.
        views: Names of the views that the method uses.

    Returns:
        The features, float32.

    Raises:
        UserError: If the file cannot be read without unpickling, or does not fit the data set.
    """
    file = pathlib.Path(path).expanduser()
    return check(str(file), _arrays(file), train=train, test=test, views=views)


def check(
    where: str, arrays: Mapping[str, np.ndarray], *, train: int, test: int = 0, views: tuple[str, ...] = ()
) -> Brought:
    """Check precomputed features against the data set.

    Args:
        where: File or argument that holds the features, for error messages.
        arrays: Floats `(n,D)` by name: `train`, and optionally `test` and the names of views.
        train: Number of training images n.
        test: Number of test images m.
        views: Names of the views that the method uses; features of other views are ignored.

    Returns:
        The features, float32.

    Raises:
        UserError: If they are not floats, not finite, the same for all images, or do not fit the data set.
    """
    if "train" not in arrays:
        raise UserError(f"{where} has no array named train: it holds {', '.join(arrays) or 'nothing'}")
    # Only the views of this method are checked: a file may serve several methods.
    arrays = {name: conversion.widened(array) for name, array in arrays.items()}
    if test and "test" not in arrays and len(arrays["train"]) == train + test:
        raise UserError(
            f"{where}: train has features of {train + test} images, and the data set has {train} training and {test} "
            "test images: give those of the test images apart, as test in an .npz; if they are held out, "
            "ssdd_jax.data.source.hold_out says which they are"
        )
    expected = {"train": train, "test": test, **dict.fromkeys(views, train)}
    checked = {name: check_part(where, name, arrays[name], count) for name, count in expected.items() if name in arrays}
    for name, array in checked.items():
        if array.shape[1] != checked["train"].shape[1]:
            raise UserError(
                f"{where}: features have {checked['train'].shape[1]} dimensions in train and {array.shape[1]} in {name}"
            )
    for _ in varied(where, _pieces(checked["train"]), len(checked["train"])):
        pass
    by_view = {name: checked[name] for name in views if name in checked}
    return Brought(checked["train"], checked.get("test"), by_view)


def _arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise UserError(f"teacher.features: there is no file {file}")
    if file.suffix == ".npy":
        arrays = {"train": mapped.read(file)}
    elif file.suffix == ".npz":
        arrays = _of_archive(file)
    elif file.suffix in (".pt", ".pth"):
        arrays = _of_torch(file)
    else:
        raise UserError(f"teacher.features: {file} is not .npy, .npz or .pt: save the array with numpy.save")
    if len(arrays) == 1 and not {"test", *augment.VIEWS} & set(arrays):
        arrays = {"train": next(iter(arrays.values()))}
    # The last layer of a convolutional network has one pixel.
    return {name: array[:, :, 0, 0] if array.shape[2:] == (1, 1) else array for name, array in arrays.items()}


def _of_archive(file: pathlib.Path) -> dict[str, np.ndarray]:
    with numpy_files.opened(file) as archive:
        if isinstance(archive, np.ndarray):
            raise UserError(f"{file} holds a single array: save it with numpy.savez as train")
        return dict(archive)


def _of_torch(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UserError(f"{file} needs torch, which is missing: pip install 'ssdd_jax[torch]'") from None
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of the zip reader, the unpickler and PyTorch
        raise UserError(
            f"{file} is not a file of tensors, or is damaged: {' '.join(str(error).split())[:120]}"
        ) from None
    named = content if isinstance(content, Mapping) else {"train": content}
    return {str(name): conversion.to_features(f"{name} in {file}", tensor) for name, tensor in named.items()}


def varied(where: str, pieces: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yield features piece by piece, and check at the end that they are not the same for all images.

    Args:
        where: Origin of the features, for the message.
        pieces: Features `(k,D)`.
        count: Sum of all k.

    Raises:
        UserError: If no feature differs between images by more than rounding, or than what can be normalised.
    """
    first, spread, differ = None, 0.0, count < 2
    for piece in pieces:
        first = piece[:1] if first is None else first
        distance = float(np.abs(piece - first).max())
        spread, differ = max(spread, distance), differ or distance > SAME * float(np.abs(first).max())
        yield piece
    if differ and count > 1 and spread < SMALLEST:
        raise UserError(
            f"{where}: the features differ by {spread:.2g} at most, which float32 cannot normalise: multiply them by "
            f"{1 / SMALLEST:.0g} or so"
        )
    if not differ:
        raise UserError(
            f"{where}: the features are the same for all {count:,} images: the teacher has collapsed, or was given "
            "other inputs than in its training: take or train another one, or check its preprocessing"
        )


def check_part(where: str, name: str, array: np.ndarray, count: int) -> np.ndarray:
    """Check the features of one part alone, of which any number may be equal.

    Args:
        where: File or argument that holds the features, for error messages.
        name: Name of the part.
        array: Floats `(n,D)`.
        count: Number of images n.

    Returns:
        The features, float32.

    Raises:
        UserError: If they are not floats, not finite, or of another number of images.
    """
    if array.ndim != 2 or not array.shape[1] or not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{where}: {name} must be floats of shape (n, D), not {array.dtype} {array.shape}")
    if len(array) != count:
        part = "test" if name == "test" else "training"
        raise UserError(
            f"{where}: {name} has features of {len(array)} images, the data set has {count} {part} images: "
            "they must be in the same number and order"
        )
    # In blocks: the array may be mapped from disk and exceed the memory.
    for block in parts(len(array)):
        with np.errstate(over="ignore"):
            bad = np.flatnonzero(~np.isfinite(array[block].astype(np.float32)).all(1))
        if len(bad):
            raise UserError(
                f"{where}: {name} holds values that are not finite in float32, "
                f"first at index {block.start + int(bad[0])}"
            )
    return array.astype(np.float32, copy=False)


def of_samples(brought: Brought, samples: np.ndarray, views: tuple[str, ...]) -> np.ndarray:
    """Select precomputed features of the samples' views.

    Args:
        brought: The precomputed features.
        samples: Indices of training images `(M,)`.
        views: Names of the views, of which all but the first have features of their own.

    Returns:
        Features `(views,M,D)`.
    """
    return np.stack([brought.train[samples], *(brought.views[name][samples] for name in views[1:])])


def save(folder: pathlib.Path, features: Features, images: str) -> None:
    """Write features to a folder, with `images`, the fingerprint of the training images."""
    arrays = {name: array for name, array in features._asdict().items() if array is not None}
    write(folder, {name: (_pieces(array), len(array)) for name, array in arrays.items()}, images)


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    return (array[block] for block in parts(len(array)))


def write(folder: pathlib.Path, pieces: Mapping[str, tuple[Iterable[np.ndarray], int]], images: str) -> None:
    """Write features to a folder, with one piece in memory at a time.

    Args:
        folder: The folder.
        pieces: For `train`, and optionally `test`, float32 arrays `(k,D)` and the sum of all k.
        images: The fingerprint of the training images.
    """
    for name, (arrays, count) in pieces.items():
        mapped.write(folder / f"{name}.npy", arrays, count)
    # The description comes last: `complete` takes it as the mark of a finished folder.
    files.write_sealed(folder / "features.json", {"images": images, "test": "test" in pieces})


def complete(folder: pathlib.Path) -> bool:
    """Return whether `save` or `write` has completed in the folder."""
    return (folder / "features.json").exists()


def load(folder: pathlib.Path, images: str) -> Features:
    """Read the features that `save` wrote.

    Raises:
        StoredError: If they are missing, or belong to images with another fingerprint.
    """
    about = files.read_sealed(folder / "features.json")
    if about.get("images") != images:
        raise StoredError(
            f"{folder} holds features of other images than the data set has now: "
            "restore the data set, or choose another folder"
        )
    return Features(mapped.read(folder / "train.npy"), mapped.read(folder / "test.npy") if about["test"] else None)


def save_samples(folder: pathlib.Path, samples: Samples) -> None:
    """Write samples to a folder; `rows.npy` comes last and marks the folder as complete."""
    files.write_array(folder / "views.npy", samples.views)
    files.write_sealed(folder / "changes.json", samples.changes)
    files.write_array(folder / "rows.npy", samples.rows)


def load_samples(folder: pathlib.Path) -> Samples:
    """Read the samples that `save_samples` wrote."""
    arrays = files.read_array(folder / "rows.npy"), files.read_array(folder / "views.npy")
    return Samples(*arrays, files.read_sealed(folder / "changes.json"))
