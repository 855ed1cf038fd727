"""Input preprocessing of pretrained networks: side, crop, mean and standard deviation, and interpolation."""

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
"""Mean and standard deviation by name: those of torchvision, the usual ones of vision transformers, unnormalised
pixels, and those of solo-learn for the two CIFARs."""
WORDS = {"imagenet": "ImageNet's mean and std", "half": "mean and std 0.5", "unit": "pixels in 0..1"}
# Pillow's numbers, which Hugging Face stores, and timm's names.
_RESAMPLE = {1: "lanczos3", 2: "linear", 3: "cubic", "bilinear": "linear", "bicubic": "cubic", "lanczos": "lanczos3"}

# Hugging Face's `rescale_factor`: pixels are bytes.
_BYTE = 1 / 255


class Inputs(NamedTuple):
    """Preprocessing that the files of a network specify.

    Attributes:
        mean: Mean of each channel; None if unspecified.
        std: Standard deviation of each channel; None if unspecified.
        size: Side in pixels; 0 if unspecified.
        resize: Interpolation, one of `models.frozen.RESIZE`.
        shortest_side: Side that the shorter side of an image is resized to before a central crop of `size`; 0 without
            a crop.
    """

    mean: Numbers | None = None
    std: Numbers | None = None
    size: int = 0
    resize: str = "linear"
    shortest_side: int = 0

    def at(self, size: int) -> int:
        """Return the shortest side before a crop of another size, in the same proportion; 0 without a crop."""
        return round(self.shortest_side * size / self.size) if self.shortest_side else 0


def from_files(facts: Mapping[str, Any], path: str) -> Inputs:
    """Read the preprocessing from the files beside the weights.

    Args:
        facts: Content of the files, as in `reading.Weights`: `preprocessor` of Hugging Face, `config` with timm's
            `pretrained_cfg`, or `about` of a run's teacher.
        path: The file or folder, for messages.

    Returns:
        The preprocessing; its defaults without such files.

    Raises:
        UserError: If an entry is invalid, the interpolation, the scale or the crop is not supported, or a run's teacher
            lacks its moments.
    """
    try:
        return _from_files(facts, path)
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"{path}: the preprocessing in the files beside the weights is invalid ({error}): restore or correct "
            "config.json and preprocessor_config.json"
        ) from None


def _from_files(facts: Mapping[str, Any], path: str) -> Inputs:
    # In order of preference: a run's teacher, timm, Hugging Face.
    if "about" in facts:
        about = facts["about"]
        if about.get("mean") is None or about.get("std") is None:
            raise UserError(f"{path}: its teacher.json has no mean or std of the pixels: restore it")
        return Inputs(
            _numbers(about["mean"]),
            _numbers(about["std"]),
            about.get("size", 0),
            about.get("resize", "linear"),
            about.get("shortest_side", 0),
        )
    if timm := facts.get("config", {}).get("pretrained_cfg"):
        size = int((timm.get("input_size") or (0,))[-1])
        # timm states the share of the resized image that the crop keeps. Its other modes resize the whole image first.
        share, mode = float(timm.get("crop_pct") or 0), timm.get("crop_mode") or "center"
        if share > 1 or (mode != "center" and share not in (0, 1)):
            raise UserError(
                f"{path}: the crop of crop_mode={mode!r} and crop_pct={share:g} is not supported: set crop_pct to 1 in "
                "config.json to resize the whole image"
            )
        shortest = int(size / share) if share and mode == "center" else 0
        resize = _resize(timm, "interpolation", path)
        return Inputs(_numbers(timm.get("mean")), _numbers(timm.get("std")), size, resize, shortest)
    processor = facts.get("preprocessor")
    if processor is None:
        return Inputs()
    for key in ("do_rescale", "do_resize"):
        if not processor.get(key, True):
            raise UserError(f"{path}: {key}=false in preprocessor_config.json is not supported, only true")
    if abs(processor.get("rescale_factor", _BYTE) - _BYTE) > 1e-6:
        raise UserError(
            f"{path}: rescale_factor={processor['rescale_factor']} in preprocessor_config.json is not supported, only "
            "1/255"
        )
    mean, std = _numbers(processor.get("image_mean")), _numbers(processor.get("image_std"))
    if not processor.get("do_normalize", True):
        mean, std = CONSTANTS["unit"]
    size, shortest = _sides(processor, path)
    return Inputs(mean, std, size, _resize(processor, "resample", path), shortest)


def channels_of(constants: tuple[Numbers, Numbers], channels: int, images: int) -> tuple[Numbers, Numbers]:
    """Expand mean and standard deviation to the channels of a network.

    Args:
        constants: Mean and standard deviation of each channel; a single one is repeated for all channels.
        channels: Number of channels that the network takes.
        images: Number of channels of the data set's images; grey images are repeated for a colour network.

    Returns:
        Mean and standard deviation, with one value per channel of the network.

    Raises:
        UserError: If the constants or the images do not match the channels of the network.
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
    """Return numbers of the channels; one for all of them may stand alone."""
    if isinstance(values, (int, float)):
        values = [values]
    return None if values is None else tuple(float(value) for value in values)


def _sides(processor: Mapping[str, Any], path: str) -> tuple[int, int]:
    """Return the side of a preprocessor's results, and the shortest side before a central crop or 0."""
    side = _side(processor.get("size"))
    if processor.get("do_center_crop"):
        # `size` is the side before the crop, and the network is given the crop.
        crop = _side(processor.get("crop_size")) or side
        if crop > side > 0:
            raise UserError(
                f"{path}: a central crop of {crop} pixels out of {side} would add a border, which is not supported: "
                f"set crop_size to at most {side} in preprocessor_config.json"
            )
        return crop, side
    # ConvNeXt's preprocessor, which ResNets have too: a share that a central crop keeps, below 384 pixels.
    if processor.get("crop_pct") and side < 384:
        return side, int(side / processor["crop_pct"])
    return side, 0


def _side(size: int | Mapping[str, int] | Sequence[int] | None) -> int:
    """Return the side in a preprocessor's `size`: a number, a sequence of sides, or a mapping with named sides."""
    if isinstance(size, Mapping):
        return int(size.get("height") or size.get("shortest_edge") or 0)
    return int(size[0] if isinstance(size, Sequence) else size or 0)


def _resize(processor: Mapping[str, Any], key: str, path: str) -> str:
    resample = processor.get(key, 2)
    if resample not in _RESAMPLE:
        raise UserError(f"{path}: the interpolation {key}={resample!r} is not supported; set it to 2, bilinear")
    return _RESAMPLE[resample]
