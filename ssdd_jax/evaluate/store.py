"""What has been computed before, found by what it was computed from: trained networks, and values per seed."""

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

# Raised when the same settings come to mean another computation.
VERSION = 1


def mark(*parts: Any) -> str:
    """A hash of arrays, by shape, type and content, and of JSON values."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray | jax.Array):
            array = np.ascontiguousarray(part)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"|")
    return digest.hexdigest()


class Store:
    """A folder of results; every entry is written whole or not at all, and values say what they are of."""

    def __init__(self, folder: str | os.PathLike[str], also: str | os.PathLike[str] | None = None):
        """Nothing is made yet.

        Args:
            folder: Where to keep things.
            also: Another such folder, in which things are found as well.
        """
        self.folder = pathlib.Path(folder).expanduser()
        self.folders = [self.folder] + ([] if also is None else [pathlib.Path(also).expanduser()])

    def values(self, what: Mapping[str, Any]) -> Values:
        """What is known of `what`, JSON values: column to value, by seed."""
        found: Values = {}
        for path in reversed(self._there("values", what, "json")):
            found |= {int(seed): row for seed, row in files.read_json(path)["seeds"].items()}
        return found

    def add_values(self, what: Mapping[str, Any], rows: Values) -> Values:
        """Add rows by seed to what is known of `what`; returns them."""
        known = {**self.values(what), **rows}
        body = {"what": dict(what), "seeds": {str(seed): known[seed] for seed in sorted(known)}}
        files.write_json(self._path("values", what, "json"), body)
        return rows

    def has_network(self, what: Mapping[str, Any], seed: int) -> bool:
        """Whether the network of a seed is there."""
        return bool(self._there("networks", {**what, "seed": seed}, "safetensors"))

    def add_network(self, what: Mapping[str, Any], seed: int, variables: Any) -> None:
        """Keep the variables of one network."""
        files.write_tensors(self._path("networks", {**what, "seed": seed}, "safetensors"), jax.device_get(variables))

    def networks(self, what: Mapping[str, Any], seeds: Sequence[int]) -> Any:
        """Variables of these seeds' networks, stacked along a new first axis."""
        paths = [self._there("networks", {**what, "seed": seed}, "safetensors")[0] for seed in seeds]
        trees = [{"params": {}, "batch_stats": {}} | files.read_tensors(path) for path in paths]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def _path(
        self, kind: str, what: Mapping[str, Any], ending: str, folder: pathlib.Path | None = None
    ) -> pathlib.Path:
        return (folder or self.folder) / kind / f"{mark({'version': VERSION, **what})[:32]}.{ending}"

    def _there(self, kind: str, what: Mapping[str, Any], ending: str) -> list[pathlib.Path]:
        """The files that there are, this folder's own first."""
        paths = [self._path(kind, what, ending, folder) for folder in self.folders]
        return [path for path in paths if path.exists()]
