"""Reader of weight files (safetensors, PyTorch, Flax, Orbax) into named tensors, without executing their content.

Files are recognised by their first bytes, whatever their names end in.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.serialization
import jax
import numpy as np
import safetensors
from flax import traverse_util

from ssdd_jax.errors import UserError
from ssdd_jax.formats.content import require
from ssdd_jax.runtime import files, numpy_files

Path = pathlib.Path

KNOWN = "a file of safetensors, PyTorch or Flax (msgpack), or a folder of Hugging Face, Orbax or a run's teacher"
# First bytes of PyTorch's files: of a zip archive, and of the pickled number that earlier versions begin with.
_ZIP, _TORCH_PICKLE = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLE_PROTOCOLS = range(2, 6)
# Exceptions of torch.load for content that is damaged, or that it would have to execute.
_DAMAGE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError),
    OSError,  # of a file that is cut short
)


class Weights(NamedTuple):
    """Named tensors of a weight file, and the content of the files beside it.

    Attributes:
        path: The file or folder.
        tensors: Tensors by name, with dots between parts, NumPy's or PyTorch's; see `array`. The names of PyTorch's
            begin with those of the entries that hold them, as in `state_dict.conv1.weight`; names from Flax omit the
            collection.
        facts: Content of files beside the weights: `config` and `preprocessor` of Hugging Face, `about` of a run's
            teacher. Of a checkpoint of PyTorch with an optimizer `trained`, the number of tensors that it trains.
    """

    path: Path
    tensors: dict[str, Any]
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
    return _file(path)


def array(tensor: Any) -> np.ndarray:
    """Convert a tensor of `Weights` to NumPy: float32, and integers as they are."""
    # Integers are counters, which no feature depends on; all else is converted from half or double precision.
    if hasattr(tensor, "detach"):
        tensor = tensor.detach()
        return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy())
    values = np.asarray(tensor)
    return values if np.issubdtype(values.dtype, np.integer) else values.astype(np.float32)


def _file(path: Path) -> Weights:
    """Read a file in the format that its first bytes reveal."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    # safetensors: the length of a JSON object in eight bytes, and its opening brace.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return Weights(path, _safetensors(path), {})
    if head.startswith((_ZIP, _TORCH_PICKLE)) or (head[:1] == b"\x80" and head[1:2] and head[1] in _PICKLE_PROTOCOLS):
        return _torch(path)
    # msgpack: a mapping of one to fifteen entries, or of more.
    if head and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        return Weights(path, _msgpack(path), {})
    raise UserError(f"teacher.source: {path} is {_foreign(path, head)}: give {KNOWN}")


def _foreign(path: Path, head: bytes) -> str:
    if not head:
        return "empty"
    if head.startswith(b"\x1f\x8b") or tarfile.is_tarfile(path):
        return "a compressed file or an archive, to be unpacked first"
    return "not in a supported format, or damaged"


def _folder(path: Path) -> Weights:
    # A run's teacher is looked for first, as its folder may hold checkpoints of Orbax as well.
    for folder in (path, path / "teacher"):
        if (folder / "teacher.json").is_file():
            about = files.read_sealed(folder / "teacher.json")
            tensors = files.read_tensors(folder / "teacher.safetensors", about.get("sha256"))
            return Weights(folder, _flat(tensors), {"about": about})
    if (path / "inputs.json").is_file():
        raise UserError(
            f"teacher.source: {path} is a run without a finished teacher in it: let it finish, or give its --shared "
            "folder"
        )
    if (path / "config.json").is_file():
        return _huggingface(path)
    if revision := _revision(path):
        return _folder(revision)
    for folder in (path, path / "default"):
        if (folder / "_METADATA").is_file():
            return Weights(path, _orbax(folder), {})
    # The folder of an Orbax checkpoint manager has one folder per step: the last one is read.
    steps = sorted((int(part.name), part) for part in path.iterdir() if part.name.isdigit() and part.is_dir())
    if steps:
        return _folder(steps[-1][1])
    raise UserError(f"teacher.source: {path} is not in a supported format: {KNOWN}")


def _revision(path: Path) -> Path | None:
    """Return the folder of the main or only revision in a cache of the Hugging Face hub; None for other folders."""
    main = path / "refs" / "main"
    if main.is_file() and (named := path / "snapshots" / main.read_text(encoding="utf-8").strip()).is_dir():
        return named
    revisions = [part for part in (path / "snapshots").glob("*") if part.is_dir()]
    return revisions[0] if len(revisions) == 1 else None


def _huggingface(path: Path) -> Weights:
    facts = {"config": _object(path / "config.json")}
    if (path / "preprocessor_config.json").is_file():
        facts["preprocessor"] = _object(path / "preprocessor_config.json")
    if (path / "model.safetensors").is_file():
        return _file(path / "model.safetensors")._replace(path=path, facts=facts)
    if (path / "pytorch_model.bin").is_file():
        return _file(path / "pytorch_model.bin")._replace(path=path, facts=facts)
    raise UserError(f"teacher.source: {path} has a config.json, but neither model.safetensors nor pytorch_model.bin")


