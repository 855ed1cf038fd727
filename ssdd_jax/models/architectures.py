"""Registry of the networks that distilled sets are evaluated on.

Widths and names are those of KRR-ST (`models/wrapper.py`, and `test.py` for the base network of each image size) and,
with instance norm, of MKDT. A ResNet's width can be part of its name, as in `resnet18_16`, for small machines.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence

import flax.linen as nn

from ssdd_jax.models.convnet import ConvNet
from ssdd_jax.models.layers import check_multiple
from ssdd_jax.models.mobilenet import MobileNet
from ssdd_jax.models.network import count
from ssdd_jax.models.plain import ALEXNET, VGG11, Layer, Plain, multiple
from ssdd_jax.models.resnet import ResNetClassifier
from ssdd_jax.models.vit import VisionTransformer, patch_side

__all__ = ["ARCHITECTURES", "count", "make"]

# `(name, dim, image_shape) -> network`; the name is used in error messages.
Builder = Callable[[str, int, tuple[int, ...]], nn.Module]

_RESNETS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
_NORMS = {"bn": "batch", "in": "instance"}


def make(name: str, dim: int, image_shape: tuple[int, ...]) -> nn.Module:
    """Build the network of a name.

    Args:
        name: A key of `ARCHITECTURES`, or a free form: `convnet_16_32_64_bn` (widths of the blocks; `bn` for batch norm
            or `in` for instance norm), `resnet18_16` (width of the first stage, 64 by default).
        dim: Length D of a target.
        image_shape: `(H,W,C)`.

    Returns:
        A module that maps images `(B,H,W,C)` to features `(B,F)` and predictions `(B,dim)`; see `models.network`.

    Raises:
        ValueError: If there is no such network, or it does not accept images of this size.
    """
    if len(image_shape) != 3:
        raise ValueError(f"an image shape is (height, width, channels), got {tuple(image_shape)}")
    builder = ARCHITECTURES.get(name) or _free_form(name)
    return builder(name, dim, tuple(image_shape))


def convnet_name(widths: Sequence[int], norm: str) -> str:
    """Return the name of a ConvNet with blocks of these widths and `batch` or `instance` norm."""
    short = next(short for short, long in _NORMS.items() if long == norm)
    return "_".join(["convnet", *map(str, widths), short])


def _free_form(name: str) -> Builder:
    """Return the builder of a name that contains widths, such as `convnet_16_32_bn` or `resnet18_16`."""
    if match := re.fullmatch(r"convnet((?:_[1-9]\d*)+)_(bn|in)", name):
        return _convnet(tuple(int(width) for width in match[1][1:].split("_")), _NORMS[match[2]])
    if (match := re.fullmatch(r"(resnet\d+)_([1-9]\d*)", name)) and match[1] in _RESNETS:
        return _resnet(match[1], int(match[2]))
    close = difflib.get_close_matches(name, ARCHITECTURES, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ValueError(
        f"there is no architecture {name!r}{hint}; there are {', '.join(ARCHITECTURES)}, and with widths of your own "
        "convnet_16_32_64_bn (or _in), resnet18_16 (or resnet10_, resnet50_)"
    )


def _convnet(widths: tuple[int, ...], norm: str = "batch") -> Builder:
    def build(name: str, dim: int, image_shape: tuple[int, ...]) -> nn.Module:
        check_multiple(name, image_shape[:2], 2 ** len(widths))
        return ConvNet(widths, dim, norm)

    return build


def _base(name: str, dim: int, image_shape: tuple[int, ...]) -> nn.Module:
    """Build KRR-ST's base network: larger images get more blocks."""
    side = max(image_shape[:2])
    first_widths = [width for width, minimum_side in ((32, 224), (64, 64)) if side >= minimum_side]
    return _convnet((*first_widths, 128, 256, 512))(name, dim, image_shape)


def _plain(layers: tuple[Layer, ...]) -> Builder:
    def build(name: str, dim: int, image_shape: tuple[int, ...]) -> nn.Module:
        check_multiple(name, image_shape[:2], multiple(layers))
        return Plain(layers, dim)

    return build


def _mobilenet(name: str, dim: int, image_shape: tuple[int, ...]) -> nn.Module:
    check_multiple(name, image_shape[:2], 1)
    return MobileNet(dim)


def _resnet(kind: str, width: int = 64) -> Builder:
    def build(name: str, dim: int, image_shape: tuple[int, ...]) -> nn.Module:
        check_multiple(name, image_shape[:2], 1)
        return ResNetClassifier(dim, width, _RESNETS[kind], bottleneck=kind == "resnet50")

    return build


def _vit_tiny(name: str, dim: int, image_shape: tuple[int, ...]) -> nn.Module:
    patch = patch_side(image_shape)
    # `patch_side` rounds an eighth of the height down, so a multiple of 8 is required as well as one of the patch.
    for multiple_of in (8, patch):
        check_multiple(name, image_shape[:2], multiple_of)
    return VisionTransformer(dim, patch)


ARCHITECTURES: dict[str, Builder] = {
    "convnet": _base,
    "convnet3": _convnet((128, 256, 512)),
    "convnet4": _convnet((64, 128, 256, 512)),
    "convnet3_in": _convnet((128,) * 3, "instance"),
    "convnet4_in": _convnet((128,) * 4, "instance"),
    "vgg11": _plain(VGG11),
    "alexnet": _plain(ALEXNET),
    "mobilenet": _mobilenet,
    "resnet10": _resnet("resnet10"),
    "resnet18": _resnet("resnet18"),
    "resnet50": _resnet("resnet50"),
    "vit_tiny": _vit_tiny,
}
"""Builders by name; `make` also accepts names with widths."""
