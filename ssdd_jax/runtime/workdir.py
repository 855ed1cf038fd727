"""Run directory: bound to one config, locked by one process, with a record of the time and memory of each stage."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssdd_jax import config as configuration
from ssdd_jax.errors import StoredError, UserError
from ssdd_jax.runtime import devices, files, inputs, locks, memory

# Config keys within the groups that outputs depend on which do not affect the outputs: paths, and how often to save.
CHANGES_NOTHING = {"data.data_dir", "data.cache_dir", "teacher.save_every", "teacher.steps_per_call", "teacher.gate"}
# Keys that may change from one start of a run to the next: what is computed is the same up to rounding.
PARALLEL = ("pool.vectorize", "pool.form")
FREE = ("teacher.gate", *PARALLEL)


class Workdir:
    """Paths of a run's outputs."""

    def __init__(
        self, folder: str | os.PathLike[str], shared: str | os.PathLike[str] | None = None, *, tensorboard: bool = False
    ):
        """Define the paths. Nothing is created yet; see `claim`.

        Args:
            folder: The run's folder.
            shared: Folder for the teacher, its features and other outputs that several runs use; by default the run's
                folder.
            tensorboard: Whether the run writes event files for TensorBoard.

        Raises:
            StoredError: If a path is not UTF-8, which the library of the checkpoints needs.
        """
        self.folder = pathlib.Path(folder).expanduser()
        self.shared = self.folder if shared is None else pathlib.Path(shared).expanduser()
        if self.shared.resolve() == self.folder.resolve():
            self.shared = self.folder
        for path in (self.folder.absolute(), self.shared.absolute()):
            if not _is_text(path):
                raise StoredError(f"{path} is not UTF-8, which checkpoints need: choose another --workdir or --shared")
        self.config = self.folder / "config.json"
        self.inputs = self.folder / "inputs.json"
        self.current: Mapping[str, str] = {}
        self.teacher = self.shared / "teacher"
        self.features = self.shared / "features"
        self.gate = self.folder / "gate.json"
        self.samples = self.folder / "samples"
        self.checkpoints = self.folder / "checkpoints"
        self.distilled = self.folder / "distilled"
        self.evaluation = self.folder / "evaluation"
        self.figures = self.folder / "figures"
        self.metrics = self.folder / "metrics.jsonl"
        self.events = self.folder / "tensorboard" if tensorboard else None
        self.results = self.folder / "results.json"
        self.seconds = self.folder / "seconds.json"
        self.memory = self.folder / "memory.json"
        self.calls = self.folder / "calls.jsonl"
        self.snapshots = self.folder / "snapshots"
        self.page = self.folder / "report.html"

    @contextlib.contextmanager
    def claim(self, config: ConfigDict) -> Iterator[None]:
        """Create and lock the folder, or check that it is bound to the same config; in the first process only.

        The devices of a run may change from one start to the next.

        Raises:
            StoredError: If the folder was made with another config (the differences are named), or another run is using
                it.
        """
        if not devices.is_first():
            yield
            return
        with held(self.folder):
            self.check(config)
            yield

    def check(self, config: ConfigDict) -> None:
        """Check that the folder is not bound to another config; nothing is written.

        Raises:
            StoredError: If the folder was made with another config; the differences are named.
        """
        if not self.config.exists():
            return
        new, stored = (
            {key: value for key, value in flat.items() if not key.startswith("devices.") and key not in FREE}
            for flat in (configuration.flatten(config), files.read_json(self.config))
        )
        # Without a record of what lay there, as in folders of older versions, a place stands for its content.
        if self.inputs.exists():
            new, stored = inputs.without_places(new, stored)
        _compare(self.folder, new, stored, "choose another --workdir")

    def check_inputs(self, hashes: Mapping[str, str]) -> None:
        """Check that a run's images, features and weights are those that its folder was made with; nothing is written.

        Args:
            hashes: Hashes of the inputs by name, from `inputs.hashes`. What is gone since the run has converted it is
                left out.

        Raises:
            StoredError: If the folder was made with others.
        """
        self.current = dict(hashes)
        if self.inputs.exists():
            inputs.compare(self.folder, hashes, files.read_json(self.inputs), "choose another --workdir")

    def record(self, config: ConfigDict) -> None:
        """Bind the folder to its config and inputs; called once they work, so that mistakes can be corrected.

        The new places of data that have moved are written down, so that an evaluation finds them, and how many models
        are computed in parallel.
        """
        if not devices.is_first():
            return
        new = configuration.flatten(config)
        stored = files.read_json(self.config) if self.config.exists() else new
        if not self.inputs.exists() and self.current:
            files.write_json(self.inputs, dict(self.current))
        placed = stored | {key: new[key] for key in (*inputs.PLACES, *PARALLEL) if key in new}
        if placed != stored or not self.config.exists():
            files.write_json(self.config, placed)

    def own(self, stage: str, *, shared: bool) -> pathlib.Path:
        """Return the folder of a stage that a method defines, in the shared folder or in the run's folder."""
        return (self.shared if shared else self.folder) / stage

    @contextlib.contextmanager
    def bound(
        self, stage: str, config: ConfigDict, parts: tuple[str, ...], *, say: Callable[[str], None] = print
    ) -> Iterator[None]:
        """Lock a stage of the shared folder, and bind the stage's output to the config keys that it depends on.

        Args:
            stage: Name of the stage.
            config: The run's config.
            parts: The keys, or groups of keys, that the output depends on.
            say: Called with a message if another run must be waited for.

        Raises:
            StoredError: If the output exists, or was begun, with other values; the differences are named.
        """
        if not parts or not devices.is_first():
            yield
            return
        path = self.shared / f"{stage}.json"
        words = f"{stage}: waiting for another run that is making it in {self.shared}"
        with contextlib.ExitStack() as stack:
            with files.saving(path):
                self.shared.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locks.held(self.shared / f".lock-{stage}", wait=lambda: say(words)))
            # Written before the stage starts: an interrupted output is never continued with other values. The work dir
            # is bound to its config as a whole; it is locked, because another run may share its outputs.
            if self.shared != self.folder and not self.agrees(stage, config, parts):
                made_of = self._inputs_of(parts)
                record = _of_parts(configuration.flatten(config), parts)
                files.write_json(path, record | ({"inputs": made_of} if made_of else {}))
            yield

    def agrees(self, stage: str, config: ConfigDict, parts: tuple[str, ...]) -> bool:
        """Return whether a stage's output exists in the shared folder, or was begun, with the config's values.

        Raises:
            StoredError: If it exists with other values; see `bound`.
        """
        folder, path = self.shared / stage, self.shared / f"{stage}.json"
        # The shared folder may be the folder of a run that did not share: its whole config is then the record.
        record = path if path.exists() else self.shared / "config.json"
        if not (folder.exists() and record.exists()):
            return False
        new, content = _of_parts(configuration.flatten(config), parts), files.read_json(record)
        stored, advice = _of_parts(content, parts), "delete it, choose another --shared"
        beside = self.shared / self.inputs.name
        made_of = content.get("inputs", files.read_json(beside) if record != path and beside.exists() else {})
        current = self._inputs_of(parts)
        if made_of and current:
            new, stored = inputs.without_places(new, stored)
            inputs.compare(folder, current, made_of, advice)
        _compare(folder, new, stored, advice)
        return True

    def _inputs_of(self, parts: tuple[str, ...]) -> dict[str, str]:
        """Return the hashes of the inputs that an output depends on, by its groups of config keys."""
        return {name: mark for name, mark in self.current.items() if inputs.PARTS[name] in parts}

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Record the time and the peak memory of a stage within the context.

        Seconds are added up over all calls that the stage needed; of the memory the maximum is kept.
        """
        began, usage = time.monotonic(), {}
        try:
            with memory.peaks() as usage:
                yield
        finally:
            seconds, peaks = self.read_seconds(), self.read_memory()
            seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - began, 2)
            before = peaks.get(stage, {})
            peaks[stage] = before | {place: max(size, before.get(place, 0)) for place, size in usage.items()}
            with contextlib.suppress(UserError):  # must not replace an exception of the stage itself
                files.write_json(self.seconds, seconds)
                files.write_json(self.memory, peaks)

    def read_seconds(self) -> dict[str, float]:
        """Read the seconds that each stage has taken so far."""
        found = files.read_json(self.seconds) if self.seconds.exists() else {}
        return {stage: value for stage, value in _items(found) if isinstance(value, int | float)}

    def read_memory(self) -> dict[str, dict[str, int]]:
        """Read the peak memory of each stage so far in bytes, by place; see `memory.peaks`."""
        found = files.read_json(self.memory) if self.memory.exists() else {}
        return {
            stage: {place: size for place, size in _items(value) if isinstance(size, int)}
            for stage, value in _items(found)
        }


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Create and lock a folder for the duration of the context.

    Raises:
        StoredError: If another process holds the lock.
    """
    with contextlib.ExitStack() as stack:
        with files.saving(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locks.held(folder / ".lock"))
            except locks.Busy:
                raise StoredError(f"another run is using {folder}: wait for it, or choose another --workdir") from None
        yield


