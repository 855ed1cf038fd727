"""From the settings of a run to its `Dataset`."""

from __future__ import annotations

import os
import pathlib
import re

import numpy as np
from ml_collections import ConfigDict

from ssdd_jax.data import aircraft_files, tiny_imagenet_files
from ssdd_jax.data.cache import Cache
from ssdd_jax.data.dataset import Dataset
from ssdd_jax.data.digits import open_digits
from ssdd_jax.data.folder import open_folder
from ssdd_jax.data.npy import open_npy
from ssdd_jax.data.npz import open_npz
from ssdd_jax.data.source import ImageSource, Part, hold_out, limit
from ssdd_jax.data.tfds_source import open_tfds
from ssdd_jax.errors import UserError

FORMS = "digits, tfds:NAME, tiny_imagenet, aircraft, folder:PATH, npz:PATH or npy:PATH"


def load(settings: ConfigDict) -> Dataset:
    """Loads a data set into memory, or maps it there from disk.

    Args:
        settings: The `data` part of a run's config:

            * `name`: `digits`, `tfds:NAME`, `tiny_imagenet`, `aircraft`, `folder:PATH`, `npz:PATH` or
              `npy:PATH`, whose images stay on disk.
            * `data_dir`: where TFDS, Tiny ImageNet or FGVC-Aircraft is; "" is the default folder of TFDS.
            * `train_split`, `test_split`: splits of a TFDS data set, or subfolders of a folder. A
              `test_split` of "" ignores the test part of any source.
            * `image_size`: 0 for the size as stored; otherwise the shorter side of every image is brought
              to it, and the longer is cut to it around the centre.
            * `train_limit`: 0 for all training images; otherwise that many of them, the first after a
              shuffle that is always the same (so a smaller number gives a part of a larger).
            * `test_fraction`: the share of the training images that is held out, always the same and by
              class, where there is no test part; 0 leaves the data set without one.
            * `cache_dir`: "" to hold the images in memory; otherwise a folder where they are kept decoded, and
              mapped from, so that they may be larger than the memory.

    Returns:
        The data set.

    Raises:
        UserError: If the name is not one of these, the source is missing, damaged or not prepared, its images
            differ in size while `image_size` is 0, or another setting is out of range.
    """
    if settings.image_size < 0:
        raise UserError(f"--config.data.image_size must be 0 or a size in pixels, not {settings.image_size}")
    if settings.test_split and settings.test_split == settings.train_split:
        raise UserError(
            f"--config.data.train_split and test_split are both {settings.test_split!r}: the test images "
            "must be others than the training images"
        )
    source = _open(settings)
    train, test = source.train, source.test
    rows = np.arange(train.size)
    test_rows = np.arange(test.size if test else 0)
    if test is None or settings.test_split == "":
        rows, test_rows = hold_out(train.size, train.labels, settings.test_fraction)
        test = train
    rows = limit(rows, settings.train_limit)
    tested = len(test_rows) > 0
    read = Cache(settings).read if settings.cache_dir else _into_memory
    return Dataset(
        name=settings.name,
        train_images=read("train_images", train, rows),
        train_labels=None if train.labels is None else train.labels[rows],
        test_images=read("test_images", test, test_rows) if tested else None,
        test_labels=test.labels[test_rows] if tested and test.labels is not None else None,
        class_names=source.class_names,
    )


def _into_memory(name: str, part: Part, rows: np.ndarray) -> np.ndarray:
    """The counterpart of `Cache.read`, which needs the name."""
    return part.read(rows)


def _open(settings: ConfigDict) -> ImageSource:
    """Opens the source that the name stands for."""
    kind, _, rest = settings.name.partition(":")
    data_dir = os.path.expanduser(settings.data_dir)
    splits = {"train_split": settings.train_split, "test_split": settings.test_split}
    if settings.name == "digits":
        return open_digits(settings.image_size)
    if settings.name == "tiny_imagenet":
        return _open_tiny_imagenet(data_dir, splits, settings.image_size)
    if settings.name == "aircraft":
        return _open_aircraft(data_dir, settings.image_size)
    if kind == "tfds" and rest:
        return open_tfds(rest, data_dir, **splits, image_size=settings.image_size)
    if kind == "folder" and rest:
        return open_folder(pathlib.Path(rest).expanduser(), **splits, image_size=settings.image_size)
    if kind == "npz" and rest:
        return open_npz(pathlib.Path(rest).expanduser(), settings.image_size)
    if kind == "npy" and rest:
        return open_npy(pathlib.Path(rest).expanduser(), settings.image_size)
    hint = f"; did you mean tfds:{settings.name}?" if re.fullmatch(r"[a-z]\w*(/[\w.\-]+)?", settings.name) else ""
    raise UserError(f"--config.data.name must be {FORMS}, not {settings.name!r}{hint}")


def _open_tiny_imagenet(data_dir: str, splits: dict[str, str], image_size: int) -> ImageSource:
    """Opens Tiny ImageNet from its original files, or else as TFDS has prepared it."""
    folder = _folder(data_dir)
    path = tiny_imagenet_files.find(folder)
    if path is not None:
        return tiny_imagenet_files.open_files(path, image_size)
    if (folder / "tiny_imagenet").is_dir():
        return open_tfds("tiny_imagenet", str(folder), **splits, image_size=image_size)
    raise UserError(
        f"{folder} holds no Tiny ImageNet: point --config.data.data_dir at the folder that holds "
        "tiny-imagenet-200.zip (http://cs231n.stanford.edu/tiny-imagenet-200.zip) or what is unpacked from it"
    )


def _open_aircraft(data_dir: str, image_size: int) -> ImageSource:
    """Opens FGVC-Aircraft from its original files; TFDS does not have it."""
    folder = _folder(data_dir)
    path = aircraft_files.find(folder)
    if path is None:
        raise UserError(
            f"{folder} holds no FGVC-Aircraft: point --config.data.data_dir at the folder that holds "
            "fgvc-aircraft-2013b.tar.gz (https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/) or what is unpacked "
            "from it"
        )
    return aircraft_files.open_files(path, image_size)


def _folder(data_dir: str) -> pathlib.Path:
    """Where the original files of a data set are looked for: where TFDS keeps its own, unless told."""
    return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
