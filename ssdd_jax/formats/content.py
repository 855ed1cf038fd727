"""Pairs and facts in the common structure of all forms, and the checks that they share."""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ssdd_jax import distilled
from ssdd_jax.data import conversion, preprocess
from ssdd_jax.errors import UserError

CHANNELS = (1, 3)
# Name of the method of a set from elsewhere whose facts name none.
IMPORTED = "imported"
# Metadata that is copied from a set to a form and back, if available.
ABOUT = ("method", "title", "dataset", "class_names", "labels", "teacher", "N", "random_images", "version")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# Of these and other facts: what they must be, and in words.
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("method", "title", "dataset", "teacher", "version"), (lambda value: isinstance(value, str), "text")
    ),
    **dict.fromkeys(("N", "random_images"), (lambda value: _is_whole(value) and value > 0, "a whole number above 0")),
    "class_names": (lambda value: isinstance(value, list) and all(isinstance(x, str) for x in value), "a list of text"),
    "labels": (lambda value: isinstance(value, list) and all(map(_is_whole, value)), "a list of whole numbers"),
    "soft_labels": (lambda value: isinstance(value, bool), "true or false"),
}


class Content(NamedTuple):
    """Pairs and facts of a form.

    Attributes:
        images: `(P,H,W,C)`: float32 network inputs, or uint8 pixels, which `to_set` normalises.
        targets: Regression targets `(P,D)`, float32.
        facts: Entries of `constants.json`; any of them may be missing.
    """

    images: np.ndarray
    targets: np.ndarray
    facts: Mapping[str, Any]


