"""Pairs as one `.npz` archive of NumPy arrays."""

from __future__ import annotations

import pathlib

import numpy as np

from ssdd_jax.errors import UserError
from ssdd_jax.formats import constants
from ssdd_jax.formats.content import Content, check_image_shape, check_inputs, check_targets
from ssdd_jax.runtime import numpy_files

NAME = "pairs.npz"
UNDO = (
    "images is what a network is given, (P,H,W,C), and targets what it regresses: pixels in 0..1 are images * "
    "image_std + image_mean per channel, the teacher's features targets * target_scale + target_mean."
)
IMAGES, TARGETS = ("images", "x", "x_syn"), ("targets", "y", "y_syn")
CONSTANTS = ("image_mean", "image_std", "target_mean", "target_scale", "learning_rate")


def is_archive(path: pathlib.Path) -> bool:
    """Return whether a path is an `.npz` archive or a folder with `pairs.npz`."""
    return (path.is_file() and path.suffix == ".npz") or (path / NAME).is_file()


def read(path: pathlib.Path) -> Content:
    """Read an archive, and the `constants.json` beside a `pairs.npz`; constants in the archive take precedence.

    Args:
        path: The archive or its folder. Images `(P,H,W,C)` are under `images`, `x` or `x_syn`, as uint8 pixels or as
            float network inputs; targets `(P,D)` are under `targets`, `y` or `y_syn`.

    Returns:
        The pairs and their facts.

    Raises:
        UserError: If the archive is damaged, holds pickled objects, or its arrays are not as described.
    """
    path = path / NAME if path.is_dir() else path
    arrays = load_arrays(path)
    # The names of this package first, then those of other systems.
    pairs = []
    for names in (IMAGES, TARGETS):
        name = next((name for name in names if name in arrays), None)
        if name is None:
            raise UserError(f"{path} holds no {names[0]}: name the array one of {', '.join(names)}")
        pairs.append((f"{name} in {path}", arrays[name]))
    (images_where, images), (targets_where, targets) = pairs
    # Bytes are pixels, which are normalised later; floats are network inputs, used unchanged.
    if images.dtype == np.uint8:
        check_image_shape(images_where, images)
    else:
        images = check_inputs(images_where, images)
    # Beside any other archive a `constants.json` may belong to something else.
    beside = constants.read(path.parent) if path.name == NAME else {}
    facts = beside | {name: arrays[name] for name in CONSTANTS if name in arrays}
    return Content(images, check_targets(targets_where, targets), facts)


def write(folder: pathlib.Path, content: Content) -> None:
    """Write `pairs.npz`: float32 network inputs, targets and constants.

    Args:
        folder: Folder to write to.
        content: The pairs and their facts.
    """
    facts = {name: np.asarray(content.facts[name]) for name in CONSTANTS if name in content.facts}
    # The constants are float32 originally: the decimal digits in the facts restore them exactly.
    facts = {name: value if name == "learning_rate" else value.astype(np.float32) for name, value in facts.items()}
    np.savez(folder / NAME, allow_pickle=False, images=content.images, targets=content.targets, **facts)


def load_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Load the arrays of an `.npz` archive, or the one of an `.npy` file, without unpickling.

    Args:
        path: The file.

    Returns:
        Arrays `(...)` by name; the array of an `.npy` file has the name "".

    Raises:
        UserError: If the file is damaged, or holds pickled objects.
    """
    with numpy_files.opened(path) as loaded:
        return {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
