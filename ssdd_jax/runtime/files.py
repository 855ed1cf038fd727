"""Atomic file writes by the first of several processes, and reads that never unpickle anything."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import mmap
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from ssdd_jax.errors import StoredError
from ssdd_jax.runtime import devices, locks, marks, numpy_files

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

Path = pathlib.Path
# Key of a JSON object's own checksum.
SEAL = "own_sha256"
# Errors of a path that cannot be written to: another one helps.
UNUSABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


@contextlib.contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` into a one-line error that says what to do.

    Raises:
        StoredError: If the disk is full, or the path is not writable.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNUSABLE:
            raise StoredError(f"cannot write {path}: {error.strerror}; name another place") from error
        if is_full_disk(error):
            raise StoredError(
                f"no space left on the disk while saving {path}: free some and start the same command again; "
                "what was saved before is intact"
            ) from error
        raise


def machine_bytes() -> int:
    """Return the memory of the machine in bytes, or the limit of the process's container if that is smaller."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # The limits of cgroup v2 and v1.
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # the content is "max" if there is no limit
            memory = min(memory, int(limit.read_text()))
    return memory


def longest_file() -> float:
    """Return how many bytes a file of this process may have, as `ulimit -f` sets it; infinity without a limit."""
    if resource is None:
        return math.inf
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return math.inf if limit == resource.RLIM_INFINITY else limit