def require(module: str, extra: str, purpose: str) -> Any:
    """Import an optional library.

    Args:
        module: Name of the module.
        extra: The extra of this package that installs it.
        purpose: The purpose of the import, for the message.

    Returns:
        The module.

    Raises:
        UserError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise UserError(f"{purpose} needs {name}, which is missing: pip install 'ssdd_jax[{extra}]'") from None


def check_inputs(where: str, array: np.ndarray, *, channels_first: bool = False) -> np.ndarray:
    """Check network inputs and convert them to float32, channels last.

    Args:
        where: Name or path of the array, with which messages begin.
        array: Floats `(P,H,W,C)`, or `(P,C,H,W)`.
        channels_first: Whether the shape must be `(P,C,H,W)`, as in PyTorch.

    Returns:
        Float32 `(P,H,W,C)`.

    Raises:
        UserError: If the array has another shape or type, or values that are not finite.
    """
    check_image_shape(where, array, channels_first=channels_first)
    inputs = _finite(where, array, "network inputs")
    return np.ascontiguousarray(inputs.transpose(0, 2, 3, 1)) if channels_first else inputs


def check_image_shape(where: str, array: np.ndarray, *, channels_first: bool = False) -> None:
    """Check that images have the shape `(P,H,W,C)`, or `(P,C,H,W)`, with 1 or 3 channels.

    Args:
        where: Name or path of the array, with which messages begin.
        array: The images.
        channels_first: Whether the shape must be `(P,C,H,W)`.

    Raises:
        UserError: If the array has another shape.
    """
    expected, axis, other = ("(P,C,H,W)", 1, 3) if channels_first else ("(P,H,W,C)", 3, 1)
    # The other order of axes is the most common mistake: the message shows the transposition.
    if array.ndim == 4 and array.shape[axis] not in CHANNELS and array.shape[other] in CHANNELS:
        order, permutation = ("last", "(0, 3, 1, 2)") if channels_first else ("first", "(0, 2, 3, 1)")
        raise UserError(
            f"{where} has the shape {array.shape}, channels {order}: save it as {expected}, transposed by {permutation}"
        )
    if array.ndim != 4 or array.shape[axis] not in CHANNELS or array.size == 0:
        raise UserError(f"{where} has the shape {array.shape}: {expected} with 1 or 3 channels is needed")


def check_targets(where: str, array: np.ndarray) -> np.ndarray:
    """Check regression targets and convert them to float32.

    Args:
        where: Name or path of the array, with which messages begin.
        array: Floats `(P,D)`.

    Returns:
        Float32 `(P,D)`.

    Raises:
        UserError: If the array has another shape or type, such as integer labels, or values that are not finite.
    """
    array = conversion.widened(array)
    # Integers are most likely class labels, the targets of supervised distillation.
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{where} holds {array.dtype}, apparently labels: target features, floats (P,D), are needed")
    if array.ndim != 2 or array.size == 0:
        raise UserError(f"{where} has the shape {array.shape}: target features (P,D) are needed")
    return _finite(where, array, "target features")


def _finite(where: str, array: np.ndarray, content: str) -> np.ndarray:
    array = conversion.widened(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{where} holds {array.dtype}: {content} as floats are needed")
    # A float64 beyond the range of float32 becomes infinite without a warning, and is refused below.
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(converted).all():
        raise UserError(
            f"{where} holds values that are not finite in float32: it is damaged, or the distillation diverged"
        )
    return converted


def to_set(where: pathlib.Path, form: str, content: Content) -> distilled.DistilledSet:
    """Build a distilled set that stores the pairs unchanged.

    Args:
        where: The path that was read, for messages.
        form: Name of the form.
        content: The pairs and their facts.

    Returns:
        A set of the kind `pairs`. Missing constants default to the identity; for uint8 pixels without constants, the
        mean and standard deviation default to those of the pixels.

    Raises:
        UserError: If the numbers of images and targets differ, or a fact is invalid.
    """
    images, targets, facts = content
    if len(images) != len(targets):
        raise UserError(f"{where} holds {len(images)} images and {len(targets)} targets: one target each is needed")
    # Floats are network inputs already; only bytes still need the normalisation.
    constants = _preprocessing(where, content)
    inputs = constants.images(jnp.asarray(images)) if images.dtype == np.uint8 else jnp.asarray(images)
    rate = facts.get("learning_rate")
    if rate is not None:
        _number(where, "learning_rate", rate, (), positive=True)
        rate = float(rate)
    for name, value in facts.items():
        if value is not None and name in KINDS and not KINDS[name][0](value):
            raise UserError(f"{where}: {name} is {value!r}, and must be {KINDS[name][1]}")
    about = {"method": IMPORTED, "from": form} | {k: facts[k] for k in ABOUT if facts.get(k)}
    soft = bool(facts.get("soft_labels", False))
    return distilled.from_pairs(inputs, jnp.asarray(targets), constants, learning_rate=rate, soft_labels=soft, **about)


def _preprocessing(where: pathlib.Path, content: Content) -> preprocess.Preprocessing:
    images, targets, facts = content
    channels, dim = images.shape[3], targets.shape[1]
    if ("image_mean" in facts) != ("image_std" in facts):
        raise UserError(f"{where}: image_mean and image_std are given together or not at all")
    # The identity: network inputs equal pixels and targets equal features.
    defaults = {
        "image_mean": np.zeros(channels, np.float32),
        "image_std": np.ones(channels, np.float32),
        "target_mean": np.zeros(dim, np.float32),
        "target_scale": np.ones((), np.float32),
    }
    if "image_mean" not in facts and images.dtype == np.uint8:
        defaults["image_mean"], defaults["image_std"] = preprocess.channel_moments(images)
    return preprocess.Preprocessing(
        **{
            name: jnp.asarray(
                _number(where, name, facts.get(name, default), default.shape, positive=name.endswith(("std", "scale")))
            )
            for name, default in defaults.items()
        }
    )


def _number(where: pathlib.Path, name: str, value: Any, shape: tuple[int, ...], *, positive: bool) -> np.ndarray:
    """Convert a fact to float32 of a shape; a scalar is broadcast."""
    # What is no number becomes an empty array, which the check of the shape refuses.
    try:
        array = np.asarray(value, np.float32)
        array = np.broadcast_to(array, shape).copy() if array.ndim == 0 else array
    except (TypeError, ValueError):
        array = np.empty(0, np.float32)
    if array.shape != shape or not np.isfinite(array).all() or (positive and (array <= 0).any()):
        count = f"{shape[0]} finite numbers" if shape else "one finite number"
        raise UserError(f"{where}: {name} must be {count}{' above 0' if positive else ''}")
    return array
