"""Files of weights: safetensors, PyTorch's, Flax's and Orbax's, read into named arrays; nothing in them is run."""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
from flax import traverse_util

from ssdd_jax.errors import UserError
from ssdd_jax.formats.content import require
from ssdd_jax.runtime import files

Path = pathlib.Path

TORCH = (".pt", ".pth", ".ckpt", ".bin", ".tar")
KNOWN = ".safetensors, .pt, .pth, .ckpt, .bin, .msgpack, or a folder of Hugging Face, Orbax or a run's teacher"
# Where checkpoints keep the network's tensors; of DINO's two networks the teacher is the one that is used.
NESTED = ("state_dict", "model_state_dict", "model", "teacher", "student", "module", "network", "net", "backbone")
# What torch.load raises for content that is damaged, or that it would have to run.
_DAMAGE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError)


class Found(NamedTuple):
    """What was read.

    Attributes:
        path: The file or folder.
        tensors: Arrays by name, parts separated by dots; those of Flax without the name of their collection.
        facts: What files beside say: of Hugging Face `config` and `preprocessor`, of a run's teacher `about`.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    facts: dict[str, Any]


def read(name: str) -> Found:
    """Read a file or folder of weights.

    Raises:
        UserError: If it is not there, of no known kind, damaged, or holds more than numbers.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserError(f"teacher.source: there is no file or folder {path}")
    if path.suffix == ".safetensors":
        return Found(path, _safetensors(path), {})
    if path.suffix in TORCH:
        return Found(path, _torch(path), {})
    if path.suffix == ".msgpack":
        return Found(path, _msgpack(path), {})
    raise UserError(f"teacher.source: {path} is of no known kind: {KNOWN}")


def _folder(path: Path) -> Found:
    for own in (path, path / "teacher"):
        if (own / "teacher.json").is_file():
            about = files.read_json(own / "teacher.json")
            tensors = files.read_tensors(own / "teacher.safetensors", about.get("sha256"))
            return Found(own, _flat(tensors), {"about": about})
    if (path / "config.json").is_file():
        return _huggingface(path)
    for folder in (path, path / "default"):
        if (folder / "_METADATA").is_file():
            return Found(path, _orbax(folder), {})
    steps = sorted((int(part.name), part) for part in path.iterdir() if part.name.isdigit() and part.is_dir())
    if steps:
        return _folder(steps[-1][1])
    raise UserError(f"teacher.source: {path} is of no known kind: {KNOWN}")


def _huggingface(path: Path) -> Found:
    facts = {"config": _object(path / "config.json")}
    if (path / "preprocessor_config.json").is_file():
        facts["preprocessor"] = _object(path / "preprocessor_config.json")
    if (path / "model.safetensors").is_file():
        return Found(path, _safetensors(path / "model.safetensors"), facts)
    if (path / "pytorch_model.bin").is_file():
        return Found(path, _torch(path / "pytorch_model.bin"), facts)
    raise UserError(f"teacher.source: {path} has a config.json, but neither model.safetensors nor pytorch_model.bin")


def _object(path: Path) -> dict[str, Any]:
    found = files.read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object: restore it")
    return found


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file; a file of this package has collections and slashes in its names."""
    try:
        with safetensors.safe_open(path, framework="flax") as file:  # unlike NumPy's, this one knows bfloat16
            tensors = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a safetensors file, or is damaged ({error})") from None
    if all("/" in name for name in tensors):
        return _flat(traverse_util.unflatten_dict(tensors, sep="/"))
    return _numbers(path, tensors)


def _torch(path: Path) -> dict[str, np.ndarray]:
    torch = require("torch", "torch", f"a file of PyTorch's ({path.name})")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # PyTorch's remarks on a file that is refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} is no file of PyTorch's, or holds objects that loading would run, which is refused ({reason}): "
            "save the state_dict of the network alone, as .safetensors or with torch.save"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    state = _state(content, torch.Tensor)
    if not state:
        raise UserError(
            f"{path} holds no named tensors: save the state_dict of a network, not {type(content).__name__}"
        )
    return _numbers(path, {name: _array(torch, tensor) for name, tensor in state.items()})


def _state(content: Any, tensor: type) -> dict[str, Any]:
    """The named tensors in a checkpoint, which may lie deeper."""
    if not isinstance(content, Mapping):
        return {}
    found = {str(name): value for name, value in content.items() if isinstance(value, tensor)}
    inner = (_state(content[name], tensor) for name in NESTED if name in content)
    return found or next((state for state in inner if state), {})


def _array(torch: Any, tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.to(torch.float32) if tensor.is_floating_point() else tensor).contiguous().numpy()


def _msgpack(path: Path) -> dict[str, np.ndarray]:
    try:
        tree = flax.serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # whatever msgpack makes of bytes that are not its own
        raise UserError(f"{path} is not a file of Flax's (msgpack), or is damaged ({type(error).__name__})") from None
    return _numbers(path, _collections(path, tree))


def _orbax(path: Path) -> dict[str, np.ndarray]:
    handler = ocp.PyTreeCheckpointer()
    try:
        metadata = handler.metadata(path.absolute())
        shapes = getattr(metadata, "item_metadata", metadata)
        tree = getattr(shapes, "tree", shapes)
        as_numpy = ocp.checkpoint_utils.construct_restore_args(tree)
        found = handler.restore(path.absolute(), restore_args=_numpy_arguments(as_numpy))
    except Exception as error:  # Orbax raises errors of many libraries
        raise UserError(f"{path} is not a checkpoint of Orbax's, or is damaged ({type(error).__name__})") from None
    return _numbers(path, _collections(path, found))


def _numpy_arguments(arguments: Any) -> Any:
    """Arrays as NumPy's, from whatever devices they were saved."""
    return jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), arguments, is_leaf=lambda x: isinstance(x, ocp.RestoreArgs)
    )


def _collections(path: Path, tree: Any) -> dict[str, Any]:
    """The names of a network's variables: `params` and `batch_stats`, which a training state has under `variables`."""
    tree = tree.get("variables", tree) if isinstance(tree, Mapping) else {}
    if "params" not in tree:
        raise UserError(f"{path} has no params: save {{'params': ..., 'batch_stats': ...}} of a network")
    return _flat({name: tree[name] for name in ("params", "batch_stats") if tree.get(name)})


def _flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Both collections under the same names: their leaves are called differently."""
    trees = [
        traverse_util.flatten_dict(dict(tree), sep=".") for tree in variables.values() if isinstance(tree, Mapping)
    ]
    return {name: value for tree in trees for name, value in tree.items()}


def _numbers(path: Path, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    if not arrays:
        raise UserError(f"{path} holds no tensors")
    return {name: a if np.issubdtype(a.dtype, np.integer) else a.astype(np.float32) for name, a in arrays.items()}
