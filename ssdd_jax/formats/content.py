"""What every form carries: pairs and facts, and the checks that all of them share."""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ssdd_jax import distilled
from ssdd_jax.data import preprocess
from ssdd_jax.errors import UserError

CHANNELS = (1, 3)
# Facts that are copied from a set to a form and back, where they are known.
ABOUT = ("method", "dataset", "class_names", "teacher", "N", "version")


class Content(NamedTuple):
    """What was found in a form.

    Attributes:
        images: `(P,H,W,C)`: float32 network inputs, or uint8 pixels that are normalised when the set is made.
        targets: Regression targets `(P,D)`, float32.
        facts: As `constants.json` has them; any of them may be missing.
    """

    images: np.ndarray
    targets: np.ndarray
    facts: Mapping[str, Any]


def require(module: str, extra: str, purpose: str) -> Any:
    """An optional library.

    Args:
        module: Its name.
        extra: The extra of this package that brings it.
        purpose: What it is needed for, for the message.

    Raises:
        UserError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise UserError(f"{purpose} needs {name}, which is missing: pip install 'ssdd_jax[{extra}]'") from None


def check_inputs(where: str, array: np.ndarray, *, channels_first: bool = False) -> np.ndarray:
    """Network inputs, checked.

    Args:
        where: What the message begins with.
        array: Floats `(P,H,W,C)`, or `(P,C,H,W)`.
        channels_first: Whether it must be the latter, as PyTorch has it.

    Returns:
        Float32 `(P,H,W,C)`.

    Raises:
        UserError: If it is something else, in words that say what to do.
    """
    check_image_shape(where, array, channels_first=channels_first)
    found = _finite(where, array, "network inputs")
    return np.ascontiguousarray(found.transpose(0, 2, 3, 1)) if channels_first else found


def check_image_shape(where: str, array: np.ndarray, *, channels_first: bool = False) -> None:
    """Refuse what is not `(P,H,W,C)`, or `(P,C,H,W)`, with 1 or 3 channels.

    Raises:
        UserError: If it is not.
    """
    wanted, axis, other = ("(P,C,H,W)", 1, 3) if channels_first else ("(P,H,W,C)", 3, 1)
    if array.ndim == 4 and array.shape[axis] not in CHANNELS and array.shape[other] in CHANNELS:
        order, permutation = ("last", "(0, 3, 1, 2)") if channels_first else ("first", "(0, 2, 3, 1)")
        raise UserError(
            f"{where} has the shape {array.shape}, channels {order}: save it as {wanted}, transposed by {permutation}"
        )
    if array.ndim != 4 or array.shape[axis] not in CHANNELS or array.size == 0:
        raise UserError(f"{where} has the shape {array.shape}: {wanted} with 1 or 3 channels is needed")


def check_targets(where: str, array: np.ndarray) -> np.ndarray:
    """Regression targets, checked.

    Args:
        where: What the message begins with.
        array: Floats `(P,D)`.

    Returns:
        Float32 `(P,D)`.

    Raises:
        UserError: If it is something else, such as integer labels.
    """
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{where} holds {array.dtype}, labels as it seems: target features, floats (P,D), are needed")
    if array.ndim != 2 or array.size == 0:
        raise UserError(f"{where} has the shape {array.shape}: target features (P,D) are needed")
    return _finite(where, array, "target features")


def _finite(where: str, array: np.ndarray, what: str) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{where} holds {array.dtype}: {what} as floats are needed")
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(found).all():
        raise UserError(f"{where} holds numbers that are not finite in float32: it is damaged, or its making diverged")
    return found


def to_set(where: pathlib.Path, form: str, content: Content) -> distilled.DistilledSet:
    """The set that stores the pairs as they are.

    Args:
        where: The place that was read, for messages.
        form: The form that it was in.
        content: What was found.

    Returns:
        A set of the kind `pairs`. Constants that nothing says are those that change nothing, but uint8 pixels are
        then normalised by their own moments.

    Raises:
        UserError: If counts differ, or a fact is not what it must be.
    """
    images, targets, facts = content
    if len(images) != len(targets):
        raise UserError(f"{where} holds {len(images)} images and {len(targets)} targets: one target each is needed")
    constants = _preprocessing(where, content)
    inputs = constants.images(jnp.asarray(images)) if images.dtype == np.uint8 else jnp.asarray(images)
    rate = facts.get("learning_rate")
    if rate is not None:
        _number(where, "learning_rate", rate, (), positive=True)
        rate = float(rate)
    about = {"method": "imported", "from": form} | {k: facts[k] for k in ABOUT if facts.get(k)}
    soft = bool(facts.get("soft_labels", False))
    return distilled.from_pairs(inputs, jnp.asarray(targets), constants, learning_rate=rate, soft_labels=soft, **about)


def _preprocessing(where: pathlib.Path, content: Content) -> preprocess.Preprocessing:
    images, targets, facts = content
    channels, dim = images.shape[3], targets.shape[1]
    if ("image_mean" in facts) != ("image_std" in facts):
        raise UserError(f"{where}: image_mean and image_std are given together or not at all")
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
    """A fact as float32 of a shape; one number stands for all of them."""
    try:
        found = np.asarray(value, np.float32)
        found = np.broadcast_to(found, shape).copy() if found.ndim == 0 else found
    except (TypeError, ValueError):
        found = np.empty(0, np.float32)
    if found.shape != shape or not np.isfinite(found).all() or (positive and (found <= 0).any()):
        count = f"{shape[0]} finite numbers" if shape else "one finite number"
        raise UserError(f"{where}: {name} must be {count}{' above 0' if positive else ''}")
    return found
