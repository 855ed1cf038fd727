"""Load the `Dataset` that the settings of a run describe."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ssdd_jax.data import aircraft_files, labels, tiny_imagenet_files
from ssdd_jax.data.cache import Cache
from ssdd_jax.data.dataset import Dataset
from ssdd_jax.data.digits import open_digits
from ssdd_jax.data.folder import open_folder
from ssdd_jax.data.npy import open_npy
from ssdd_jax.data.npz import open_npz
from ssdd_jax.data.source import ImageSource, Part, hold_out, limit
from ssdd_jax.data.tfds_source import open_tfds
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import devices

FORMS = "digits, tfds:NAME, tiny_imagenet, aircraft, folder:PATH, npz:PATH or npy:PATH"


def load(settings: ConfigDict) -> Dataset:
    """Load a data set into memory, or memory-maps it from disk.

    Args:
        settings: The `data` part of a run's config:

            * `name`: `digits`, `tfds:NAME`, `tiny_imagenet`, `aircraft`, `folder:PATH`, `npz:PATH` or
              `npy:PATH`, whose images stay on disk.
            * `data_dir`: folder of TFDS, Tiny ImageNet or FGVC-Aircraft; "" is the default folder of TFDS.
            * `train_split`, `test_split`: splits of a TFDS data set, or subfolders of a folder. A
              `test_split` of "" ignores the test part of any source.
            * `image_size`: 0 for the size as stored; otherwise the shorter side of every image is resized
              to it, and the longer side is centre-cropped to it.
            * `train_limit`: 0 for all training images; otherwise that many of them, the first after a
              fixed shuffle, so that smaller selections are nested in larger ones.
            * `test_fraction`: share of the training images that is held out if there is no test part,
              deterministic and stratified by class; 0 leaves the data set without a test part.
            * `cache_dir`: "" to hold the images in memory; otherwise a folder where decoded images are cached
              and memory-mapped, so that they may exceed the memory.

    Returns:
        The data set.

    Raises:
        UserError: If the name is not one of these, the source is missing, damaged or not prepared, its images
            differ in size while `image_size` is 0, or another setting is out of range.
    """
    chosen = _select(settings)
    read = Cache(settings).read if settings.cache_dir else _into_memory
    return Dataset(
        name=settings.name,
        train_images=read("train_images", *chosen.train),
        train_labels=_labels(chosen.train),
        test_images=None if chosen.test is None else read("test_images", *chosen.test),
        test_labels=None if chosen.test is None else _labels(chosen.test),
        class_names=chosen.source.class_names,
        notes=chosen.source.notes,
    )


def decode_together(settings: ConfigDict) -> None:
    """Fill the cache of decoded images with several processes, each of which decodes its own part of the images.

    All processes must call this at the same point. `load` finds the cache on each of them.

    Args:
        settings: As for `load`; `cache_dir` is a folder that all processes share.

    Raises:
        UserError: As for `load`, on every process if it fails on one.
    """
    cache = Cache(settings)
    with contextlib.ExitStack() as held:
        with devices.agreed():
            if devices.is_first():
                held.enter_context(cache.alone())
        with devices.agreed():
            chosen = _select(settings)
        # One collective per part, on all processes or on none.
        parts = {"train_images": chosen.train, "test_images": chosen.test}
        missing = {name for name in parts if devices.from_first(not cache.holds(name))}
        for name, selected in parts.items():
            if selected is None or name not in missing:
                continue
            with devices.agreed():
                cache.write_share(name, *selected, index=jax.process_index(), count=jax.process_count())
            with devices.agreed():
                if devices.is_first():
                    cache.join_shares(name, *selected, count=jax.process_count())


def is_decoded(name: str) -> bool:
    """Return whether the images of a data set of this name are decoded from files, one by one."""
    return name in ("tiny_imagenet", "aircraft") or name.startswith(("tfds:", "folder:"))


class _Chosen(NamedTuple):
    """The source of a data set, and the part and the image indices `(k,)` of either split; no test part is None."""

    source: ImageSource
    train: tuple[Part, np.ndarray]
    test: tuple[Part, np.ndarray] | None


def _select(settings: ConfigDict) -> _Chosen:
    """Open a source, and select its images; nothing is decoded."""
    # Opening a source lists its images and labels but decodes none, so that a wrong setting fails early.
    if settings.image_size < 0:
        raise UserError(f"--config.data.image_size must be 0 or a size in pixels, not {settings.image_size}")
    if settings.test_split and settings.test_split == settings.train_split:
        raise UserError(
            f"--config.data.train_split and test_split are both {settings.test_split!r}: the test images "
            "must not be the training images"
        )
    source = _with_classes_that_occur(settings.name, _open(settings))
    train, test = source.train, source.test
    # A source without a test part is split before `train_limit` applies, so that the held-out images do not
    # depend on the limit.
    train_indices = np.arange(train.size)
    test_indices = np.arange(test.size if test else 0)
    if test is None or settings.test_split == "":
        train_indices, test_indices = hold_out(train.size, train.labels, settings.test_fraction)
        test = train
    train_indices = limit(train_indices, settings.train_limit)
    return _Chosen(source, (train, train_indices), (test, test_indices) if len(test_indices) else None)


def _labels(selected: tuple[Part, np.ndarray]) -> np.ndarray | None:
    part, indices = selected
    return None if part.labels is None else part.labels[indices]


def _with_classes_that_occur(name: str, source: ImageSource) -> ImageSource:
    """Leave out classes that have no image in the source, before any images are held out or left out."""
    parts = [part for part in (source.train, source.test) if part is not None]
    present = np.unique(np.concatenate([part.labels for part in parts if part.labels is not None] or [np.zeros(0)]))
    # Labels out of range, such as TFDS' -1 for labels that are not public, are reported by `Dataset`.
    in_range = len(present) > 0 and present[0] >= 0 and present[-1] < len(source.class_names)
    if not in_range or len(present) == len(source.class_names):
        return source
    classes = labels.classes(name, [part.labels for part in parts], source.class_names)
    train, *test = (part._replace(labels=own) for part, own in zip(parts, classes.parts, strict=True))
    return ImageSource(train, test[0] if test else None, classes.names, source.notes + classes.notes)


def _into_memory(name: str, part: Part, rows: np.ndarray) -> np.ndarray:
    """Decode images into memory; the signature, with its unused name, is that of `Cache.read`."""
    return part.read(rows)


def _open(settings: ConfigDict) -> ImageSource:
    """Open the source that `settings.name` selects."""
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
    # A bare lower-case name is most often the name of a TFDS data set.
    hint = f"; did you mean tfds:{settings.name}?" if re.fullmatch(r"[a-z]\w*(/[\w.\-]+)?", settings.name) else ""
    raise UserError(f"--config.data.name must be {FORMS}, not {settings.name!r}{hint}")


def _open_tiny_imagenet(data_dir: str, splits: dict[str, str], image_size: int) -> ImageSource:
    """Open Tiny ImageNet from its original files, or else from a prepared TFDS folder."""
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
    """Open FGVC-Aircraft from its original files; TFDS does not include it."""
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
    """Return the folder of the original files of a data set, by default the data folder of TFDS."""
    return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
