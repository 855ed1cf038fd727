"""Decoded images on disk: made once, then mapped into memory instead of held in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssdd_jax.data import mapped
from ssdd_jax.data.source import Part
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files

try:
    import fcntl
except ImportError:  # not on Windows, where two runs that fill one cache are the user's care
    fcntl = None  # type: ignore[assignment]

# Images decoded at a time: 50 MB at 64x64.
BLOCK = 4096
# Images that are decoded again, to find out that the source is another by now.
CHECKED = 16
# Settings that say where things are, not what they are.
PLACES = ("data_dir", "cache_dir")


class Cache:
    """The images of one data set, in a folder of its own below `data.cache_dir`."""

    def __init__(self, settings: ConfigDict):
        """Nothing is made yet; see `read`.

        Args:
            settings: The `data` part of a config; all that says which images there are names the folder.
        """
        chosen = {key: value for key, value in sorted(settings.items()) if key not in PLACES}
        mark = hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:12]
        name = re.sub(r"[^\w\-]+", "_", pathlib.PurePath(settings.name).name)
        self.folder = pathlib.Path(settings.cache_dir).expanduser() / f"{name}-{mark}"

    def read(self, name: str, part: Part, rows: np.ndarray) -> np.ndarray:
        """The images of some rows, mapped from disk; decoded first where they are not there.

        Args:
            name: Of the file, such as `train_images`.
            part: Where they are decoded from, a few thousand at a time.
            rows: `(k,)` row numbers.

        Returns:
            `(k, H, W, C)` uint8, read-only.

        Raises:
            UserError: as `part.read`; the disk is full; or what is there are other images.
        """
        path, mark = self.folder / f"{name}.npy", self.folder / f"{name}.json"
        # Labels come from the source, whose order must be the one that was decoded.
        labels = None if part.labels is None else hashlib.sha256(part.labels[rows].tobytes()).hexdigest()
        with self._alone():
            if not path.exists():
                mapped.write(path, _decoded(part, rows), len(rows))
                files.write_json(mark, {"labels": labels})
            known = files.read_json(mark)["labels"]
        images = mapped.read(path)
        some = np.unique(np.linspace(0, len(rows) - 1, CHECKED).astype(int))
        same = len(images) == len(rows) and known == labels
        if not same or not np.array_equal(images[some], part.read(rows[some])):
            raise UserError(f"{path} holds other images than the data set has now: delete it")
        return images

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process decodes, the others wait for it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open(self.folder / ".lock", "w")
        except OSError as error:
            raise UserError(f"config.data.cache_dir: cannot write {self.folder}: {error.strerror}") from None
        with lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _decoded(part: Part, rows: np.ndarray) -> Iterator[np.ndarray]:
    shape: Any = None
    for begin in range(0, len(rows), BLOCK):
        block = part.read(rows[begin : begin + BLOCK])
        shape = shape or block.shape[1:]
        if block.shape[1:] != shape:
            raise UserError(
                f"the images differ in size: {'x'.join(map(str, shape))} and {'x'.join(map(str, block.shape[1:]))}; "
                "give them one with --config.data.image_size"
            )
        yield block
