"""Target data sets: labelled data sets, with short names, for transfer evaluation of a distilled set.

KRR-ST (Lee et al., ICLR 2024, Tables 1 to 3) and MKDT (Joshi et al., ICLR 2025) train a network on a distilled set and
then a classifier on its features of these data sets. The splits are the official ones. FGVC-Aircraft is trained on
`trainval`; Oxford Flowers, as in MKDT's `utils.py`, on the small `train` of ten images per class. Imagenette is tested
on its `validation`.

Resizing differs from the published code. MKDT's `utils.py`, "consistent with KRRST", squeezes every image into a square
regardless of its aspect ratio (Lanczos). Here, as everywhere in the package, the shorter side is resized (bilinear) and
the longer side is centre-cropped. This affects targets with images of varying size: all but CIFAR and Tiny ImageNet.
"""

from __future__ import annotations

import dataclasses
import difflib

import numpy as np
from ml_collections import ConfigDict

from ssdd_jax import config
from ssdd_jax.data import images, loading
from ssdd_jax.data.dataset import Dataset
from ssdd_jax.errors import UserError

# Short names, mapped to the names that `loading.load` reads.
NAMES = {
    "cifar10": "tfds:cifar10",
    "cifar100": "tfds:cifar100",
    "tiny_imagenet": "tiny_imagenet",
    "imagenette": "tfds:imagenette",
    "aircraft": "aircraft",
    "cars": "tfds:cars196",
    "cub2011": "tfds:caltech_birds2011",
    "stanford_dogs": "tfds:stanford_dogs",
    "flowers": "tfds:oxford_flowers102",
}
_KINDS = ("tfds", "folder", "npz", "npy")


def is_name(name: str) -> bool:
    """Return whether `settings` knows a name."""
    kind, _, rest = name.partition(":")
    return name in NAMES or name == "digits" or (kind in _KINDS and rest != "")


def settings(name: str, *, data_dir: str = "", image_size: int = 0) -> ConfigDict:
    """Build the settings that load a target.

    Args:
        name: One of `NAMES`, or any full name: `digits`, `tfds:NAME`, `folder:PATH`, `npz:PATH` or `npy:PATH`.
        data_dir: Folder of the prepared TFDS data sets, or of the original files of Tiny ImageNet or FGVC-Aircraft; ""
            is the default folder of TFDS.
        image_size: The height and width in pixels to resize to, or 0 for the size as stored.

    Returns:
        The `data` part of a config, for `loading.load`; all other settings have their defaults.

    Raises:
        UserError: If the name is none of these; the message lists them and suggests similar ones.
    """
    if not is_name(name):
        hint = f"; did you mean {' or '.join(alike)}?" if (alike := _alike(name)) else ""
        raise UserError(
            f"there is no target {name!r}: give {', '.join(NAMES)}, digits, tfds:NAME, folder:PATH, npz:PATH "
            f"or npy:PATH{hint}"
        )
    chosen: ConfigDict = config.default().data
    chosen.update(name=NAMES.get(name, name), data_dir=data_dir, image_size=image_size)
    return chosen


def load(name: str, *, data_dir: str = "", image_shape: tuple[int, int, int], train_limit: int = 0) -> Dataset:
    """Load a target, converted to the shape of a distilled set's images.

    Args:
        name: As for `settings`.
        data_dir: As for `settings`.
        image_shape: Height, width and channels of the set's images. If they are square the target's images are resized
            to them; otherwise they must be stored in that size.
        train_limit: Number of training images, selected as in `loading.load`; 0 uses all.

    Returns:
        The target, with labels for both parts. If it has no test part of its own, a fifth of its training images is
        held out, the same in every run.

    Raises:
        UserError: If the target is unknown, cannot be loaded, or does not meet the conditions of `adapt`; the message
            names the target.
    """
    height, width, _ = image_shape
    chosen = settings(name, data_dir=data_dir, image_size=height if height == width else 0)
    chosen.train_limit = train_limit
    try:
        return adapt(loading.load(chosen), image_shape)
    except UserError as error:
        # The messages of the sources name options of a run's config, but a target is an argument of its own.
        reason = (
            str(error)
            .removeprefix(f"{chosen.name}: ")
            .replace("--config.data.name", "its name")
            .replace("--config.data.", "--")
        )
        raise UserError(f"target {name}: {reason}") from error


def adapt(dataset: Dataset, image_shape: tuple[int, int, int]) -> Dataset:
    """Check that a data set can serve as a target, and convert its images to a shape.

    Args:
        dataset: Any data set.
        image_shape: Target height, width and channels. 3 channels repeat a grey one, 1 takes the luma of colour
            (ITU-R 601), and images are resized to a square by `images.resize`.

    Returns:
        The data set, with images of `(n, *image_shape)` uint8 in both parts.

    Raises:
        UserError: If there are no labels, no test part, or training images of only one class; or if the images would
            have to be resized to a shape that is not square.
        ValueError: If the number of channels in `image_shape` is neither 1 nor 3.
    """
    # A linear classifier is trained on one part and tested on the other: both need labels.
    if dataset.train_labels is None:
        raise UserError(
            f"{dataset.name}: there are no labels, and a classifier needs them: name labelled data as targets"
        )
    if dataset.test_images is None:
        raise UserError(f"{dataset.name}: there is no test part: give it one, on which the classifier is evaluated")
    if len(present := np.unique(dataset.train_labels)) < 2:
        raise UserError(
            f"{dataset.name}: the training images are all of one class, {dataset.class_names[present[0]]!r}, and a "
            "classifier needs two: use more of them, or another target"
        )
    height, width, channels = image_shape
    square = height == width
    if not square and dataset.image_shape[:2] != (height, width):
        raise UserError(
            f"{dataset.name}: the images are {dataset.image_shape[0]}x{dataset.image_shape[1]} (height x width), "
            f"{height}x{width} are needed, and only to squares are images resized: store them in that size"
        )
    # Size 0 leaves the images as they are: a shape that is not square has been checked above.
    train, test = (
        images.to_channels(images.resize(part, height if square else 0), channels)
        for part in (dataset.train_images, dataset.test_images)
    )
    return dataclasses.replace(dataset, train_images=train, test_images=test)


def _alike(name: str) -> list[str]:
    """List targets whose names are similar to a name or contain it, ignoring case."""
    lower = name.lower()
    return difflib.get_close_matches(lower, NAMES, n=2) or [target for target in NAMES if lower and lower in target]
