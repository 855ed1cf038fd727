"""Recognise a network from the names and shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssdd_jax.errors import UserError
from ssdd_jax.models.frozen import Backbone
from ssdd_jax.models.resnet import STEM_SIZES, ResNet
from ssdd_jax.models.vit import Encoder
from ssdd_jax.teacher.pretrained.naming import COUNTERS, NOT_LABELS, ORIGINS, PARTS, SECOND, Origin
from ssdd_jax.teacher.pretrained.reading import Weights, array

# Heads of published transformers by width, where a head does not have 64 dimensions: ViT-SO400M, -H, -g and -G.
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
# ResNets of timm with the tensors of plain ones: they blur or average before a stride.
BLURRED = r"\w*resnet(blur|aa)\d.*"


class Tensors(NamedTuple):
    """Tensors of a network in the naming scheme of one origin.

    Attributes:
        path: The file or folder, for messages.
        arrays: Tensors by the names in the file, see `reading.array`.
        origin: The naming scheme.
        prefix: Common prefix of all names of the network.
    """

    path: str
    arrays: Mapping[str, Any]
    origin: Origin
    prefix: str

    def names(self, path: str) -> tuple[str, ...]:
        """Return the names in the file for a leaf of this package."""
        return tuple(self.prefix + name for name in self.origin.names(path))

    def has(self, path: str) -> bool:
        """Return whether all tensors of a leaf of this package are in the file."""
        names = self.names(path)
        return bool(names) and all(name in self.arrays for name in names)

    def get(self, path: str) -> np.ndarray:
        """Convert the tensors of a leaf to this package's order of axes.

        Args:
            path: The leaf, such as `stem/kernel`.

        Returns:
            The array, `(h,w,I,O)` for a convolution and `(I,O)` for a linear layer.

        Raises:
            UserError: If a tensor is missing.
        """
        for name in self.names(path):
            if name not in self.arrays:
                raise UserError(f"{self.path}: {name} is missing, which is needed to recognise the network")
        parts = [array(self.arrays[name]) for name in self.names(path)]
        # Query, key and value are concatenated along the outputs, PyTorch's first axis. PyTorch's kernels are (O,I,h,w)
        # and (O,I).
        values = np.concatenate(parts) if len(parts) > 1 else parts[0]
        if self.origin.table and path.endswith("/kernel"):
            values = values.transpose(2, 3, 1, 0) if values.ndim == 4 else values.T
        # A layer scale multiplies the outputs of a linear layer, here the last axis of its kernel and its bias.
        return values * self._factor(path)

    def _factor(self, path: str) -> Any:
        scales = [self.prefix + name for name in self.origin.scale(path) if self.prefix + name in self.arrays]
        return array(self.arrays[scales[0]]) if scales else np.float32(1.0)

    def used(self, path: str) -> list[str]:
        """List all tensors in the file that a leaf of this package is computed from."""
        scales = [self.prefix + name for name in self.origin.scale(path) if self.prefix + name in self.arrays]
        return [*self.names(path), *scales]

    def outside(self) -> list[str]:
        """List the tensors in the file that do not belong to the network: heads, other networks, states."""
        parts = self.origin.parts or PARTS[self.origin.kind]
        own = [name for name in self.arrays if name.startswith(self.prefix)]
        own = [name for name in own if re.fullmatch(parts, name[len(self.prefix) :].split(".")[0])]
        return sorted(self.arrays.keys() - set(own))

    def aside(self) -> tuple[str, ...]:
        """List the modules that do not belong to the network, by the first part of their names that differs."""
        modules = {}
        for name in self.outside():
            parts, prefix = name.split("."), self.prefix.split(".")
            shared = next((i for i, (a, b) in enumerate(zip(parts, prefix, strict=False)) if a != b), len(parts) - 1)
            if parts[-1] not in COUNTERS:
                modules[parts[shared]] = True
        return tuple(modules)

    def labelled(self, features: int) -> bool:
        """Return whether all that the file holds besides the network is a linear layer on its features: a classifier.

        Args:
            features: Length of a feature vector. Transformers may give the classifier the mean of the patches as well.
        """
        outside = [name for name in self.outside() if ".pooler." not in f".{name}"]
        names = [name for name in outside if math.prod(self.arrays[name].shape) > 1]  # not counters and other numbers
        layers = sorted({name.rpartition(".")[0] for name in names})
        if len(layers) != 1 or not self.origin.table or re.fullmatch(NOT_LABELS, layers[0]):
            return False
        weight = self.arrays.get(f"{layers[0]}.weight")
        shape = () if weight is None else tuple(weight.shape)
        return len(shape) == 2 and len(names) <= 2 and shape[0] > 1 and shape[1] % features == 0


def tensors(found: Weights) -> Tensors:
    """Select the tensors of the network among those of a file.

    Args:
        found: The content of the file.

    Returns:
        The tensors, with the origin and the prefix of their names.

    Raises:
        UserError: If no network is recognised, or more than one.
    """
    # DINOv2's training splits its blocks into chunks, in which they keep their numbers.
    named = {re.sub(r"\bblocks\.\d+\.(\d+)\.", r"blocks.\1.", name): value for name, value in found.tensors.items()}
    # Longest anchor first: one origin's anchor may end in that of another.
    places = []
    for origin in sorted(ORIGINS, key=lambda origin: -len(origin.anchor)):
        before = {name.removesuffix(origin.anchor) for name in named if name.endswith(origin.anchor)}
        # A prefix consists of whole parts.
        prefixes = _foremost([prefix for prefix in before if prefix == "" or prefix.endswith(".")], named)
        places = [Tensors(str(found.path), named, origin, prefix) for prefix in prefixes]
        if places:
            break
    if not places:
        examples = ", ".join(sorted(named)[:3])
        raise UserError(
            f"{found.path} holds no ResNet or vision transformer with the names of a supported library (it begins with "
            f"{examples}): torchvision, timm, solo-learn, KRR-ST, DINO, MMPretrain, Hugging Face and this package are "
            "supported"
        )
    if len(places) > 1:
        listed = ", ".join(repr(place.prefix) for place in places)
        raise UserError(f"{found.path} holds several networks, under {listed}: save the tensors of one alone")
    return places[0]


def _foremost(prefixes: Sequence[str], named: Mapping[str, Any]) -> list[str]:
    """Select the networks that a file is about: not a method's second ones, and a network only once."""
    ranked = sorted(prefixes, key=lambda prefix: (_rank(prefix), len(prefix), prefix))
    ranked = [prefix for prefix in ranked if _rank(prefix) == _rank(ranked[0])]
    # Modules that share a network, such as BYOL's `net` and `online_encoder.net`, save it under several names.
    if len(ranked) > 1 and all(_equal(named, ranked[0], other) for other in ranked[1:]):
        return ranked[:1]
    return ranked


