"""Content-addressed cache of trained networks and of metrics per seed."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.runtime import files

Values = dict[int, dict[str, float]]

# To be increased when the computation changes but its settings do not, so that older entries are not used any more.
VERSION = 3


def mark(*parts: Any) -> str:
    """Hash arrays and JSON values.

    Args:
        *parts: Arrays of any shape, hashed by type, shape and content; everything else is hashed as JSON.

    Returns:
        SHA-256 as hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray | jax.Array):
            array = np.ascontiguousarray(part)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
        # A separator, so that ("a", "b") and ("ab",) differ.
        digest.update(b"|")
    return digest.hexdigest()


class Store:
    """Folder of cached results.

    Entries are files named by the hash of their key `what`, JSON values. Each is written atomically; a file of values
    contains its key as well.
    """

    def __init__(self, folder: str | os.PathLike[str], also: str | os.PathLike[str] | None = None):
        """Create a store without touching the disk.

        Args:
            folder: The folder that entries are written to and read from.
            also: A second folder that entries are read from.
        """
        self.folder = pathlib.Path(folder).expanduser()
        self.folders = [self.folder] + ([] if also is None else [pathlib.Path(also).expanduser()])

    def values(self, what: Mapping[str, Any]) -> Values:
        """Return the cached values of the key `what`: column to value, by seed."""
        cached: Values = {}
        # Reversed, so that this folder takes precedence over the second one.
        for path in reversed(self._existing("values", what, "json")):
            cached |= {int(seed): row for seed, row in files.read_sealed(path)["seeds"].items()}
        return cached

    def add_values(self, what: Mapping[str, Any], rows: Values) -> Values:
        """Add rows, by seed, to the cached values of the key `what`; returns the rows."""
        merged = {**self.values(what), **rows}
        body = {"what": dict(what), "seeds": {str(seed): merged[seed] for seed in sorted(merged)}}
        files.write_sealed(self._path("values", what, "json"), body)
        return rows

    def has_network(self, what: Mapping[str, Any], seed: int) -> bool:
        """Return whether the network of a seed is cached."""
        return bool(self._existing("networks", {**what, "seed": seed}, "safetensors"))

    def add_network(self, what: Mapping[str, Any], seed: int, variables: Any) -> None:
        """Write the variables of one network."""
        files.write_tensors(self._path("networks", {**what, "seed": seed}, "safetensors"), jax.device_get(variables))

    def networks(self, what: Mapping[str, Any], seeds: Sequence[int]) -> Any:
        """Read the networks of several seeds; leaves of the variables are stacked along a new first axis of seeds."""
        paths = [self._existing("networks", {**what, "seed": seed}, "safetensors")[0] for seed in seeds]
        # The file format has no empty collections: a network without batch norm lacks `batch_stats`.
        trees = [{"params": {}, "batch_stats": {}} | files.read_tensors(path) for path in paths]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def _path(
        self, kind: str, what: Mapping[str, Any], ending: str, folder: pathlib.Path | None = None
    ) -> pathlib.Path:
        return (folder or self.folder) / kind / f"{mark({'version': VERSION, **what})[:32]}.{ending}"

    def _existing(self, kind: str, what: Mapping[str, Any], ending: str) -> list[pathlib.Path]:
        """List the files of an entry that exist, the one in `self.folder` first."""
        paths = [self._path(kind, what, ending, folder) for folder in self.folders]
        return [path for path in paths if path.exists()]
