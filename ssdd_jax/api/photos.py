"""Default settings for a folder of photographs of any sizes, and their description; see configs/folder.py."""

from __future__ import annotations

import pathlib
from typing import Any

from ml_collections import ConfigDict

from ssdd_jax import config as configuration
from ssdd_jax.api import defaults
from ssdd_jax.data import folder
from ssdd_jax.errors import UserError

# A teacher cannot be trained on fewer images than this.
LEAST = 16
# From this number of images on, if their shorter side allows it, the resolution on an accelerator is 64x64.
MANY = 10_000
# Steps of the teacher, and of the network trained on all images, that take minutes on two cores.
TEACHER_STEPS, FULL_STEPS = 1000, 300


def choose(found: folder.Survey, *, method: str = "boost", accelerator: bool) -> ConfigDict:
    """Choose the config for a folder.

    Args:
        found: Survey of the folder.
        method: A name in `config.EDITIONS`.
        accelerator: Whether the run uses an accelerator. If so, the config has the published settings; otherwise
            settings with which two cores take a quarter of an hour for a few hundred images.

    Returns:
        The config.

    Raises:
        UserError: If there are too few images.
    """
    side, train = resolution(found, accelerator=accelerator)[0], _training_images(found)
    if train < LEAST:
        raise UserError(
            f"{found.path} holds {found.train + found.test} images, {train} of them for training: at least {LEAST} of "
            "these are needed, and some hundreds are better"
        )
    config = defaults.choose((side, side, 3), train, method=method, accelerator=accelerator)
    config.data.name = f"folder:{found.path}"
    config.data.image_size = side
    config.update_from_flattened_dict(_published(train) if accelerator else _for_cores(config, side, train))
    return config


def resolution(found: folder.Survey, *, accelerator: bool) -> tuple[int, str]:
    """Choose the side to which images are resized, in pixels, and explain the choice."""
    # The median, because a few small images should not lower the resolution of all.
    median, count = found.shorter[1], found.train + found.test
    if median < 24:
        return 16, f"half of the images are narrower than {median + 1} pixels"
    if accelerator and median >= 64 and count >= MANY:
        return 64, f"there are at least {MANY:,} images, most of them large enough, and an accelerator"
    if median < 64:
        return 32, f"half of the images are narrower than {median + 1} pixels"
    few = f"{count:,} images are fewer than the {MANY:,} that 64x64 is for"
    return 32, few if count < MANY else "64x64 takes an accelerator"


def describe(config: ConfigDict, *, accelerator: bool) -> list[str]:
    """Describe the contents of a config's folder and the chosen resolution, as lines for the user."""
    options, path = config.data, pathlib.Path(config.data.name.partition(":")[2]).expanduser()
    survey = folder.survey(path, train_split=options.train_split, test_split=options.test_split)
    ignored = sum(survey.others.values())
    endings = ", ".join(f"{count} {ending}" for ending, count in list(survey.others.items())[:4])
    low, median, high = survey.shorter
    lines = [
        f"folder {path}: {survey.train + survey.test:,} images, shorter side {low}-{median}-{high} pixels "
        f"(min-median-max), {f'{survey.classes} classes by subfolder' if survey.classes else 'no labels'}"
        f"{f', {survey.test:,} of them for the test' if survey.test else ''}"
        f"{f'; other files, ignored: {ignored:,} ({endings})' if ignored else ''}"
    ]
    side, why = resolution(survey, accelerator=accelerator)
    if options.image_size == side:
        lines.append(f"resolution {side}x{side}: {why}; --config.data.image_size changes it")
    elif options.image_size:
        lines.append(f"resolution {options.image_size}x{options.image_size}, set in the config")
    return lines


def _training_images(survey: folder.Survey) -> int:
    if survey.test:
        return survey.train
    return survey.train - max(1, round(survey.train * configuration.default().data.test_fraction))


def _batch(most: int, images: int) -> int:
    """Return the largest power of two up to `most` with at least two steps per epoch."""
    size = 2
    while 2 * size <= min(most, images // 2):
        size *= 2
    return size


def _published(train: int) -> dict[str, Any]:
    """Return the published settings of the teacher for 50,000 images, with fewer epochs for larger data sets."""
    # About as many steps as 1000 epochs of 50,000 images, but never below 100 epochs.
    epochs = min(1000, max(100, 1000 * 50_000 // train))
    return {
        "teacher.batch_size": _batch(256, train),
        "teacher.epochs": epochs,
        "teacher.warmup_epochs": min(10, epochs // 10),
        "evaluate.full_steps": 20_000 if train < 500_000 else 50_000,
    }


def _for_cores(config: ConfigDict, side: int, train: int) -> dict[str, Any]:
    """Return the settings of a narrow teacher, with as many steps as two cores take in minutes."""
    # Epochs follow from the number of steps, so that the time hardly depends on the number of images.
    batch = _batch(128, train)
    epochs = max(2, -(-TEACHER_STEPS // (train // batch)))
    return {
        "teacher.blocks": (1, 1, 1, 1),
        "teacher.width": 16 if side >= 32 else 8,
        "teacher.projector_hidden": 512 if side >= 32 else 256,
        "teacher.projector_out": 512 if side >= 32 else 256,
        "teacher.batch_size": batch,
        "teacher.epochs": epochs,
        "teacher.warmup_epochs": min(10, epochs // 10),
        "teacher.steps_per_call": 10,
        "teacher.save_every": 100,
        "distill.steps_per_call": min(20, config.distill.steps),
        "distill.save_every": 100,
        "evaluate.steps": 1000,
        "evaluate.full_steps": FULL_STEPS,
        "evaluate.probe_steps": 1000,
    }
