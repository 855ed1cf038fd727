"""Reader of weight files (safetensors, PyTorch, Flax, Orbax) into named arrays, without executing their content."""

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
import safetensors
from flax import traverse_util

from ssdd_jax.errors import UserError
from ssdd_jax.formats.content import require
from ssdd_jax.runtime import files

Path = pathlib.Path

TORCH = (".pt", ".pth", ".ckpt", ".bin", ".tar")
KNOWN = ".safetensors, .pt, .pth, .ckpt, .bin, .msgpack, or a folder of Hugging Face, Orbax or a run's teacher"
# Entries of a checkpoint that may hold the network, in order of preference: of DINO's two networks the teacher is used.
NESTED = ("state_dict", "model_state_dict", "model", "teacher", "student", "module", "network", "net", "backbone")
# Exceptions of torch.load for content that is damaged, or that it would have to execute.
_DAMAGE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError)


class Weights(NamedTuple):
    """Named tensors of a weight file, and the content of the files beside it.

    Attributes:
        path: The file or folder.
        tensors: Arrays by name, with dots between parts; names from Flax omit the collection.
        facts: Content of files beside the weights: `config` and `preprocessor` of Hugging Face, `about` of a run's
            teacher.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    facts: dict[str, Any]


def read(name: str) -> Weights:
    """Read a file or folder of weights.

    Args:
        name: Path of the file or folder; see `KNOWN`.

    Returns:
        The tensors, and the content of the files beside them.

    Raises:
        UserError: If the path is missing, of an unsupported format or damaged, or holds objects other than arrays.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserError(f"teacher.source: there is no file or folder {path}")
    if path.suffix == ".safetensors":
        return Weights(path, _safetensors(path), {})
    if path.suffix in TORCH:
        return Weights(path, _torch(path), {})
    if path.suffix == ".msgpack":
        return Weights(path, _msgpack(path), {})
    raise UserError(f"teacher.source: {path} is not in a supported format: {KNOWN}")


def _folder(path: Path) -> Weights:
    # A run's teacher is looked for first, as its folder may hold checkpoints of Orbax as well.
    for folder in (path, path / "teacher"):
        if (folder / "teacher.json").is_file():
            about = files.read_json(folder / "teacher.json")
            tensors = files.read_tensors(folder / "teacher.safetensors", about.get("sha256"))
            return Weights(folder, _flat(tensors), {"about": about})
    if (path / "config.json").is_file():
        return _huggingface(path)
    for folder in (path, path / "default"):
        if (folder / "_METADATA").is_file():
            return Weights(path, _orbax(folder), {})
    # The folder of an Orbax checkpoint manager has one folder per step: the last one is read.
    steps = sorted((int(part.name), part) for part in path.iterdir() if part.name.isdigit() and part.is_dir())
    if steps:
        return _folder(steps[-1][1])
    raise UserError(f"teacher.source: {path} is not in a supported format: {KNOWN}")


def _huggingface(path: Path) -> Weights:
    facts = {"config": _object(path / "config.json")}
    if (path / "preprocessor_config.json").is_file():
        facts["preprocessor"] = _object(path / "preprocessor_config.json")
    if (path / "model.safetensors").is_file():
        return Weights(path, _safetensors(path / "model.safetensors"), facts)
    if (path / "pytorch_model.bin").is_file():
        return Weights(path, _torch(path / "pytorch_model.bin"), facts)
    raise UserError(f"teacher.source: {path} has a config.json, but neither model.safetensors nor pytorch_model.bin")


def _object(path: Path) -> dict[str, Any]:
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: restore it")
    return content


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a file; names in files of this package have collections, and slashes between parts."""
    try:
        with safetensors.safe_open(path, framework="flax") as file:  # NumPy's framework has no bfloat16
            tensors = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a safetensors file, or is damaged ({error})") from None
    if all("/" in name for name in tensors):
        return _flat(traverse_util.unflatten_dict(tensors, sep="/"))
    return _numbers(path, tensors)


def _torch(path: Path) -> dict[str, np.ndarray]:
    torch = require("torch", "torch", f"a file of PyTorch's ({path.name})")
    try:
        # Checkpoints such as DINO's store their arguments as a Namespace, which is harmless to unpickle.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # PyTorch warns about files that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} is not a PyTorch file, or holds objects that loading would execute, which is refused ({reason}): "
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
    """Find the named tensors of a checkpoint, at the top level or in a nested entry."""
    if not isinstance(content, Mapping):
        return {}
    top_level = {str(name): value for name, value in content.items() if isinstance(value, tensor)}
    inner = (_state(content[name], tensor) for name in NESTED if name in content)
    return top_level or next((state for state in inner if state), {})


def _array(torch: Any, tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.to(torch.float32) if tensor.is_floating_point() else tensor).contiguous().numpy()


def _msgpack(path: Path) -> dict[str, np.ndarray]:
    try:
        tree = flax.serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises errors of many types for foreign bytes
        raise UserError(f"{path} is not a Flax file (msgpack), or is damaged ({type(error).__name__})") from None
    return _numbers(path, _collections(path, tree))


def _orbax(path: Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp  # slow to load, and needed only here

    handler = ocp.PyTreeCheckpointer()
    # Orbax versions nest the tree differently in their metadata.
    try:
        metadata = handler.metadata(path.absolute())
        shapes = getattr(metadata, "item_metadata", metadata)
        tree = getattr(shapes, "tree", shapes)
        as_numpy = ocp.checkpoint_utils.construct_restore_args(tree)
        restored = handler.restore(path.absolute(), restore_args=_numpy_arguments(as_numpy))
    except Exception as error:  # Orbax raises errors of many libraries
        raise UserError(f"{path} is not an Orbax checkpoint, or is damaged ({type(error).__name__})") from None
    return _numbers(path, _collections(path, restored))


def _numpy_arguments(arguments: Any) -> Any:
    """Replace restore arguments so that arrays are NumPy's, independent of the devices that saved them."""
    import orbax.checkpoint as ocp

    return jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), arguments, is_leaf=lambda x: isinstance(x, ocp.RestoreArgs)
    )


def _collections(path: Path, tree: Any) -> dict[str, Any]:
    """Flatten `params` and `batch_stats` of a network, which a training state has under `variables`."""
    tree = tree.get("variables", tree) if isinstance(tree, Mapping) else {}
    if "params" not in tree:
        raise UserError(f"{path} has no params: save {{'params': ..., 'batch_stats': ...}} of a network")
    return _flat({name: tree[name] for name in ("params", "batch_stats") if tree.get(name)})


def _flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten both collections into one mapping; they share no leaf names, so nothing is overwritten."""
    trees = [
        traverse_util.flatten_dict(dict(tree), sep=".") for tree in variables.values() if isinstance(tree, Mapping)
    ]
    return {name: value for tree in trees for name, value in tree.items()}


def _numbers(path: Path, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    if not arrays:
        raise UserError(f"{path} holds no tensors")
    # Integers are counters, which no feature depends on; all else is converted from half or double precision.
    return {name: a if np.issubdtype(a.dtype, np.integer) else a.astype(np.float32) for name, a in arrays.items()}