def is_full_disk(error: BaseException) -> bool:
    """Return whether an error, or an error in its chain of causes, reports a full disk."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        # Errors of the checkpoint libraries carry no errno, only the text.
        text = str(cause).lower()
        if any(
            words in text for words in ("no space left on device", "resource_exhausted: no space", "file too large")
        ):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing, which is renamed to `path` once its content is on the disk."""
    if not devices.is_first():
        with open(os.devnull, "wb") as nowhere:
            yield nowhere
        return
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        # Another process that writes the same file waits; what a killed one has left is overwritten.
        with locks.held(partial, wait=lambda: None):
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with _whole(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity raise a ValueError."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        StoredError: If the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoredError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StoredError(f"{path} cannot be read as JSON ({error}): delete it or restore it") from error


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON atomically, with a checksum of itself."""
    write_json(path, {**value, SEAL: _seal(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote, without the checksum; files of earlier versions have none.

    Raises:
        StoredError: If the file is missing, is no JSON object, or was changed.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise StoredError(f"{path} is damaged: it holds no JSON object; delete it or restore it")
    seal = value.pop(SEAL, None)
    if seal is not None and seal != _seal(value):
        raise StoredError(
            f"{path} is damaged: its checksum is not the one that was stored in it; delete it or restore it"
        )
    return value


def sealed_once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read a JSON object that `write_sealed` wrote, or make it and keep it: work that is done once.

    Args:
        path: The file.
        make: Returns the object; called if there is no file.

    Returns:
        The object.

    Raises:
        StoredError: If the file is damaged, or cannot be written.
    """
    if path.exists():
        return read_sealed(path)
    # Not read again: of several processes only the first writes.
    value = make()
    write_sealed(path, value)
    return value


def _seal(value: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of a JSON object, however it is laid out."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def keep(path: Path, other: Path) -> None:
    """Give a file a second name, in place of a file that has it; nothing happens if there is no file."""
    if path.exists() and devices.is_first():
        with saving(other):
            other.unlink(missing_ok=True)
            try:
                os.link(path, other)
            except OSError:  # a file system without links
                shutil.copyfile(path, other)


def remove(path: Path) -> None:
    """Delete a file if it is there."""
    if devices.is_first():
        with saving(path):
            path.unlink(missing_ok=True)


def append_json_line(path: Path, value: Any) -> None:
    """Append a line of JSON; an incomplete last line, left by a killed process, is ended first."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(value).encode() + b"\n")


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read a file of JSON objects line by line; damaged lines are skipped, and a missing file has none.

    Raises:
        StoredError: If the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            for text in file:
                value = _json_object(text)
                if value is not None:
                    yield value
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoredError(f"{path} cannot be read ({error.strerror}): delete it or restore it") from error


def _json_object(text: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text)
        return value if isinstance(value, dict) else None
    return None


def cut_json_lines(
    path: Path, *, stop: Callable[[dict[str, Any]], bool], drop: Callable[[dict[str, Any]], bool]
) -> None:
    """Drop lines from the end of a file of JSON lines, and damaged ones there; a missing file has none.

    Only the end of the file is read, as it may have millions of lines.

    Args:
        path: The file.
        stop: Whether a line and all before it are kept. The first such line from the end is the last one looked at.
        drop: Whether to drop a line after that.

    Raises:
        StoredError: If the file cannot be read or written.
    """
    if not devices.is_first() or not path.exists() or not path.stat().st_size:
        return
    kept: list[bytes] = []
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            size = end = len(content)
            while end:
                start = content.rfind(b"\n", 0, end - 1) + 1
                line = _json_object(content[start:end])
                if line is not None and stop(line):
                    break
                if line is not None and not drop(line):
                    kept.append(content[start:end])
                end = start
            if kept:
                with _whole(path) as whole:
                    whole.write(content[:end])
                    whole.writelines(reversed(kept))
    except OSError as error:
        raise StoredError(f"{path} cannot be read ({error.strerror}): delete it or restore it") from error
    if not kept and end < size:
        with saving(path):
            os.truncate(path, end)


def write_tensors(path: Path, tree: Mapping[str, Any], *, sealed: bool = True) -> str:
    """Write a nested dictionary of arrays as safetensors, atomically.

    Args:
        path: The file.
        tree: The arrays.
        sealed: Whether to add a checksum of the arrays to the file's metadata; not for those whose checksum is kept
            elsewhere.

    Returns:
        The SHA-256 of the file.
    """
    content = tensors_content(tree, sealed=sealed)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def tensors_content(tree: Mapping[str, Any], *, sealed: bool = False) -> bytes:
    """Build the content of the file that `write_tensors` writes."""
    flat = traverse_util.flatten_dict(dict(tree), sep="/")
    # Not np.ascontiguousarray: it turns a scalar into an array of one axis.
    arrays = {name: np.asarray(value, order="C") for name, value in flat.items()}
    metadata = {SEAL: _seal_of_arrays(arrays)} if sealed else None
    content: bytes = safetensors.numpy.save(arrays, metadata=metadata)
    return content


def _seal_of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def read_tensors(path: Path, checksum: str | None = None) -> dict[str, Any]:
    """Read a file that `write_tensors` wrote.

    Args:
        path: The file.
        checksum: Expected SHA-256 of the file; not checked if None.

    Returns:
        The nested dictionary of arrays.

    Raises:
        StoredError: If the file is missing or damaged, or does not match the checksum.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoredError(f"{path} cannot be read: {error.strerror}") from None
    if checksum is not None and hashlib.sha256(content).hexdigest() != checksum:
        raise StoredError(f"{path} is damaged: its checksum is not the one that was stored with it")
    try:
        flat = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        seal = header.get("__metadata__", {}).get(SEAL)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise StoredError(f"{path} is not a safetensors file, or is damaged ({error})") from None
    if seal is not None and seal != _seal_of_arrays(flat):
        raise StoredError(f"{path} is damaged: its checksum is not the one that was stored in it")
    return traverse_util.unflatten_dict(flat, sep="/")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a `.npy` file atomically, and its mark."""
    if devices.is_first():
        with saving(path), marks.written(path), _whole(path) as file:
            np.save(file, array, allow_pickle=False)


def read_array(path: Path) -> np.ndarray:
    """Read a `.npy` file.

    Raises:
        StoredError: If the file is missing, damaged, holds pickled objects, or differs from its mark.
    """
    marks.check(path)
    with numpy_files.opened(path) as array:
        if not isinstance(array, np.ndarray):
            raise StoredError(f"{path} is not a .npy file of one array: it is an archive of several")
        return array
