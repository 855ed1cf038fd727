"""The `.pt` files of the published PyTorch systems, KRR-ST (`x_syn.pt`, `y_syn.pt`) and MKDT (`images_N.pt`, ...).

They hold network inputs and regression targets that are used for training unchanged: images channels first, already
normalised (train.py and algorithms/pretrain_krr_st.py of KRR-ST; distill.py and eval.py of MKDT).
"""

from __future__ import annotations

import pathlib
import pickle
import re
import warnings
from typing import Any

import numpy as np

from ssdd_jax.errors import UserError
from ssdd_jax.formats import constants
from ssdd_jax.formats.content import Content, check_inputs, check_targets, require

KRR_ST: tuple[str, ...] = ("x_syn.pt", "y_syn.pt")
UNDO = (
    "x_syn is what a network is given, (P,C,H,W), and y_syn what it regresses: pixels in 0..1 are x_syn * image_std + "
    "image_mean per channel, the teacher's features y_syn * target_scale + target_mean."
)
_MKDT = re.compile(r"(images|labels)_(\d+)\.pt")
# Exceptions of torch.load for content that is damaged, or that is not a plain tensor.
_DAMAGE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError)


def is_krr_st(path: pathlib.Path) -> bool:
    """Return whether a folder holds at least one of KRR-ST's files."""
    return any((path / name).is_file() for name in KRR_ST)


def read_krr_st(path: pathlib.Path) -> Content:
    """Read KRR-ST's two files.

    Args:
        path: The folder.

    Returns:
        The pairs and their facts.

    Raises:
        UserError: If a file is missing or is not a tensor of the right shape and type.
    """
    for name in KRR_ST:
        if not (path / name).is_file():
            raise UserError(f"{path} holds no {name}: a set of KRR-ST is {' and '.join(KRR_ST)}")
    return _pairs(path / KRR_ST[0], path / KRR_ST[1])


def is_mkdt(path: pathlib.Path) -> bool:
    """Return whether a folder holds at least one of MKDT's files."""
    return bool(_mkdt_numbers(path, "images") | _mkdt_numbers(path, "labels"))


def read_mkdt(path: pathlib.Path) -> Content:
    """Read MKDT's files of the last iteration that has both images and labels, and its learned learning rate.

    Args:
        path: The folder.

    Returns:
        The pairs and their facts; the fact `learning_rate` is only present if the rate was saved.

    Raises:
        UserError: If images and labels of one iteration are missing, or a file is not a tensor of the right shape
            and type.
    """
    # A run that was interrupted may have saved the images of an iteration without its labels.
    numbers = _mkdt_numbers(path, "images") & _mkdt_numbers(path, "labels")
    if not numbers:
        raise UserError(f"{path} holds no images_N.pt and labels_N.pt of the same N: a set of MKDT is both")
    last = max(numbers)
    content = _pairs(path / f"images_{last}.pt", path / f"labels_{last}.pt")
    rate_path = path / f"synlr_{last}.pt"
    if not rate_path.is_file():
        return content
    rate = _load(rate_path)
    if rate.size != 1 or not np.isfinite(rate).all() or rate.item() <= 0:
        raise UserError(f"{rate_path} holds no learning rate, which is one number above 0")
    return content._replace(facts={**content.facts, "learning_rate": float(rate.item())})


def write_krr_st(folder: pathlib.Path, content: Content) -> None:
    """Write float32 network inputs and targets as plain contiguous tensors, images channels first.

    Args:
        folder: Folder to write to.
        content: The pairs and their facts.

    Raises:
        UserError: If PyTorch is not installed.
    """
    torch = _torch()
    for name, array in zip(KRR_ST, (content.images.transpose(0, 3, 1, 2), content.targets), strict=True):
        torch.save(torch.tensor(np.ascontiguousarray(array)), folder / name)


def _pairs(images_path: pathlib.Path, targets_path: pathlib.Path) -> Content:
    return Content(
        check_inputs(str(images_path), _load(images_path), channels_first=True),
        check_targets(str(targets_path), _load(targets_path)),
        constants.read(images_path.parent),
    )


def _mkdt_numbers(path: pathlib.Path, kind: str) -> set[int]:
    # The pattern excludes MKDT's other files, such as `images_best.pt`.
    matches = [_MKDT.fullmatch(file.name) for file in path.glob(f"{kind}_*.pt")]
    return {int(match.group(2)) for match in matches if match}


def _load(path: pathlib.Path) -> np.ndarray:
    """Load the tensor in a file, with floats of any width as float32; nothing else is unpickled."""
    torch = _torch()
    refused = UserError(
        f"{path} is not a file of one plain tensor, or is damaged (other pickled objects are never loaded): "
        "save x.detach().cpu() with torch.save"
    )
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns about files that are refused below
            tensor = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(tensor, torch.Tensor):
            raise refused
        # NumPy has no bfloat16: floats are converted first.
        tensor = tensor.detach()
        return (tensor.to(torch.float32) if tensor.is_floating_point() else tensor).numpy()
    except _DAMAGE:
        raise refused from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _torch() -> Any:
    return require("torch", "torch", "a file of PyTorch (.pt)")
