"""What is chosen for a folder of photographs of any sizes, and the words for it: see configs/folder.py."""

from __future__ import annotations

import pathlib
from typing import Any

from ml_collections import ConfigDict

from ssdd_jax import config as configuration
from ssdd_jax.api import defaults
from ssdd_jax.data import folder
from ssdd_jax.errors import UserError

# Fewer images than this teach a teacher nothing.
LEAST = 20
# From so many images on, and where their shorter side allows it, an accelerator is given 64x64 instead of 32x32.
MANY = 10_000
# Steps of the teacher, and of the network trained on all images, that minutes on two cores allow.
TEACHER_STEPS, FULL_STEPS = 1000, 300


def choose(found: folder.Survey, *, method: str = "boost", accelerator: bool) -> ConfigDict:
    """The config for a folder.

    Args:
        found: What the folder holds.
        method: A name in `config.EDITIONS`.
        accelerator: Whether the work is done by one: the published settings then, else what two cores do in a quarter
            of an hour where there are a few hundred images.

    Returns:
        The config.

    Raises:
        UserError: If there are too few images.
    """
    if found.train + found.test < LEAST:
        raise UserError(
            f"{found.path} holds {found.train + found.test} images: at least {LEAST} are needed, and some hundreds are "
            "better"
        )
    side, train = resolution(found, accelerator=accelerator)[0], _training_images(found)
    config = defaults.choose((side, side, 3), train, method=method, accelerator=accelerator)
    config.data.name = f"folder:{found.path}"
    config.data.image_size = side
    config.update_from_flattened_dict(_published(train) if accelerator else _for_cores(config, side, train))
    return config


def resolution(found: folder.Survey, *, accelerator: bool) -> tuple[int, str]:
    """The side that images are brought to, in pixels, and why."""
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
    """What is found in the folder that a config names, and the resolution chosen, in lines for the user."""
    options, path = config.data, pathlib.Path(config.data.name.partition(":")[2]).expanduser()
    found = folder.survey(path, train_split=options.train_split, test_split=options.test_split)
    others = sum(found.others.values())
    endings = ", ".join(f"{count} {ending}" for ending, count in list(found.others.items())[:4])
    low, median, high = found.shorter
    lines = [
        f"folder {path}: {found.train + found.test:,} images, shorter side {low}-{median}-{high} pixels "
        f"(min-median-max), {f'{found.classes} classes by subfolder' if found.classes else 'no labels'}"
        f"{f', {found.test:,} of them for the test' if found.test else ''}"
        f"{f'; other files, passed over: {others:,} ({endings})' if others else ''}"
    ]
    side, why = resolution(found, accelerator=accelerator)
    if options.image_size == side:
        lines.append(f"resolution {side}x{side}: {why}; --config.data.image_size changes it")
    elif options.image_size:
        lines.append(f"resolution {options.image_size}x{options.image_size}: as the config says")
    return lines


def _training_images(found: folder.Survey) -> int:
    if found.test:
        return found.train
    return found.train - max(1, round(found.train * configuration.default().data.test_fraction))


def _batch(most: int, images: int) -> int:
    """The largest power of two up to `most` that leaves an epoch two steps."""
    size = 2
    while 2 * size <= min(most, images // 2):
        size *= 2
    return size


def _published(train: int) -> dict[str, Any]:
    """The teacher's training as published for 50,000 images, in no more steps where there are more."""
    epochs = min(1000, max(100, 1000 * 50_000 // train))
    return {
        "teacher.batch_size": _batch(256, train),
        "teacher.epochs": epochs,
        "teacher.warmup_epochs": min(10, epochs // 10),
        "evaluate.full_epochs": 100 if train < 500_000 else 10,
    }


def _for_cores(config: ConfigDict, side: int, train: int) -> dict[str, Any]:
    """A narrow teacher, and as many steps as minutes allow."""
    batch = _batch(128, train)
    epochs = max(2, -(-TEACHER_STEPS // (train // batch)))
    full = -(-FULL_STEPS // -(-train // config.evaluate.batch_size))
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
        "evaluate.epochs": 300,
        "evaluate.full_epochs": max(2, min(100, full)),
        "evaluate.probe_steps": 1000,
    }