def _object(path: Path) -> dict[str, Any]:
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: restore it")
    return content


def _safetensors(path: Path) -> dict[str, Any]:
    """Read the tensors of a file; names in files of this package have collections, and slashes between parts."""
    try:
        with safetensors.safe_open(path, framework="flax") as file:  # NumPy's framework has no bfloat16
            tensors = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a safetensors file, or is damaged ({error})") from None
    if all("/" in name for name in tensors):
        return _flat(traverse_util.unflatten_dict(tensors, sep="/"))
    return _some(path, tensors)


def _torch(path: Path) -> Weights:
    torch = require("torch", "torch", f"a file of PyTorch's ({path.name})")
    if _is_npz(path):
        raise UserError(f"teacher.source: {path} holds arrays of NumPy's: if they are features, name the file .npz")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")  # PyTorch warns about files that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} is not a PyTorch file, or holds objects that loading would execute, which is refused ({reason}): "
            "save the state_dict of the network alone, as .safetensors or with torch.save"
        ) from None
    tensors = _flattened(content, torch.Tensor)
    if not tensors:
        raise UserError(
            f"{path} holds no named tensors: save the state_dict of a network, not {type(content).__name__}"
        )
    trained = _trained(content)
    return Weights(path, tensors, {"trained": trained} if trained else {})


def _trained(content: Mapping[str, Any]) -> int:
    """Count the tensors that the optimizers of a checkpoint train; 0 without any."""
    # Lightning saves a list of optimizers.
    several = content.get("optimizer_states")
    optimizers = [content.get("optimizer"), *(several if isinstance(several, list) else ())]
    groups = [one.get("param_groups") for one in optimizers if isinstance(one, Mapping)]
    groups = [group for listed in groups if isinstance(listed, list) for group in listed]
    return sum(len(group.get("params", ())) for group in groups if isinstance(group, Mapping))


def _is_npz(path: Path) -> bool:
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return all(name.endswith(".npy") for name in archive.namelist())
    except numpy_files.DAMAGE:  # PyTorch's reader says what is wrong
        return False


def _harmless() -> list[Any]:
    """Types beside the tensors of checkpoints that are harmless to unpickle: arguments, and NumPy's numbers."""
    kinds = {type(np.dtype(kind)) for kind in (bool, *np.typecodes["AllInteger"], *np.typecodes["Float"])}
    number, empty = (value.__reduce__()[0] for value in (np.float64(0), np.empty(0)))
    # Files written by NumPy 1 name the same functions in another module.
    earlier = [(number, "numpy.core.multiarray.scalar"), (empty, "numpy.core.multiarray._reconstruct")]
    return [argparse.Namespace, np.dtype, np.ndarray, number, empty, *earlier, *sorted(kinds, key=str)]


def _flattened(content: Any, tensor: type, before: str = "") -> dict[str, Any]:
    """Collect the tensors of a checkpoint and of the mappings in it, by the names on the way to them."""
    tensors: dict[str, Any] = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if not isinstance(name, str):  # the state of an optimizer, by number
            continue
        if isinstance(value, tensor):
            tensors[before + name] = value
        else:
            tensors |= _flattened(value, tensor, f"{before}{name}.")
    return tensors


def _msgpack(path: Path) -> dict[str, Any]:
    try:
        tree = flax.serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises errors of many types for foreign bytes
        raise UserError(f"{path} is not a Flax file (msgpack), or is damaged ({type(error).__name__})") from None
    return _some(path, _collections(path, tree))


def _orbax(path: Path) -> dict[str, Any]:
    import orbax.checkpoint as ocp  # slow to load, and needed only here

    # Orbax would read a device, such as a link to /dev/zero, for ever.
    if strange := [file for file in path.rglob("*") if not (file.is_file() or file.is_dir())]:
        raise UserError(f"{path} is not an Orbax checkpoint: {strange[0].relative_to(path)} is no file")
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
    return _some(path, _collections(path, restored))


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
    tensors = _flat({name: tree[name] for name in ("params", "batch_stats") if tree.get(name)})
    for name, value in tensors.items():
        if not isinstance(value, np.ndarray | np.generic | jax.Array | int | float):
            raise UserError(f"{path} is damaged, or not a network's: {name} is no array of numbers")
    return tensors


def _flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten both collections into one mapping; they share no leaf names, so nothing is overwritten."""
    trees = [traverse_util.flatten_dict(dict(tree)) for tree in variables.values() if isinstance(tree, Mapping)]
    # Names are text, unless the file is damaged.
    return {".".join(map(str, names)): value for tree in trees for names, value in tree.items()}


def _some(path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return tensors
