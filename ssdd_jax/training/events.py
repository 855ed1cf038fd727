"""Logged scalars as event files, which TensorBoard shows."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping

from ssdd_jax.runtime import devices, files

Add = Callable[[int, Mapping[str, float]], None]
# Seconds after which values are written at the latest.
FLUSH_SECONDS = 20


@contextlib.contextmanager
def writing(folder: pathlib.Path | None, name: str, *, done: int) -> Iterator[Add]:
    """Context that yields a function `(step, scalars by name) -> None`, which adds to the event files of a training.

    The package tensorboardX must be installed (the extra `tensorboard`).

    Args:
        folder: Folder for all trainings of a run, each of which has a subfolder; None, or a process other than the
            first of several, to write nothing.
        name: Name of the training, with which the names of its scalars begin.
        done: Steps that are done. Values of later steps, from a run that was killed after its last checkpoint, are no
            longer shown.

    Raises:
        UserError: If the disk is full or cannot be written to.
    """
    if folder is None or not devices.is_first():
        yield lambda step, scalars: None
        return
    from tensorboardX import SummaryWriter

    place = folder / name
    with files.saving(place):
        # The suffix tells files apart that are begun in one second.
        writer = SummaryWriter(str(place), purge_step=done + 1, flush_secs=FLUSH_SECONDS, filename_suffix=f".{done}")

    def add(step: int, scalars: Mapping[str, float]) -> None:
        with files.saving(place):
            for key, value in scalars.items():
                writer.add_scalar(f"{name}/{key}", value, step)

    with writer:
        yield add
