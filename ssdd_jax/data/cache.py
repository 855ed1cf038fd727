"""On-disk cache of decoded images, written once and memory-mapped afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssdd_jax.data import mapped
from ssdd_jax.data.source import Part
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files, locks, marks

# Images decoded at a time: 50 MB at 64x64.
BLOCK = 4096
# Images that are decoded again on every read, to detect that the source has changed.
CHECKED = 16
# Settings that are locations and do not change the images, left out of the cache key.
PLACES = ("data_dir", "cache_dir")


class Cache:
    """Cache of one data set's decoded images, in its own folder below `data.cache_dir`."""

    def __init__(self, settings: ConfigDict):
        """Set the folder of the cache; nothing is written before `read`.

        Args:
            settings: The `data` part of a config; the folder's name contains a hash of all settings that select
                images.
        """
        chosen = {key: value for key, value in sorted(settings.items()) if key not in PLACES}
        mark = hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:12]
        name = re.sub(r"[^\w\-]+", "_", pathlib.PurePath(settings.name).name)
        self.folder = pathlib.Path(settings.cache_dir).expanduser() / f"{name}-{mark}"

    def read(self, name: str, part: Part, rows: np.ndarray) -> np.ndarray:
        """Map the selected images from disk, and decode them first if they are not cached.

        Args:
            name: Name of the file, such as `train_images`.
            part: The part that images are decoded from, a few thousand at a time.
            rows: Image indices `(k,)`.

        Returns:
            `(k, H, W, C)` uint8, read-only.

        Raises:
            UserError: If `part.read` fails, the disk is full, or the cached images are not those of the data set.
        """
        path = self.path(name)
        with self.alone():
            if not self.holds(name):
                self._write(name, part, rows, _decoded(part, rows))
            cached = files.read_json(self._record(name))
        images = mapped.read(path)
        # Comparing all images would decode them all again: their number and labels, the lengths of their files and a
        # sample reveal most changes.
        sample = np.unique(np.linspace(0, len(rows) - 1, CHECKED).astype(int))
        now = _facts(part, rows)
        same = len(images) == len(rows) and now == {name: cached.get(name, now[name]) for name in now}
        if not same or not np.array_equal(images[sample], part.read(rows[sample])):
            raise UserError(f"{path} holds other images than the data set has now: delete it")
        return images

    def holds(self, name: str) -> bool:
        """Return whether the images of a name such as `train_images` are there, written to the end."""
        return self.path(name).exists() and self._record(name).exists()

    def path(self, name: str) -> pathlib.Path:
        """Return the file of the images of a name such as `train_images`."""
        return self.folder / f"{name}.npy"

    def write_share(self, name: str, part: Part, rows: np.ndarray, *, index: int, count: int) -> None:
        """Decode the share of one of several processes into a file of its own.

        Args:
            name: Name of the file.
            part: The part that images are decoded from.
            rows: Image indices of all shares together `(k,)`.
            index: The process.
            count: The number of processes.
        """
        own = _share(rows, index, count)
        if len(own):
            mapped.write(self._path_of_share(name, index), _decoded(part, own), len(own))

    def join_shares(self, name: str, part: Part, rows: np.ndarray, *, count: int) -> None:
        """Join the shares of all processes in the file that `read` maps, and delete them.

        Args:
            name: Name of the file.
            part: The part that images were decoded from.
            rows: Image indices of all shares together `(k,)`.
            count: The number of processes.

        Raises:
            UserError: If the images of the shares differ in size.
        """
        paths = [self._path_of_share(name, index) for index in range(count) if len(_share(rows, index, count))]
        # One image of each share shows whether their sizes agree before any is copied.
        _check_sizes([mapped.read(path).shape[1:] for path in paths])
        blocks = (
            share[begin : begin + BLOCK] for share in map(mapped.read, paths) for begin in range(0, len(share), BLOCK)
        )
        self._write(name, part, rows, blocks)
        for path in paths:
            files.remove(path)
            files.remove(marks.place(path))

    def _write(self, name: str, part: Part, rows: np.ndarray, blocks: Iterable[np.ndarray]) -> None:
        # The record is written last: images without one are of a process that was killed, and are decoded again.
        files.remove(self._record(name))
        mapped.write(self.path(name), blocks, len(rows))
        # Labels are read from the source, not from the cache: its order must still be the one that was decoded.
        files.write_json(self._record(name), _facts(part, rows))

    def _record(self, name: str) -> pathlib.Path:
        return self.folder / f"{name}.json"

    def _path_of_share(self, name: str, index: int) -> pathlib.Path:
        return self.folder / f"{name}.share{index}.npy"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock of the folder, so that one process decodes while the others wait."""
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locks.held(self.folder / ".lock", wait=lambda: None))
            except OSError as error:
                raise UserError(f"config.data.cache_dir: cannot write {self.folder}: {error.strerror}") from None
            yield


def _facts(part: Part, rows: np.ndarray) -> dict[str, str | None]:
    """Hash what is known of the images of a source without decoding them: labels, and lengths of files."""
    known = {"labels": None if part.labels is None else part.labels[rows]}
    known["lengths"] = None if part.lengths is None else part.lengths(rows)
    hashes = {name: values if values is None else hashlib.sha256(values.tobytes()) for name, values in known.items()}
    return {name: found if found is None else found.hexdigest() for name, found in hashes.items()}


def _share(rows: np.ndarray, index: int, count: int) -> np.ndarray:
    """Return the indices of one process: consecutive ones, as many as those of the others or one fewer."""
    return np.array_split(rows, count)[index]


def _decoded(part: Part, indices: np.ndarray) -> Iterator[np.ndarray]:
    # `part.read` compares the sizes within a block only.
    shape: Any = None
    for begin in range(0, len(indices), BLOCK):
        block = part.read(indices[begin : begin + BLOCK])
        shape = shape or block.shape[1:]
        _check_sizes([shape, block.shape[1:]])
        yield block


def _check_sizes(shapes: list[tuple[int, ...]]) -> None:
    other = next((shape for shape in shapes if shape != shapes[0]), None)
    if other is not None:
        raise UserError(
            f"the images differ in size: {'x'.join(map(str, shapes[0]))} and {'x'.join(map(str, other))}; "
            "give them one with --config.data.image_size"
        )
