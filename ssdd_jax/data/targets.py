"""Target data sets: the labelled ones, named in short, that a distilled set is transferred to.

KRR-ST (Lee et al., ICLR 2024, Tables 1 to 3) and MKDT (Joshi et al., ICLR 2025) train a network on a distilled set and
then a classifier on its features of these. The splits are the official ones: of FGVC-Aircraft `trainval` is trained on,
of Oxford Flowers, as in MKDT's `utils.py`, the small `train` of ten images per class; Imagenette is tested on its
`validation`.

One thing differs. MKDT's `utils.py`, "consistent with KRRST", squeezes every image into a square, whatever its sides
are (Lanczos); here, as everywhere in the package, the shorter side is brought to the size (bilinear) and the longer is
cut to it around the centre. It concerns the targets whose images are of any size: all but CIFAR and Tiny ImageNet.
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

# Short names to the names that `loading.load` reads.
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


def settings(name: str, *, data_dir: str = "", image_size: int = 0) -> ConfigDict:
    """The settings that load a target.

    Args:
        name: One of `NAMES`, or any full name: `digits`, `tfds:NAME`, `folder:PATH`, `npz:PATH` or `npy:PATH`.
        data_dir: Where TFDS keeps its data sets, or the original files of Tiny ImageNet or FGVC-Aircraft are; "" is the
            default folder of TFDS.
        image_size: The height and width in pixels to resize to, or 0 for the size as stored.

    Returns:
        The `data` part of a config, for `loading.load`; what is not given here has its default.

    Raises:
        UserError: If the name is none of these; the text lists them, and those that are alike.
    """
    kind, _, rest = name.partition(":")
    full = name == "digits" or (kind in _KINDS and rest != "")
    if not full and name not in NAMES:
        hint = f"; did you mean {' or '.join(alike)}?" if (alike := _alike(name)) else ""
        raise UserError(
            f"there is no target {name!r}: give {', '.join(NAMES)}, digits, tfds:NAME, folder:PATH, npz:PATH "
            f"or npy:PATH{hint}"
        )
    chosen: ConfigDict = config.default().data
    chosen.update(name=NAMES.get(name, name), data_dir=data_dir, image_size=image_size)
    return chosen


def load(name: str, *, data_dir: str = "", image_shape: tuple[int, int, int], train_limit: int = 0) -> Dataset:
    """Loads a target in the form of a distilled set's images.

    Args:
        name: As for `settings`.
        data_dir: As for `settings`.
        image_shape: Height, width and channels of the set's images. Where they are square the target's are resized to
            them; otherwise they must be of that size as stored.
        train_limit: Use so many training images, chosen as `loading.load` does; 0 uses all.

    Returns:
        The target, with labels for both parts. A target without a test part of its own has a fifth of its training
        images held out, the same in every run.

    Raises:
        UserError: If the target is unknown, cannot be loaded, or does not serve as one (`adapt` says what it takes); the
            text names the target.
    """
    height, width, _ = image_shape
    chosen = settings(name, data_dir=data_dir, image_size=height if height == width else 0)
    chosen.train_limit = train_limit
    try:
        return adapt(loading.load(chosen), image_shape)
    except UserError as error:
        # The texts of the sources speak of a run's config.
        words = (
            str(error)
            .removeprefix(f"{chosen.name}: ")
            .replace("--config.data.name", "its name")
            .replace("--config.data.", "--")
        )
        raise UserError(f"target {name}: {words}") from error


def adapt(dataset: Dataset, image_shape: tuple[int, int, int]) -> Dataset:
    """Checks that a data set can be a target, and brings its images to a shape.

    Args:
        dataset: Any data set.
        image_shape: The height, width and channels to bring to; 3 channels repeat grey ones, 1 takes the luma of colour
            (ITU-R 601), and images are resized to a square as by `images.resize`.

    Returns:
        The data set, with images of `(n, *image_shape)` uint8 in both parts.

    Raises:
        UserError: If there are no labels, no test part, or training images of one class alone; or the images would have to
            be resized to another shape than a square.
        ValueError: If the channels asked for are neither 1 nor 3.
    """
    if dataset.train_labels is None:
        raise UserError(f"{dataset.name}: there are no labels, and a classifier needs them")
    if dataset.test_images is None:
        raise UserError(f"{dataset.name}: there is no test part: give it one, as it says how good a classifier is")
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
    train, test = (
        images.to_channels(images.resize(part, height if square else 0), channels)
        for part in (dataset.train_images, dataset.test_images)
    )
    return dataclasses.replace(dataset, train_images=train, test_images=test)


def _alike(name: str) -> list[str]:
    """Targets whose names are near or hold the given one, in upper or lower case."""
    lower = name.lower()
    return difflib.get_close_matches(lower, NAMES, n=2) or [known for known in NAMES if lower and lower in known]