def _items(value: Any) -> list[tuple[str, Any]]:
    """Return the items of a JSON object; none of what a damaged file holds instead."""
    return list(value.items()) if isinstance(value, dict) else []


def _is_text(path: pathlib.Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _of_parts(flat: dict[str, Any], parts: tuple[str, ...]) -> dict[str, Any]:
    """Select the keys that belong to `parts` and affect the outputs."""
    selected = {key for key in flat if any(key == part or key.startswith(f"{part}.") for part in parts)}
    return {key: flat[key] for key in flat if key in selected - CHANGES_NOTHING}


def _compare(folder: pathlib.Path, new: dict[str, Any], stored: dict[str, Any], advice: str) -> None:
    """Raise a StoredError that names the differences between two configs, if there are any."""
    # Folders of older versions lack the keys that were added since: those have their default's value.
    defaults = configuration.flatten(configuration.default())
    stored = {key: defaults[key] for key in new if key in defaults} | stored
    different = [
        f"{key} ({stored.get(key)!r} there, {new.get(key)!r} now)"
        for key in sorted(set(new) | set(stored))
        if stored.get(key) != new.get(key)
    ]
    if different:
        raise StoredError(
            f"{folder} was made with another config: {', '.join(different)}; {advice}, or go back to that config"
        )


def fingerprint(images: np.ndarray) -> str:
    """Hash the shape and up to 2,000 images of `(n,H,W,C)`, to identify a data set."""
    digest = hashlib.sha256(str(images.shape).encode())
    for row in np.unique(np.linspace(0, len(images) - 1, 2000).astype(int)):
        digest.update(np.ascontiguousarray(images[row]).tobytes())
    return digest.hexdigest()
