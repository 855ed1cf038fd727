"""What a report is made of: everything that a finished run left in its folder, read once."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ssdd_jax import distilled
from ssdd_jax.errors import UserError
from ssdd_jax.report import figures, snapshots
from ssdd_jax.runtime import files, history
from ssdd_jax.runtime.workdir import Workdir
from ssdd_jax.training import loop


class Record(NamedTuple):
    """A finished run.

    Attributes:
        folder: Its folder.
        config: `config.json`.
        results: `results.json`.
        about: The set's description.
        lines: Those of `metrics.jsonl`.
        calls: Its calls, the last one last; none of a run that an older version made.
        images: The decoded images uint8 `(M,H,W,C)`.
        bases: Image bases uint8 `(U,h,w,C)`, zero as mid-grey; None where there are none.
        pairs: How many pairs the set gives, views included.
        snapshots: See `snapshots.read`.
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


def read(folder: str | pathlib.Path) -> Record:
    """Read a run's folder.

    Raises:
        UserError: If it holds no run, or one that has not come to its evaluation.
    """
    work = Workdir(folder)
    if not work.results.is_file() or not work.config.is_file():
        raise UserError(
            f"{work.folder} holds no finished run: there is no {work.results.name} in it; name a --workdir whose "
            "run has come to its evaluation"
        )
    found = distilled.load(work.distilled)
    bases = found.arrays.get("image_bases")
    return Record(
        folder=work.folder,
        config=files.read_json(work.config),
        results=files.read_json(work.results),
        about=found.about,
        lines=loop.read_metrics(work.metrics),
        calls=history.read(work.calls),
        images=snapshots.as_bytes(np.asarray(found.images())),
        bases=None if bases is None else snapshots.as_bytes(figures.stretch(np.asarray(jax.device_get(bases)))),
        pairs=len(found.pairs()[0]),
        snapshots=snapshots.read(work.snapshots),
    )
