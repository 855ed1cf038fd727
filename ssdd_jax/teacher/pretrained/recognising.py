"""Which network the names and shapes of tensors belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ssdd_jax.errors import UserError
from ssdd_jax.models.frozen import Backbone
from ssdd_jax.models.resnet import STEM_SIZES, ResNet
from ssdd_jax.models.vit import Encoder
from ssdd_jax.teacher.pretrained.naming import HEADS, ORIGINS, Origin
from ssdd_jax.teacher.pretrained.reading import Found


class Tensors(NamedTuple):
    """Tensors of one origin.

    Attributes:
        path: Where they were read, for messages.
        arrays: By their names there.
        origin: How they are named.
        prefix: What stands before all names of the network.
    """

    path: str
    arrays: Mapping[str, np.ndarray]
    origin: Origin
    prefix: str

    def names(self, path: str) -> tuple[str, ...]:
        """The names there of a leaf here."""
        return tuple(self.prefix + name for name in self.origin.names(path))

    def has(self, path: str) -> bool:
        """Whether all tensors of a leaf here are there."""
        names = self.names(path)
        return bool(names) and all(name in self.arrays for name in names)

    def get(self, path: str) -> np.ndarray:
        """A leaf here, in this package's order of axes.

        Raises:
            UserError: If it is not there.
        """
        for name in self.names(path):
            if name not in self.arrays:
                raise UserError(f"{self.path}: {name} is missing, without which the network is not known")
        parts = [self.arrays[name] for name in self.names(path)]
        array = np.concatenate(parts) if len(parts) > 1 else parts[0]
        if self.origin.table and path.endswith("/kernel"):
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        return array * self._factor(path)

    def _factor(self, path: str) -> Any:
        scales = [self.prefix + name for name in self.origin.scale(path) if self.prefix + name in self.arrays]
        return self.arrays[scales[0]] if scales else np.float32(1.0)

    def used(self, path: str) -> list[str]:
        """All tensors that a leaf here is made of."""
        scales = [self.prefix + name for name in self.origin.scale(path) if self.prefix + name in self.arrays]
        return [*self.names(path), *scales]


def tensors(found: Found) -> Tensors:
    """The network's tensors among those of a file.

    Raises:
        UserError: If no network is recognised, or more than one.
    """
    names, places = found.tensors.keys(), []
    for origin in sorted(ORIGINS, key=lambda origin: -len(origin.anchor)):
        before = {name.removesuffix(origin.anchor) for name in names if name.endswith(origin.anchor)}
        own = sorted(prefix for prefix in before if prefix == "" or prefix.endswith("."))
        places = [(origin, prefix) for prefix in own if not HEADS & set(prefix.split("."))]
        if places:
            break
    if not places:
        some = ", ".join(sorted(names)[:3])
        raise UserError(
            f"{found.path} holds no ResNet or vision transformer with names of a known library (it begins with "
            f"{some}): torchvision, timm, solo-learn, KRR-ST, DINO, Hugging Face and this package are known"
        )
    if len(places) > 1:
        prefixes = ", ".join(repr(prefix) for _, prefix in places)
        raise UserError(f"{found.path} holds several networks, under {prefixes}: save the tensors of one alone")
    return Tensors(str(found.path), found.tensors, *places[0])


def network(given: Tensors, facts: Mapping[str, Any], *, stem_padding: int, heads: int) -> Backbone:
    """The network that tensors belong to.

    Args:
        given: The tensors.
        facts: See `reading.Found`.
        stem_padding: Of a 3x3 stem, which no file tells.
        heads: Of a transformer; 0 for what a file says, else a head for each 64 numbers.

    Raises:
        UserError: If its parts are not those of a network that is known here.
    """
    config = facts.get("config", {})
    if given.origin.kind == "resnet":
        return _resnet(given, config, stem_padding)
    return _vit(given, config, heads)


def _resnet(given: Tensors, config: Mapping[str, Any], stem_padding: int) -> ResNet:
    for key, only in (
        ("downsample_in_bottleneck", False),
        ("downsample_in_first_stage", False),
        ("hidden_act", "relu"),
    ):
        if config.get(key, only) != only:
            raise UserError(f"{given.path}: a ResNet with {key}={config[key]!r} is not known here, only {only!r}")
    kernel = given.get("stem/kernel")
    if kernel.ndim != 4 or kernel.shape[0] not in STEM_SIZES or kernel.shape[0] != kernel.shape[1]:
        raise UserError(f"{given.path}: the stem's kernel {kernel.shape} is neither 3x3 nor 7x7")
    blocks: list[int] = []
    while given.has(f"stage{len(blocks) + 1}_block1/conv1/kernel"):
        stage, count = len(blocks) + 1, 1
        while given.has(f"stage{stage}_block{count + 1}/conv1/kernel"):
            count += 1
        blocks.append(count)
    size, width = kernel.shape[0], kernel.shape[3]
    bottleneck = given.has("stage1_block1/conv3/kernel")
    return ResNet(width, tuple(blocks), bottleneck, stem_size=size, stem_padding=stem_padding if size == 3 else 2)


def _vit(given: Tensors, config: Mapping[str, Any], heads: int) -> Encoder:
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(
            f"{given.path}: a transformer with hidden_act={config['hidden_act']!r} is not known, only 'gelu'"
        )
    kernel, hidden = given.get("patches/kernel"), given.get("block0/mlp1/kernel").shape[-1]
    if kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1]:
        raise UserError(f"{given.path}: the patches' kernel {kernel.shape} is not one of square patches")
    depth, width = 0, kernel.shape[3]
    while given.has(f"block{depth}/norm1/scale"):
        depth += 1
    heads = heads or int(config.get("num_attention_heads", 0)) or max(width // 64, 1)
    if width % heads:
        raise UserError(f"{given.path}: {heads} heads do not divide the width {width}: set config.teacher.heads")
    epsilon = float(config.get("layer_norm_eps", given.origin.epsilon))
    return Encoder(kernel.shape[0], width, depth, heads, hidden, epsilon)


def grid(given: Tensors) -> int:
    """Patches along a side of the images that a transformer's positions are for.

    Raises:
        UserError: If they are not those of a square and one class token.
    """
    count = given.get("positions").shape[-2]
    side = math.isqrt(max(count - 1, 0))
    if side < 1 or side * side != count - 1:
        raise UserError(f"{given.path}: {count} positions are not those of a square of patches and one class token")
    return side


def words(network: Backbone) -> str:
    """The network's name, such as `ResNet-50` or `ViT of width 384, 12 blocks, 6 heads and patches of 16x16`."""
    if isinstance(network, ResNet):
        depth = 2 + (3 if network.bottleneck else 2) * sum(network.blocks)
        return f"ResNet-{depth}" + (f" of width {network.width}" if network.width != 64 else "")
    sizes = f"width {network.width}, {network.depth} blocks, {network.heads} heads"
    return f"ViT of {sizes} and patches of {network.patch}x{network.patch}"
