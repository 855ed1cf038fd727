"""A few images and bases at a few moments of the distillation, kept small, for the report."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.methods.base import Run
from ssdd_jax.report import figures
from ssdd_jax.report.snapshots import as_bytes
from ssdd_jax.runtime import devices, files
from ssdd_jax.training import loop

SHOWN = 8
# Of all steps; the call of the loop in which a moment falls is seen at its end.
MOMENTS = (0.0, 0.1, 0.3, 0.6, 1.0)


def watcher(run: Run, preprocessing: Preprocessing) -> Callable[[loop.Progress], None] | None:
    """What the loop is to call while it distils; None where a method shows nothing.

    Every process of a run must call it. What a resumed run sees again it writes again, the same.

    Args:
        run: The run.
        preprocessing: The data set's constants.
    """
    show, mesh = run.method.show, run.problem.mesh
    if show is None:
        return None
    moments = [max(1, round(share * run.method.steps)) for share in MOMENTS]
    look = jax.jit(lambda state: {name: pictures[:SHOWN] for name, pictures in show(state).items()})

    def watch(progress: loop.Progress) -> None:
        before = progress.done - len(progress.info.loss)
        if not any(before < moment <= progress.done for moment in moments):
            return
        seen = devices.local(mesh, look(progress.state))
        if not devices.is_first():
            return
        pixels = {"images": np.asarray(preprocessing.pixels(seen["images"]))}
        if "bases" in seen:
            pixels["bases"] = figures.stretch(np.asarray(seen["bases"]))
        path = run.work.snapshots / f"step-{progress.done:08d}.safetensors"
        files.write_tensors(path, {name: as_bytes(values) for name, values in pixels.items()})

    return watch
