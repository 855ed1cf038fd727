"""Which images a network takes: side, mean and standard deviation, and how they are resized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ssdd_jax.errors import UserError

Numbers = tuple[float, ...]

CONSTANTS: dict[str, tuple[Numbers, Numbers]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Mean and standard deviation by name: torchvision's, the usual ones of vision transformers, pixels as they are, and
those of solo-learn for the two CIFARs."""
WORDS = {"imagenet": "ImageNet's mean and std", "half": "mean and std 0.5", "unit": "pixels in 0..1"}
_RESAMPLE = {1: "lanczos3", 2: "linear", 3: "cubic", "bilinear": "linear", "bicubic": "cubic", "lanczos": "lanczos3"}


class Inputs(NamedTuple):
    """What is said of a network's images.

    Attributes:
        mean: Of each channel; None where nothing is said.
        std: Of each channel; likewise.
        size: Side in pixels; 0 where nothing is said.
        resize: One of `models.frozen.RESIZE`.
    """

    mean: Numbers | None = None
    std: Numbers | None = None
    size: int = 0
    resize: str = "linear"


def said(facts: Mapping[str, Any], path: str) -> Inputs:
    """What the files beside the weights say: Hugging Face's preprocessor, timm's `pretrained_cfg`, a run's teacher.

    Raises:
        UserError: If they ask for what is not known here.
    """
    if "about" in facts:
        about = facts["about"]
        return Inputs(
            _numbers(about["mean"]), _numbers(about["std"]), about.get("size", 0), about.get("resize", "linear")
        )
    if "pretrained_cfg" in facts.get("config", {}):
        found = facts["config"]["pretrained_cfg"]
        size = found.get("input_size", (0,))[-1]
        return Inputs(
            _numbers(found.get("mean")), _numbers(found.get("std")), size, _resize(found, "interpolation", path)
        )
    found = facts.get("preprocessor")
    if found is None:
        return Inputs()
    mean, std = _numbers(found.get("image_mean")), _numbers(found.get("image_std"))
    if not found.get("do_normalize", True):
        mean, std = CONSTANTS["unit"]
    crop = found.get("crop_size") if found.get("do_center_crop") else None
    return Inputs(mean, std, _side(crop or found.get("size")), _resize(found, "resample", path))


def channels_of(constants: tuple[Numbers, Numbers], channels: int, images: int) -> tuple[Numbers, Numbers]:
    """Mean and std for a network of so many channels, which is given images of so many: one becomes three equal ones.

    Raises:
        UserError: If they do not go together.
    """
    if images not in (1, channels):
        raise UserError(
            f"teacher.source: the network takes images of {channels} channels, the data set has {images}: use "
            "another network or data set"
        )
    mean, std = (values * channels if len(values) == 1 else values for values in constants)
    if len(mean) != channels or len(std) != channels:
        raise UserError(
            f"teacher.source: the preprocessing is for {len(mean)} channels, the network takes {channels}: set "
            "config.teacher.preprocessing"
        )
    return mean, std


def _numbers(values: Any) -> Numbers | None:
    return None if values is None else tuple(float(value) for value in values)


def _side(size: int | Mapping[str, int] | Sequence[int] | None) -> int:
    """The side that a preprocessor's `size` names: a number, sides, or the shortest one."""
    if isinstance(size, Mapping):
        return int(size.get("height") or size.get("shortest_edge") or 0)
    return int(size[0] if isinstance(size, Sequence) else size or 0)


def _resize(found: Mapping[str, Any], key: str, path: str) -> str:
    how = found.get(key, 2)
    if how not in _RESAMPLE:
        raise UserError(f"{path}: images resized by {key}={how!r} are not known here; set it to 2, bilinear")
    return _RESAMPLE[how]
