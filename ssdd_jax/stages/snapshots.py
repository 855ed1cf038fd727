"""Snapshots of a few images and bases during the distillation, for the report."""

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
# Shares of the outer steps. A snapshot is taken at the end of the compiled call that contains the step.
MOMENTS = (0.0, 0.1, 0.3, 0.6, 1.0)


def watcher(run: Run, preprocessing: Preprocessing) -> Callable[[loop.Progress], None] | None:
    """Build the callback that writes snapshots; None if the method has no `show`.

    Every process of a run must call it. A resumed run overwrites the snapshots of repeated steps with identical ones.

    Args:
        run: The run.
        preprocessing: The data set's constants.

    Returns:
        A callback for `ssdd_jax.training.loop.run`.
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
        # Collective on several devices, hence before all processes but the first return.
        pictures = devices.local(mesh, look(progress.state))
        if not devices.is_first():
            return
        images = pictures["pixels"] if "pixels" in pictures else preprocessing.pixels(pictures["images"])
        pixels = {"images": np.asarray(images)}
        if "bases" in pictures:
            pixels["bases"] = figures.stretch(np.asarray(pictures["bases"]))
        path = run.work.snapshots / f"step-{progress.done:08d}.safetensors"
        files.write_tensors(path, {name: as_bytes(values) for name, values in pixels.items()})

    return watch
