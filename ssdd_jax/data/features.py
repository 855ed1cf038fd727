"""The teacher's features: computed once and kept, or brought by the user."""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ssdd_jax.data import mapped
from ssdd_jax.data.preprocess import parts
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files


class Features(NamedTuple):
    """The teacher's features, float32.

    Attributes:
        train: Of the training images `(n,D)`; mapped from disk where they were loaded.
        test: Of the test images `(m,D)`, or None if the user brought none.
    """

    train: np.ndarray
    test: np.ndarray | None


class Samples(NamedTuple):
    """The images that a method starts from, and the teacher's features of their views.

    Attributes:
        rows: Which training images, int32 `(M,)`.
        views: Features float32 `(views,M,D)`.
    """

    rows: np.ndarray
    views: np.ndarray


class Brought(NamedTuple):
    """A user's features.

    Attributes:
        train: `(n,D)`.
        test: `(m,D)`, or None.
        views: `(n,D)` by name of the view, as far as there are any.
    """

    train: np.ndarray
    test: np.ndarray | None
    views: dict[str, np.ndarray]


def read(path: str, *, train: int, test: int, views: tuple[str, ...]) -> Brought:
    """Read a user's features and check them against the data set.

    A `.npy` holds those of the training images, and stays on disk if they are float32. A `.npz` holds `train`, and may
    hold `test` and, under the names of views (`rot90`, ...), the features of the training images in these views.

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
    """Check a user's features against the data set.

    Args:
        where: What holds them, for the texts of errors.
        arrays: Floats `(n,D)` by name: `train`, and if there are any `test` and the names of views.
        train: Number of training images n.
        test: Number of test images m.
        views: Names of the views that the method uses; those of others are left out.

    Returns:
        The features, float32.

    Raises:
        UserError: If they are not floats, not finite, or do not fit the data set.
    """
    if "train" not in arrays:
        raise UserError(f"{where} has no array named train: it holds {', '.join(arrays) or 'nothing'}")
    expected = {"train": train, "test": test, **dict.fromkeys(views, train)}
    checked = {name: _check(where, name, arrays[name], count) for name, count in expected.items() if name in arrays}
    for name, array in checked.items():
        if array.shape[1] != checked["train"].shape[1]:
            raise UserError(
                f"{where}: features have {checked['train'].shape[1]} numbers in train and {array.shape[1]} in {name}"
            )
    by_view = {name: checked[name] for name in views if name in checked}
    return Brought(checked["train"], checked.get("test"), by_view)


def _arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise UserError(f"teacher.features: there is no file {file}")
    if file.suffix == ".npy":
        return {"train": mapped.read(file)}
    if file.suffix != ".npz":
        raise UserError(f"teacher.features: {file} is neither .npy nor .npz")
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is not a readable .npz file of numbers: {error}") from None


def _check(where: str, name: str, array: np.ndarray, count: int) -> np.ndarray:
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{where}: {name} must be floats of shape (n, D), not {array.dtype} {array.shape}")
    if len(array) != count:
        part = "test" if name == "test" else "training"
        raise UserError(
            f"{where}: {name} has features of {len(array)} images, the data set has {count} {part} images: "
            "they must be in the same number and order"
        )
    for some in parts(len(array)):
        bad = np.flatnonzero(~np.isfinite(array[some]).all(1))
        if len(bad):
            raise UserError(
                f"{where}: {name} holds numbers that are not finite, first in row {some.start + int(bad[0])}"
            )
    return array.astype(np.float32, copy=False)


def of_samples(brought: Brought, samples: np.ndarray, views: tuple[str, ...]) -> np.ndarray:
    """Features `(views,M,D)` of the samples' views; a view that was not brought starts as the image as it is."""
    return np.stack([brought.views.get(name, brought.train)[samples] for name in views])


def save(folder: pathlib.Path, features: Features, images: str) -> None:
    """Write the folder. `images` is the fingerprint of the training images."""
    known = {name: array for name, array in features._asdict().items() if array is not None}
    write(folder, {name: (_pieces(array), len(array)) for name, array in known.items()}, images)


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    return (array[some] for some in parts(len(array)))


def write(folder: pathlib.Path, pieces: Mapping[str, tuple[Iterable[np.ndarray], int]], images: str) -> None:
    """Write the folder from features that are in memory a piece at a time; the description comes last.

    Args:
        folder: The folder.
        pieces: For `train`, and `test` if there is any, float32 arrays `(k,D)` and the sum of their k.
        images: The fingerprint of the training images.
    """
    for name, (some, count) in pieces.items():
        mapped.write(folder / f"{name}.npy", some, count)
    files.write_json(folder / "features.json", {"images": images, "test": "test" in pieces})


def complete(folder: pathlib.Path) -> bool:
    """Whether `save` has written the folder to its end."""
    return (folder / "features.json").exists()


def load(folder: pathlib.Path, images: str) -> Features:
    """Read what `save` wrote.

    Raises:
        UserError: If they are not there, or are the features of other images.
    """
    about = files.read_json(folder / "features.json")
    if about["images"] != images:
        raise UserError(
            f"{folder} holds features of other images than the data set has now: "
            "bring the data back to what they were, or choose another folder"
        )
    return Features(mapped.read(folder / "train.npy"), mapped.read(folder / "test.npy") if about["test"] else None)


def save_samples(folder: pathlib.Path, samples: Samples) -> None:
    """Write the folder; the rows come last, and stand for the whole."""
    files.write_array(folder / "views.npy", samples.views)
    files.write_array(folder / "rows.npy", samples.rows)


def load_samples(folder: pathlib.Path) -> Samples:
    """Read what `save_samples` wrote."""
    return Samples(files.read_array(folder / "rows.npy"), files.read_array(folder / "views.npy"))
