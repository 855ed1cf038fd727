"""Labels as people have them: the classes are the labels that occur, numbered from 0 in ascending order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssdd_jax.errors import UserError

# From this number of images on, classes of fewer than two images each are doubtful.
MANY = 100


class Classes(NamedTuple):
    """Labels of all parts of a data set as classes.

    Attributes:
        parts: Labels of each part, int32 `(n,)` in `[0, classes)`; None for a part without labels.
        names: Name of each class, in ascending order of the labels or in the order of the given names.
        notes: What a user should know, one line each.
    """

    parts: tuple[np.ndarray | None, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def check(where: str, labels: np.ndarray, count: int) -> np.ndarray:
    """Check the labels of one part.

    Args:
        where: File or argument that holds them, for messages.
        labels: One label per image, `(n,)` or `(n,1)`: integers, booleans, text, or whole numbers of any type.
        count: Number of images n.

    Returns:
        Labels `(n,)`: int64, uint64 or text.

    Raises:
        UserError: If they have another shape or type, or another number than the images.
    """
    # Keras stores the labels of CIFAR as a column.
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.shape[0] == count:
        raise UserError(
            f"{where} holds labels as {labels.dtype} of shape {labels.shape}; one label per image is needed: "
            "labels.argmax(1), if these are one-hot"
        )
    if labels.dtype == object and all(isinstance(label, str) for label in labels.ravel()):
        labels = labels.astype(str)
    labels = text(labels)
    whole = labels.dtype.kind == "f" and bool(np.isfinite(labels).all()) and bool((labels == np.rint(labels)).all())
    if labels.ndim != 1 or not (labels.dtype.kind in "iubU" or whole):
        raise UserError(
            f"{where} holds labels as {labels.dtype} of shape {labels.shape}; one whole number or name per image is "
            "needed"
        )
    if len(labels) != count:
        raise UserError(f"{where} holds {len(labels)} labels for {count} images")
    return labels if labels.dtype.kind in "uU" else labels.astype(np.int64)


def text(array: np.ndarray) -> np.ndarray:
    """Decode an array `(...)` of byte strings as UTF-8, with other bytes escaped; others are returned as they are."""
    return np.char.decode(array, "utf-8", "backslashreplace") if array.dtype.kind == "S" else array


def classes(where: str, parts: Sequence[np.ndarray | None], names: Sequence[str] = ()) -> Classes:
    """Number the labels that occur in any part from 0 on.

    Args:
        where: File or argument that holds the labels, for messages.
        parts: Labels of each part `(n,)`, as `check` returns them, or None.
        names: Names of the classes: of the labels 0, 1, ... if all lie in that range, else of the labels that occur, in
            their order; or all labels themselves, in the order that the classes are to have. Empty to name each class
            by its label.

    Returns:
        The classes. They are the labels themselves if these are 0 to K-1.

    Raises:
        UserError: If the names do not fit the labels, or there are negative labels other than -1 beside 1.
    """
    labelled = [part for part in parts if part is not None and len(part)]
    if not labelled:
        return Classes(tuple(parts), ())
    if len({part.dtype.kind == "U" for part in labelled}) > 1:
        raise UserError(f"{where} holds labels that are names and labels that are numbers: bring all to one")
    unique = np.unique(np.concatenate([np.unique(part) for part in labelled]))
    if unique.dtype.kind == "U":
        unique, chosen = _of_text(where, unique, names)
    else:
        chosen = _of_numbers(where, unique, names)
    notes = _notes(unique, chosen, names, len(labelled[0]))
    return Classes(tuple(None if part is None else _positions(part, unique) for part in parts), chosen, notes)


def rare(labels: np.ndarray, names: Sequence[str], count: int) -> list[str]:
    """Return the names of the classes that have fewer than `count` of the labels, int32 `(n,)`."""
    counts = np.bincount(labels, minlength=len(names))
    return [name for name, found in zip(names, counts, strict=True) if found < count]


def _of_text(where: str, unique: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the labels in the order of the classes, and their names."""
    unknown = sorted(set(unique.tolist()) - set(names)) if names else []
    if unknown:
        raise UserError(f"{where} holds the label {unknown[0]!r}, which is not among the class names")
    ordered = [name for name in names if name in set(unique.tolist())] if names else unique.tolist()
    return np.array(ordered), tuple(ordered)


def _of_numbers(where: str, unique: np.ndarray, names: Sequence[str]) -> tuple[str, ...]:
    low, high = int(unique[0]), int(unique[-1])
    if low < 0 and unique.tolist() != [-1, 1]:
        hint = "; -1 marks images without labels: leave these out, or all labels" if low == -1 else ""
        raise UserError(f"{where} holds labels from {low} to {high}; they must not be negative{hint}")
    if not names:
        return tuple(str(label) for label in unique.tolist())
    if low >= 0 and high < len(names):
        return tuple(names[label] for label in unique.tolist())
    if len(names) == len(unique):
        return tuple(names)
    raise UserError(
        f"{where} holds {len(unique)} different labels from {low} to {high}, and {len(names)} class names: give a "
        f"name to each of these labels, or to all from 0 to {high}"
    )


def _notes(unique: np.ndarray, chosen: Sequence[str], names: Sequence[str], count: int) -> tuple[str, ...]:
    notes = []
    number, first, last = len(unique), unique[0], unique[-1]
    if unique.dtype.kind != "U" and unique.tolist() != list(range(number)) and not names:
        notes.append(f"the {number:,} labels that occur, {first} to {last}, are the classes, in ascending order")
    if missing := [name for name in names if name not in chosen]:
        more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        notes.append(f"no class, as it has no images: {', '.join(missing[:3])}{more}")
    if count >= MANY and 2 * number > count:
        notes.append(f"there are {number:,} labels of {count:,} images: they may be no classes but identifiers")
    return tuple(notes)


def _positions(labels: np.ndarray, unique: np.ndarray) -> np.ndarray:
    """Return the position of each label among those that occur, int32 `(n,)`."""
    order = np.argsort(unique, kind="stable")
    return order[np.searchsorted(unique[order], labels)].astype(np.int32)
