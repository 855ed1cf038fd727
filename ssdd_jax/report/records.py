"""Read the output files of a finished run."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from ssdd_jax import distilled
from ssdd_jax.errors import UserError
from ssdd_jax.report import figures, snapshots
from ssdd_jax.runtime import files, history
from ssdd_jax.runtime.workdir import Workdir
from ssdd_jax.training import loop

# Half of the most points of a curve, of which a page or figure shows no more.
POINTS = 2000


def upgrade(results: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `results.json` of any version to the newest: schema 1 (ssdd_jax 0.1.0) lacks the number.

    There `linear` is KRR-ST's probe, and no network has recalibrated batch norm.
    """
    if "schema" in results:
        return dict(results)
    renamed = {"linear_krr_st" if name == "linear" else name: value for name, value in results.items()}
    return {"schema": 1, **renamed, "calibrate": "none"}


class Record(NamedTuple):
    """Outputs of a finished run.

    Attributes:
        folder: The run's folder.
        config: Content of `config.json`.
        results: Content of `results.json`, see `upgrade`.
        about: Description of the distilled set.
        lines: Lines of `metrics.jsonl`.
        calls: Log of the commands that were run in the folder, in order; empty for runs of older versions.
        images: Decoded images uint8 `(M,H,W,C)`.
        bases: Image bases uint8 `(U,h,w,C)`, zero as mid-grey; None if there are none.
        pairs: Number of pairs of the set, including all views.
        snapshots: Snapshots by step, see `snapshots.read`.
        stored: The stored images that others are composed of, uint8 `(U,h,w,C)`; None if there are none.
        inputs: Hashes of the run's images, labels, features and weights by name; empty for runs of older versions.
    """

    folder: pathlib.Path
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    about: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    calls: Sequence[Mapping[str, Any]]
    images: np.ndarray
    bases: np.ndarray | None
    pairs: int
    snapshots: Mapping[int, Mapping[str, np.ndarray]]
    stored: np.ndarray | None = None
    inputs: Mapping[str, str] = MappingProxyType({})


def read(folder: str | pathlib.Path) -> Record:
    """Read the folder of a run.

    Args:
        folder: The run's work dir.

    Raises:
        UserError: If the folder holds no run, or a run that has not been evaluated yet.
    """
    work = Workdir(folder)
    if not work.results.is_file() or not work.config.is_file():
        raise UserError(
            f"{work.folder} holds no finished run: {work.results.name} or {work.config.name} is missing; name the "
            "--workdir of a run that has been evaluated"
        )
    distilled_set = distilled.load(work.distilled)
    bases, stored = distilled_set.arrays.get("image_bases"), distilled_set.stored_images()
    return Record(
        folder=work.folder,
        config=files.read_json(work.config),
        results=upgrade(files.read_sealed(work.results)),
        about=distilled_set.about,
        lines=loop.read_metrics(work.metrics, most=POINTS),
        calls=history.read(work.calls),
        images=snapshots.as_bytes(np.asarray(distilled_set.images())),
        bases=None if bases is None else snapshots.as_bytes(figures.stretch(np.asarray(jax.device_get(bases)))),
        pairs=len(distilled_set.pairs()[0]),
        snapshots=snapshots.read(work.snapshots),
        stored=None if stored is None else snapshots.as_bytes(np.asarray(stored)),
        inputs=files.read_json(work.inputs) if work.inputs.is_file() else {},
    )
