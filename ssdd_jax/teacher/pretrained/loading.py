"""Load a pretrained network: its variables and its description.

What a file holds outside of the network is set aside and named; a network that does not match exactly is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ssdd_jax.errors import UserError
from ssdd_jax.models.frozen import Backbone
from ssdd_jax.models.resnet import ResNet
from ssdd_jax.teacher import description
from ssdd_jax.teacher.description import Description
from ssdd_jax.teacher.pretrained import inputs, positions, reading, recognising
from ssdd_jax.teacher.pretrained.naming import COUNTERS
from ssdd_jax.teacher.pretrained.recognising import Tensors

# Most tensor names that an error message lists per kind.
SHOWN = 20
# Input side of networks trained on ImageNet.
IMAGENET_SIDE = 224


class Options(NamedTuple):
    """User settings for properties that a weight file may not specify; the defaults take them from the file.

    Attributes:
        size: Side of the network's inputs in pixels; 0 for that of its preprocessing or training. Positions of a
            transformer are interpolated to it.
        preprocessing: A key of `inputs.CONSTANTS`, `dataset` for the data set's moments, or `auto`.
        stem_padding: Padding of a 3x3 stem, 2 in solo-learn and KRR-ST.
        heads: Number of attention heads; 0 for the number in the file, or else the usual one for the width.
    """

    size: int = 0
    preprocessing: str = "auto"
    stem_padding: int = 2
    heads: int = 0


def load(
    path: str,
    *,
    image_shape: tuple[int, ...],
    moments: tuple[Any, Any],
    options: Options = Options(),
) -> tuple[dict[str, Any], Description]:
    """Load a pretrained network.

    Args:
        path: A file or folder; see `reading.KNOWN`.
        image_shape: `(H,W,C)` of the data set.
        moments: Mean and standard deviation of its channels, `(C,)` each.
        options: User settings.

    Returns:
        `params` and, with batch norm, `batch_stats` of `Description.network`, float32; and the description.

    Raises:
        UserError: If the file cannot be read, no network is recognised, a tensor of it is missing, left over or of
            another shape, or it does not accept the data set's images or the input size.
    """
    weights = reading.read(path)
    tensors = recognising.tensors(weights)
    network: Backbone
    # The description of a run's own teacher is complete; any other network is inferred from names and shapes.
    if "network" in weights.facts.get("about", {}):
        network = description.read(weights.facts["about"], weights.path).network
    else:
        inferred = {"stem_padding": options.stem_padding, "heads": options.heads}
        network = recognising.network(tensors, weights.facts, **inferred)
    specified = inputs.from_files(weights.facts, tensors.path)
    size = _size(tensors, network, options.size, specified.size)
    rule = positions.TIMM if weights.facts.get("config", {}).get("pretrained_cfg") else tensors.origin.positions
    variables, channels = _converted(tensors, network, size, rule)
    specified = specified._replace(size=size, shortest_side=specified.at(size))
    # A run's teacher knows of its own training; any other file tells by a classifier in it, unless the optimizer beside
    # it trains a weight and a bias alone: then the classifier evaluates a network that was trained in another way.
    alone = 0 < weights.facts.get("trained", 0) <= 2
    labelled = tensors.labelled(network.features) and not alone
    supervised = weights.facts.get("about", {}).get("supervised", labelled)
    described = _described(tensors, network, channels, specified, bool(supervised), image_shape, moments, options)
    return variables, described


def _converted(tensors: Tensors, network: Backbone, size: int, rule: positions.Rule) -> tuple[dict[str, Any], int]:
    """Convert tensors to the network's variables, and return these and the number of input channels."""
    # Parameter shapes of a ResNet do not depend on the images' side; a transformer's positions do.
    channels = tensors.get(("stem" if isinstance(network, ResNet) else "patches") + "/kernel").shape[2]
    side = 64 if isinstance(network, ResNet) else recognising.grid(tensors) * network.patch
    images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    shapes: Any = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), images)
    expected = traverse_util.flatten_dict({name: tree for name, tree in shapes.items()}, sep="/")
    # Collections are not part of a leaf's name in the tables: `params/stem/kernel` is `stem/kernel` there.
    leaves = {path: path.partition("/")[2] for path in expected}
    missing = [name for leaf in leaves.values() for name in tensors.names(leaf) if name not in tensors.arrays]
    arrays = {path: tensors.get(leaf) for path, leaf in leaves.items() if tensors.has(leaf)}
    misshapen = [
        f"{tensors.names(leaves[path])[0]} {tuple(array.shape)}, not {expected[path].shape}"
        for path, array in arrays.items()
        if array.shape != expected[path].shape
    ]
    # A tensor of the network that is not used may change the features (a squeeze-and-excite block, say): it is refused.
    used = {name for leaf in leaves.values() for name in tensors.used(leaf)} | set(tensors.outside())
    over = sorted(name for name in tensors.arrays if name not in used and name.rpartition(".")[2] not in COUNTERS)
    _refuse(tensors, network, missing=missing, misshapen=misshapen, over=over)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise UserError(f"{tensors.path} holds values that are not finite: it is damaged, or its training diverged")
    if not isinstance(network, ResNet):
        place = next(path for path, leaf in leaves.items() if leaf == "positions")
        arrays[place] = positions.interpolated(arrays[place], size // network.patch, rule)
    return traverse_util.unflatten_dict(arrays, sep="/"), channels


def _refuse(
    tensors: Tensors, network: Backbone, *, missing: Sequence[str], misshapen: Sequence[str], over: Sequence[str]
) -> None:
    mismatches = [
        f"{len(names)} {words} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for names, words in ((missing, "missing"), (misshapen, "of another shape"), (over, "left over"))
        if names
    ]
    if mismatches:
        raise UserError(
            f"{tensors.path} does not match a {recognising.words(network)} in the names of {tensors.origin.name}, "
            f"tensors are {', '.join(mismatches)}: give the whole state_dict of a supported network"
        )


def _described(
    tensors: Tensors,
    network: Backbone,
    channels: int,
    specified: inputs.Inputs,
    supervised: bool,
    image_shape: tuple[int, ...],
    moments: tuple[Any, Any],
    options: Options,
) -> Description:
    """Describe the network with its preprocessing: that of its files, at the side of the inputs that was selected."""
    # `auto` means the constants in the files. Without them, a ResNet with a 3x3 stem was most likely trained on images
    # of the data set's kind, and any other network with the usual constants of its origin. The published networks for
    # CIFAR without projections (akamaster's pytorch_resnet_cifar10) were trained with ImageNet's.
    name = options.preprocessing
    imagenet = isinstance(network, ResNet) and network.stem_size == 7
    if name == "auto" and isinstance(network, ResNet) and not imagenet and network.projection:
        name = "dataset" if specified.mean is None else name
    if name == "auto" and (specified.mean is None or specified.std is None):
        name = tensors.origin.preprocessing
    if name == "auto":
        assert specified.mean is not None and specified.std is not None
        constants = specified.mean, specified.std
    elif name == "dataset":
        mean, std = (tuple(float(value) for value in values) for values in moments)
        constants = mean, std
    else:
        constants = inputs.CONSTANTS[name]
    mean, std = inputs.channels_of(constants, channels, image_shape[2])
    # The summary is logged and stored, so that the user can check what was inferred.
    size, shortest = specified.size, specified.shortest_side
    sides = f"{size}x{size}" if size else f"{image_shape[0]}x{image_shape[1]}"
    crop = f", the centre of images resized to {shortest}" if shortest > size else ""
    origins = {"auto": "the file's own mean and std", "dataset": "the data set's mean and std", **inputs.WORDS}
    stem = f"{network.stem_size}x{network.stem_size} stem" if isinstance(network, ResNet) else ""
    if stem and not imagenet:
        stem += f" with padding {network.stem_padding}"
    words = (
        f"{description.SUPERVISED + ' ' if supervised else ''}{recognising.words(network)} "
        f"in the names of {tensors.origin.name}{f' under {tensors.prefix}' if tensors.prefix else ''}",
        *([stem] if stem else []),
        f"{sides} inputs{crop}",
        origins.get(name, f"solo-learn's mean and std for {name}"),
        f"{network.features:,} features",
    )
    return Description(
        network, mean, std, size, specified.resize, ", ".join(words), shortest, supervised, tensors.aside()
    )


def _size(tensors: Tensors, network: Backbone, requested: int, specified: int) -> int:
    """Select the side of the network's inputs; 0 to leave images in their size."""
    if isinstance(network, ResNet):
        return requested or specified or (IMAGENET_SIDE if network.stem_size == 7 else 0)
    patch = network.patch
    size = requested or specified or recognising.grid(tensors) * patch
    if size % patch:
        where = f"config.teacher.input_size={requested}" if requested else f"the input size {size} of the files"
        low = max(size // patch, 1) * patch
        raise UserError(
            f"{where} is not a multiple of {patch}, the side of the patches in {tensors.path}: "
            f"set config.teacher.input_size to {low} or {low + patch}"
        )
    return size
