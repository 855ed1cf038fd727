"""Recognise the subfolders that hold the training and the test images, under the names that people give them."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from ssdd_jax.data.walk import subfolders
from ssdd_jax.errors import UserError

# Words that name a split, in any case.
WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
_WORD = "|".join(word for words in WORDS.values() for word in words)
_BESIDE = r"(?:set|images?|imgs?|photos?|pictures?|data(?:set)?|split)"
_NAME = re.compile(rf"(?:{_BESIDE}[\W\d_]*)*(?P<word>{_WORD})(?:[\W\d_]*{_BESIDE})*[\W\d_]*")


class Split(NamedTuple):
    """Folders of a split data set.

    Attributes:
        train: Name of the subfolder of the training images.
        test: Name of the subfolder of the test images, or None.
        others: Names of all other subfolders.
    """

    train: str
    test: str | None
    others: tuple[str, ...]


def kind_of(name: str) -> str | None:
    """Return the split, a key of `WORDS`, that a folder's name means, such as `Training`, `test_set` or `val2017`."""
    match = _NAME.fullmatch(name.casefold())
    return _kind(match["word"]) if match else None


def find(path: pathlib.Path, *, train_split: str, test_split: str) -> Split | None:
    """Find the subfolders of a folder that hold the training and the test images.

    Args:
        path: The folder.
        train_split: Name of the subfolder of the training images; "train" matches all words for it.
        test_split: Name of the subfolder of the test images; "test" matches all words for it, and those for validation
            if there is none; "" finds no test part.

    Returns:
        The split, or None if the folder has no subfolder that is named as a split.

    Raises:
        UserError: If a name that was set is missing, or the names leave a choice.
    """
    if not train_split:
        return None
    names = subfolders(path, links=True)
    kinds = {name: kind for name in names if (kind := kind_of(name))}
    kinds = kinds if "train" in kinds.values() else kinds | _paired(names)
    train = _named(names, train_split)
    if train is None and train_split != "train":
        raise UserError(f"{path} has no folder {train_split!r}: check --config.data.train_split")
    if train is None:
        train = _only(path, [name for name in names if kinds.get(name) == "train"], "train_split")
    if train is None:
        if kinds:
            raise UserError(
                f"{path} has a folder {next(iter(kinds))!r} but none that is named as training images: name it with "
                "--config.data.train_split, or set that to '' if all subfolders are classes"
            )
        return None
    test = _test(path, [name for name in names if name != train], kinds, test_split)
    return Split(train, test, tuple(name for name in names if name not in (train, test)))


def _test(path: pathlib.Path, names: Sequence[str], kinds: dict[str, str], test_split: str) -> str | None:
    if not test_split:
        return None
    if (exact := _named(names, test_split)) is not None:
        return exact
    if test_split != "test":
        raise UserError(f"{path} has no folder {test_split!r}: check --config.data.test_split")
    for kind in ("test", "validation"):
        candidates = [name for name in names if kinds.get(name) == kind]
        chosen = next((name for name in (kind, *WORDS[kind]) if name in candidates), None)
        if chosen or candidates:
            return chosen or _only(path, candidates, "test_split")
    return None


def _named(names: Sequence[str], name: str) -> str | None:
    """Return the folder of a name: exactly, or in another case if only one is."""
    alike = [other for other in names if other.casefold() == name.casefold()]
    return name if name in alike else alike[0] if len(alike) == 1 else None


def _only(path: pathlib.Path, names: Sequence[str], key: str) -> str | None:
    if len(names) > 1:
        raise UserError(f"{path} has the folders {', '.join(names)}: choose one with --config.data.{key}")
    return names[0] if names else None


def _paired(names: Sequence[str]) -> dict[str, str]:
    """Return the splits among names such as `seg_train` and `seg_test`, which differ in the word for the split only."""
    stems: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        words = [word for word in re.split(r"[\W\d_]+", name.casefold()) if word]
        kinds = [kind for word in words if (kind := _kind(word))]
        if len(kinds) == 1:
            stems.setdefault(tuple(word for word in words if not _kind(word)), {})[name] = kinds[0]
    pairs = [found for found in stems.values() if "train" in found.values() and len(set(found.values())) > 1]
    return {name: kind for found in pairs for name, kind in found.items()}


def _kind(word: str) -> str | None:
    return next((kind for kind, words in WORDS.items() if word in words), None)
