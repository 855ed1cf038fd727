"""A run's folder: one config for life, one process at a time, and a record of the seconds and the memory spent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssdd_jax import config as configuration
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import devices, files, memory

try:
    import fcntl
except ImportError:  # not on Windows, where two runs in one folder are the user's care
    fcntl = None  # type: ignore[assignment]


# Of what outputs depend on, these only say where things are and how often they are saved.
CHANGES_NOTHING = {"data.data_dir", "data.cache_dir", "teacher.save_every", "teacher.steps_per_call"}


class Workdir:
    """Paths of a run's outputs."""

    def __init__(self, folder: str | os.PathLike[str], shared: str | os.PathLike[str] | None = None):
        """Nothing is made yet; see `claim`.

        Args:
            folder: The run's folder.
            shared: Where the teacher, its features and other outputs are kept that several runs use; the run's folder
                if left out.
        """
        self.folder = pathlib.Path(folder).expanduser()
        self.shared = self.folder if shared is None else pathlib.Path(shared).expanduser()
        if self.shared.resolve() == self.folder.resolve():
            self.shared = self.folder
        self.config = self.folder / "config.json"
        self.teacher = self.shared / "teacher"
        self.features = self.shared / "features"
        self.samples = self.folder / "samples"
        self.checkpoints = self.folder / "checkpoints"
        self.distilled = self.folder / "distilled"
        self.evaluation = self.folder / "evaluation"
        self.figures = self.folder / "figures"
        self.metrics = self.folder / "metrics.jsonl"
        self.results = self.folder / "results.json"
        self.seconds = self.folder / "seconds.json"
        self.memory = self.folder / "memory.json"
        self.calls = self.folder / "calls.jsonl"
        self.snapshots = self.folder / "snapshots"
        self.page = self.folder / "report.html"

    @contextlib.contextmanager
    def claim(self, config: ConfigDict) -> Iterator[None]:
        """Make the folder, or check that it is bound to the same config, and hold it: the first of several processes.

        What devices a run uses may change from one start to the next.

        Raises:
            UserError: If it was made with another config (what differs is named), or another run is using it.
        """
        if not devices.is_first():
            yield
            return
        with held(self.folder):
            self.check(config)
            yield

    def check(self, config: ConfigDict) -> None:
        """Refuse a config that is not the folder's; nothing is written.

        Raises:
            UserError: If the folder was made with another one; what differs is named.
        """
        if not self.config.exists():
            return
        wanted, found = (
            {key: value for key, value in flat.items() if not key.startswith("devices.")}
            for flat in (configuration.flatten(config), files.read_json(self.config))
        )
        _compare(self.folder, wanted, found, "choose another --workdir")

    def record(self, config: ConfigDict) -> None:
        """Bind the folder to its config: once the config is known to be workable, so that a mistake can be mended."""
        if not self.config.exists():
            files.write_json(self.config, configuration.flatten(config))

    def own(self, stage: str, *, shared: bool) -> pathlib.Path:
        """The folder of a stage that a method brings: among what runs may share, or in this run's folder."""
        return (self.shared if shared else self.folder) / stage

    @contextlib.contextmanager
    def bound(
        self, stage: str, config: ConfigDict, parts: tuple[str, ...], *, say: Callable[[str], None] = print
    ) -> Iterator[None]:
        """Hold a shared folder while one of its stages runs, and bind the stage's output to what it depends on.

        Args:
            stage: Name of the stage.
            config: The run's config.
            parts: The keys, or groups of keys, that the output depends on.
            say: Told when another run has to be waited for.

        Raises:
            UserError: If the output is there, or begun, with other values; what differs is named.
        """
        if self.shared == self.folder or not parts or not devices.is_first():
            yield  # the work dir is bound to its config as a whole
            return
        path = self.shared / f"{stage}.json"
        with files.saving(path):
            self.shared.mkdir(parents=True, exist_ok=True)
            lock = open(self.shared / f".lock-{stage}", "w")
        with lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    say(f"{stage}: waiting for another run that is making it in {self.shared}")
                    fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.agrees(stage, config, parts):  # at once, so that nothing is ever continued with other values
                files.write_json(path, _of_parts(configuration.flatten(config), parts))
            yield

    def agrees(self, stage: str, config: ConfigDict, parts: tuple[str, ...]) -> bool:
        """Whether a stage's output is in the shared folder, or begun there, with the config's values; see `bound`.

        Raises:
            UserError: If it is there with other values.
        """
        folder, path = self.shared / stage, self.shared / f"{stage}.json"
        known = path if path.exists() else self.shared / "config.json"  # of a run that made it for itself
        if not (folder.exists() and known.exists()):
            return False
        wanted = _of_parts(configuration.flatten(config), parts)
        _compare(folder, wanted, _of_parts(files.read_json(known), parts), "delete it, choose another --shared")
        return True

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds spent within to the stage's, over all the calls that it took; keep the most memory held."""
        began, held = time.monotonic(), {}
        try:
            with memory.peaks() as held:
                yield
        finally:
            seconds, most = self.read_seconds(), self.read_memory()
            seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - began, 2)
            before = most.get(stage, {})
            most[stage] = before | {place: max(size, before.get(place, 0)) for place, size in held.items()}
            with contextlib.suppress(UserError):  # the error on its way, if any, matters more
                files.write_json(self.seconds, seconds)
                files.write_json(self.memory, most)

    def read_seconds(self) -> dict[str, float]:
        """Seconds per stage so far."""
        return files.read_json(self.seconds) if self.seconds.exists() else {}

    def read_memory(self) -> dict[str, dict[str, int]]:
        """The most bytes that each stage has held so far, by place; see `memory.peaks`."""
        return files.read_json(self.memory) if self.memory.exists() else {}


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Make a folder, and keep all other processes that ask for it out of it.

    Raises:
        UserError: If another process holds it.
    """
    with files.saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"another run is using {folder}: wait for it, or choose another --workdir") from None
        yield


def _of_parts(flat: dict[str, Any], parts: tuple[str, ...]) -> dict[str, Any]:
    named = {key for key in flat if any(key == part or key.startswith(f"{part}.") for part in parts)}
    return {key: flat[key] for key in flat if key in named - CHANGES_NOTHING}


def _compare(folder: pathlib.Path, wanted: dict[str, Any], found: dict[str, Any], advice: str) -> None:
    # A key that did not exist yet stood for what its default does.
    now = configuration.flatten(configuration.default())
    found = {key: now[key] for key in wanted if key in now} | found
    different = [
        f"{key} ({found.get(key)!r} there, {wanted.get(key)!r} now)"
        for key in sorted(set(wanted) | set(found))
        if found.get(key) != wanted.get(key)
    ]
    if different:
        raise UserError(
            f"{folder} was made with another config: {', '.join(different)}; {advice}, or go back to that config"
        )


def fingerprint(images: np.ndarray) -> str:
    """A hash that tells data sets apart: of the shape and of up to 2,000 images out of `(n,H,W,C)`."""
    digest = hashlib.sha256(str(images.shape).encode())
    for row in np.unique(np.linspace(0, len(images) - 1, 2000).astype(int)):
        digest.update(np.ascontiguousarray(images[row]).tobytes())
    return digest.hexdigest()