def _rank(prefix: str) -> int:
    """Return the precedence of a network by its prefix, lower first."""
    words = set(re.split(r"[._]", prefix.lower()))
    # DINO's teacher, an average of the student, is the better network, and the one that DINO evaluates. Where neither
    # word is used, the average is the second one.
    return 3 if words & SECOND else 2 if "student" in words else 1 if "teacher" in words else 0


def _equal(named: Mapping[str, Any], first: str, second: str) -> bool:
    """Return whether all tensors under the first prefix are under the second one too."""
    names = [name[len(first) :] for name in named if name.startswith(first) and not name.startswith(second)]
    shared = [name for name in names if second + name in named]
    return bool(shared) and all(
        np.array_equal(array(named[first + name]), array(named[second + name])) for name in shared
    )


def network(given: Tensors, facts: Mapping[str, Any], *, stem_padding: int, heads: int) -> Backbone:
    """Infer the network that tensors belong to.

    Args:
        given: The tensors.
        facts: Content of the files beside the weights, see `reading.Weights`.
        stem_padding: Padding of a 3x3 stem, which cannot be inferred from tensors.
        heads: Number of attention heads; 0 for the number in the files, or else the usual one for the width.

    Returns:
        The network, without its variables.

    Raises:
        UserError: If the tensors are not those of a supported network.
    """
    config = facts.get("config", {})
    if given.origin.kind == "resnet":
        return _resnet(given, config, stem_padding)
    try:
        return _vit(given, config, heads)
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{given.path}: its config.json is invalid ({error}): restore or correct it") from None


