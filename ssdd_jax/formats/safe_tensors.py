"""Pairs as one safetensors file, channels first: what `torch.utils.data` loads in one line, without JAX."""

from __future__ import annotations

import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from ssdd_jax.errors import UserError
from ssdd_jax.formats import constants
from ssdd_jax.formats.content import Content, check_inputs, check_targets

NAME = "pairs.safetensors"
UNDO = (
    "images is what a network is given, (P,C,H,W), and targets what it regresses: pixels in 0..1 are images * "
    "image_std + image_mean per channel, the teacher's features targets * target_scale + target_mean."
)
CONSTANTS = ("image_mean", "image_std", "target_mean", "target_scale")


def is_file(path: pathlib.Path) -> bool:
    """Return whether a path is a `.safetensors` file or a folder with `pairs.safetensors`."""
    return (path.is_file() and path.suffix == ".safetensors") or (path / NAME).is_file()


def read(path: pathlib.Path) -> Content:
    """Read a file of pairs, and the `constants.json` beside a `pairs.safetensors`; those in the file take precedence.

    Args:
        path: The file or its folder. `images` are network inputs `(P,C,H,W)`, `targets` `(P,D)`.

    Returns:
        The pairs and their facts.

    Raises:
        UserError: If the file is damaged, or its tensors are not as described.
    """
    path = path / NAME if path.is_dir() else path
    try:
        tensors = safetensors.numpy.load(path.read_bytes())
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a safetensors file, or is damaged ({error})") from None
    for name in ("images", "targets"):
        if name not in tensors:
            raise UserError(f"{path} holds no tensor {name!r}: images (P,C,H,W) and targets (P,D) are needed")
    beside = constants.read(path.parent) if path.name == NAME else {}
    facts = beside | {name: tensors[name] for name in CONSTANTS if name in tensors}
    return Content(
        check_inputs(f"images in {path}", tensors["images"], channels_first=True),
        check_targets(f"targets in {path}", tensors["targets"]),
        facts,
    )


def write(folder: pathlib.Path, content: Content) -> None:
    """Write `pairs.safetensors`: float32 network inputs, channels first, targets and constants.

    Args:
        folder: Folder to write to.
        content: The pairs and their facts.
    """
    tensors = {"images": content.images.transpose(0, 3, 1, 2), "targets": content.targets}
    # The constants are float32 originally: the decimal digits in the facts restore them exactly.
    tensors |= {name: np.asarray(content.facts[name], np.float32) for name in CONSTANTS if name in content.facts}
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    (folder / NAME).write_bytes(safetensors.numpy.save(contiguous, metadata={"undo": UNDO}))
