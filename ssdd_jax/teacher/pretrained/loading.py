"""From a file of weights to a network's variables and what it is; whatever does not fit is refused."""

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
from ssdd_jax.teacher.pretrained import inputs, reading, recognising
from ssdd_jax.teacher.pretrained.naming import COUNTERS, HEADS
from ssdd_jax.teacher.pretrained.recognising import Tensors

# Names of a list that a message gives.
SHOWN = 20
# The side that ImageNet's networks were trained with.
IMAGENET_SIDE = 224


class Options(NamedTuple):
    """What the user says of a file, where it does not say it itself; the defaults leave all to the file.

    Attributes:
        size: Side of the network's inputs in pixels; 0 for what it was made for.
        preprocessing: A key of `inputs.CONSTANTS`, `dataset` for the data set's moments, or `auto`.
        stem_padding: Of a 3x3 stem: solo-learn and KRR-ST have 2.
        heads: Of a vision transformer; 0 for what the file says, else one for each 64 numbers.
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
    """A network that was trained elsewhere.

    Args:
        path: A file or folder; see `reading.KNOWN`.
        image_shape: `(H,W,C)` of the data set.
        moments: Mean and standard deviation of its channels, `(C,)` each.
        options: What the user says.

    Returns:
        `params` and, with batch norm, `batch_stats` of `Description.network`, float32; and the description.

    Raises:
        UserError: If the file cannot be read, no network is recognised, a tensor is missing, left over or of another
            shape, or the network does not take the data set's images.
    """
    found = reading.read(path)
    given = recognising.tensors(found)
    network: Backbone
    if "network" in found.facts.get("about", {}):
        network = description.read(found.facts["about"], found.path).network
    else:
        known = {"stem_padding": options.stem_padding, "heads": options.heads}
        network = recognising.network(given, found.facts, **known)
    variables, channels = _converted(given, network)
    described = _described(given, network, channels, found, image_shape, moments, options)
    return variables, described


def _converted(given: Tensors, network: Backbone) -> tuple[dict[str, Any], int]:
    """The network's variables, and the number of channels that it takes."""
    channels = given.get(("stem" if isinstance(network, ResNet) else "patches") + "/kernel").shape[2]
    side = 64 if isinstance(network, ResNet) else recognising.grid(given) * network.patch
    images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    shapes: Any = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), images)
    wanted = traverse_util.flatten_dict({name: tree for name, tree in shapes.items()}, sep="/")
    paths = {path: path.partition("/")[2] for path in wanted}
    missing = [name for here in paths.values() for name in given.names(here) if name not in given.arrays]
    arrays = {path: given.get(here) for path, here in paths.items() if given.has(here)}
    misshapen = [
        f"{given.names(paths[path])[0]} {tuple(array.shape)}, not {wanted[path].shape}"
        for path, array in arrays.items()
        if array.shape != wanted[path].shape
    ]
    used = {name for here in paths.values() for name in given.used(here)}
    over = sorted(name for name in given.arrays if name not in used and not _aside(name, given.prefix))
    _refuse(given, network, missing=missing, misshapen=misshapen, over=over)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise UserError(f"{given.path} holds numbers that are not finite: it is damaged, or its training diverged")
    return traverse_util.unflatten_dict(arrays, sep="/"), channels


def _aside(name: str, prefix: str) -> bool:
    """Whether a tensor is known to be no part of the network: a head, the second network of a method, or a counter."""
    if name.rpartition(".")[2] in COUNTERS:
        return True
    parts = prefix.split(".")[:-1]
    outer = ["".join(f"{part}." for part in parts[:count]) for count in range(len(parts) + 1)]
    return any(name.startswith(before) and name[len(before) :].split(".")[0] in HEADS for before in outer)


def _refuse(
    given: Tensors, network: Backbone, *, missing: Sequence[str], misshapen: Sequence[str], over: Sequence[str]
) -> None:
    told = [
        f"{len(names)} {words} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for names, words in ((missing, "missing"), (misshapen, "of another shape"), (over, "left over"))
        if names
    ]
    if told:
        raise UserError(
            f"{given.path} is not quite a {recognising.words(network)} in the names of {given.origin.name}, tensors "
            f"are {', '.join(told)}: give the whole state_dict of a network that is known here"
        )


def _described(
    given: Tensors,
    network: Backbone,
    channels: int,
    found: reading.Found,
    image_shape: tuple[int, ...],
    moments: tuple[Any, Any],
    options: Options,
) -> Description:
    known = inputs.said(found.facts, given.path)
    name = options.preprocessing
    imagenet = isinstance(network, ResNet) and network.stem_size == 7
    if name == "auto" and isinstance(network, ResNet) and not imagenet:
        name = "dataset" if known.mean is None else name
    if name == "auto" and (known.mean is None or known.std is None):
        name = given.origin.preprocessing
    if name == "auto":
        assert known.mean is not None and known.std is not None
        constants = known.mean, known.std
    elif name == "dataset":
        mean, std = (tuple(float(value) for value in values) for values in moments)
        constants = mean, std
    else:
        constants = inputs.CONSTANTS[name]
    mean, std = inputs.channels_of(constants, channels, image_shape[2])
    size = _size(given, network, options.size, known.size)
    shown = f"{size}x{size}" if size else f"{image_shape[0]}x{image_shape[1]}"
    telling = {"auto": "the file's own mean and std", "dataset": "the data set's mean and std", **inputs.WORDS}
    stem = f"{network.stem_size}x{network.stem_size} stem" if isinstance(network, ResNet) else ""
    if stem and not imagenet:
        stem += f" with padding {network.stem_padding}"
    words = (
        f"{recognising.words(network)} in the names of {given.origin.name}"
        f"{f' under {given.prefix}' if given.prefix else ''}",
        *([stem] if stem else []),
        f"{shown} inputs",
        telling.get(name, f"solo-learn's mean and std for {name}"),
        f"{network.features:,} features",
    )
    return Description(network, mean, std, size, known.resize, ", ".join(words))


def _size(given: Tensors, network: Backbone, asked: int, said: int) -> int:
    """Side of the network's inputs; 0 for images as they are."""
    if isinstance(network, ResNet):
        return asked or said or (IMAGENET_SIDE if network.stem_size == 7 else 0)
    side = recognising.grid(given) * network.patch
    if asked not in (0, side):
        raise UserError(
            f"config.teacher.input_size={asked} does not fit {given.path}, whose positions are for {side}x{side}: "
            f"set it to 0 or {side}"
        )
    return side