def _resnet(tensors: Tensors, config: Mapping[str, Any], stem_padding: int) -> ResNet:
    # These options of Hugging Face change the function of the network but not its tensors.
    for key, only in (
        ("downsample_in_bottleneck", False),
        ("downsample_in_first_stage", False),
        ("hidden_act", "relu"),
    ):
        if config.get(key, only) != only:
            raise UserError(f"{tensors.path}: a ResNet with {key}={config[key]!r} is not supported, only {only!r}")
    if re.fullmatch(BLURRED, str(config.get("architecture", ""))):
        raise UserError(f"{tensors.path}: {config['architecture']} is not supported: it blurs before its strides")
    kernel = tensors.get("stem/kernel")
    if kernel.ndim != 4 or kernel.shape[0] not in STEM_SIZES or kernel.shape[0] != kernel.shape[1]:
        raise UserError(f"{tensors.path}: the stem's kernel {kernel.shape} is neither 3x3 nor 7x7")
    # Counts the stages, and the blocks of each stage, from the names.
    blocks: list[int] = []
    while tensors.has(f"stage{len(blocks) + 1}_block1/conv1/kernel"):
        stage, count = len(blocks) + 1, 1
        while tensors.has(f"stage{stage}_block{count + 1}/conv1/kernel"):
            count += 1
        blocks.append(count)
    size, width = kernel.shape[0], kernel.shape[3]
    bottleneck = tensors.has("stage1_block1/conv3/kernel")
    # Without any projection the shortcuts have no parameters, as in the networks for CIFAR of the ResNet paper, whose
    # stem has a padding of 1.
    stages = range(2, len(blocks) + 1)
    projection = bottleneck or not stages or any(tensors.has(f"stage{i}_block1/shortcut/kernel") for i in stages)
    padding = tensors.origin.stem_padding if projection else 1
    padding = (stem_padding if padding is None else padding) if size == 3 else 2
    return ResNet(width, tuple(blocks), bottleneck, stem_size=size, stem_padding=padding, projection=projection)


def _vit(tensors: Tensors, config: Mapping[str, Any], heads: int) -> Encoder:
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(
            f"{tensors.path}: a transformer with hidden_act={config['hidden_act']!r} is not supported, only 'gelu'"
        )
    kernel, hidden = tensors.get("patches/kernel"), tensors.get("block0/mlp1/kernel").shape[-1]
    if kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1]:
        raise UserError(f"{tensors.path}: the patches' kernel {kernel.shape} is not one of square patches")
    depth, width = 0, kernel.shape[3]
    while tensors.has(f"block{depth}/norm1/scale"):
        depth += 1
    # The shape of the attention kernels does not reveal the heads. Hugging Face and timm may state them.
    stated = config.get("num_attention_heads") or (config.get("model_args") or {}).get("num_heads") or 0
    heads = heads or int(stated) or HEADS.get(width, max(width // 64, 1))
    if heads < 1 or width % heads:
        raise UserError(f"{tensors.path}: {heads} heads do not divide the width {width}: set config.teacher.heads")
    epsilon = float(config.get("layer_norm_eps", tensors.origin.epsilon))
    return Encoder(kernel.shape[0], width, depth, heads, hidden, epsilon)


def grid(given: Tensors) -> int:
    """Compute the number of patches along a side of the images, from a transformer's positions.

    Args:
        given: The tensors of the transformer.

    Returns:
        The number of patches along a side.

    Raises:
        UserError: If the positions are not those of a square of patches and one class token.
    """
    count = given.get("positions").shape[-2]
    side = math.isqrt(max(count - 1, 0))
    if side < 1 or side * side != count - 1:
        raise UserError(f"{given.path}: {count} positions are not those of a square of patches and one class token")
    return side


def words(network: Backbone) -> str:
    """Name a network, such as `ResNet-50` or `ViT of width 384, 12 blocks, 6 heads and patches of 16x16`."""
    if isinstance(network, ResNet):
        depth = 2 + (3 if network.bottleneck else 2) * sum(network.blocks)
        return f"ResNet-{depth}" + (f" of width {network.width}" if network.width != 64 else "")
    sizes = f"width {network.width}, {network.depth} blocks, {network.heads} heads"
    return f"ViT of {sizes} and patches of {network.patch}x{network.patch}"
