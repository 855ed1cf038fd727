"""Whole runs under a fault: how they are started, how they end, and what they have to end with."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

import ssdd_jax
from experiments.measure import small_runs
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files

# Seconds within which a run ends after a fault.
HANGS = 30
# Seconds that an undisturbed run may take, however busy the machine is.
PATIENCE = 900


class Answer(NamedTuple):
    """Exit status of a process, None if it had to be killed, and its output and errors."""

    status: int | None
    output: str
    errors: str


class NotPossible(Exception):
    """Raised where this machine or this user cannot have a fault."""


class Trial:
    """One run under one fault.

    Attributes:
        method: The method that is run.
        run: The run's folder.
        generator: What is drawn at random is drawn from this.
        seconds: How long an undisturbed run takes.
        memory: The address space that it takes, in bytes.
        done: What was done to it.
        findings: What was not as promised.
        errors: What its processes wrote to standard error.
    """

    def __init__(self, method: str, base: pathlib.Path, run: pathlib.Path, generator: np.random.Generator) -> None:
        """Prepare a run of a method in the folder `run`, on the images and with the compiled programs in `base`."""
        self.method, self.base, self.run, self.generator = method, base, run, generator
        undisturbed = json.loads((base / "undisturbed" / f"{method}.json").read_text())
        self.seconds, self.memory = undisturbed["seconds"], undisturbed["memory"]
        self.expected: dict[str, str] = undisturbed["artefacts"]
        self.done: list[str] = []
        self.findings: list[str] = []
        self.errors: list[str] = []

    def start(self, *changes: str, before: Sequence[str] = (), **variables: str) -> subprocess.Popen[str]:
        """Start the command, behind another that leads to it, or with other variables of the environment."""
        line = small_runs.command(self.base / "images.npz", self.run, self.method)
        return start([*before, sys.executable, "-m", "ssdd_jax.main", *line, *changes], self.base, **variables)

    def moment(self) -> float:
        """Draw a moment of the run, in seconds from its start."""
        return float(self.generator.uniform(0, self.seconds))

    def expect(self, answer: Answer, statuses: Sequence[int], what: str) -> None:
        """Note a finding unless the process ended with one of these statuses and without a traceback."""
        self.errors.append(f"{what}: status {answer.status}\n{answer.errors}")
        if before_the_package(answer):
            self.done.append("before the package was loaded")
            return
        last = (answer.errors.strip().splitlines() or ["nothing was said"])[-1][:300]
        if answer.status is None:
            self.findings.append(f"{what}: still running after {HANGS} seconds; {last}")
        elif "Traceback" in answer.errors and "ssdd_jax" in answer.errors:
            self.findings.append(f"{what}: a traceback; {last}")
        elif answer.status not in statuses:
            self.findings.append(f"{what}: status {answer.status}; {last}")
        elif answer.status == 2 and not any(line.startswith("ssdd_jax: ") for line in answer.errors.splitlines()):
            self.findings.append(f"{what}: status 2 without a line; {last}")

    def stopped_by_kill(self) -> None:
        """Start the run, and kill it at a random moment."""
        moment = self.moment()
        process = self.start()
        time.sleep(moment)
        process.kill()
        end(process, PATIENCE)
        self.done.append(f"killed after {moment:.1f} s")

    def finish(self, run: pathlib.Path | None = None) -> None:
        """Type the command again; the run has to end with the artefacts of the undisturbed one."""
        before, self.run = self.run, run or self.run
        answer = end(self.start(), PATIENCE)
        self.expect(answer, [0], "the same command")
        if answer.status == 0:
            self.compare()
        self.run = before

    def compare(self, run: pathlib.Path | None = None) -> None:
        """Note what is another than in the undisturbed run, or cannot be read."""
        run = run or self.run
        found = artefacts(run)
        names = [name for name in self.expected if found.get(name) != self.expected[name]]
        if not names:
            return
        try:
            ssdd_jax.load(run / "distilled").pairs()
        except UserError as error:
            self.findings.append(f"finished, but {' and '.join(names)} cannot be read: {error}")
        else:
            self.findings.append(f"another {' and '.join(names)} than in the undisturbed run")


def before_the_package(answer: Answer) -> bool:
    """Return whether Python itself was interrupted, before it has loaded the package: no program can answer that."""
    lines = answer.errors.strip().splitlines()
    return bool(lines) and lines[-1] == "KeyboardInterrupt" and "in _get_module_details" in answer.errors


def start(line: Sequence[str], folder: pathlib.Path, **variables: str) -> subprocess.Popen[str]:
    """Start a command of this checkout in a folder; compiled programs are shared, so that most of the time is work."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [variables.pop("path", ""), str(pathlib.Path.cwd())])),
        # Programs that compile quickly; what is promised does not depend on it.
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        **variables,
    }
    return subprocess.Popen(
        list(line), cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace",
    )  # fmt: skip


def end(process: subprocess.Popen[str], within: float) -> Answer:
    """Wait for the end of a process; one that takes longer is killed."""
    try:
        output, errors = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        return Answer(None, output, errors)
    return Answer(process.returncode, output, errors)


def artefacts(run: pathlib.Path) -> dict[str, str]:
    """Return hashes of what a run is made for: the set, its description, its snapshots, and the results."""
    found = {}
    for file in sorted(run.glob("distilled/*")) + sorted(run.glob("snapshots/*")):
        if file.is_file():
            found[file.relative_to(run).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    try:
        results = json.loads((run / "results.json").read_text())
        # Times and memory are others each time, and so is the checksum of all.
        for key in ("seconds", "memory", files.SEAL):
            results.pop(key, None)
        found["results.json"] = hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()
    except (OSError, ValueError, AttributeError):
        pass
    return found


def undisturbed(method: str, base: pathlib.Path) -> float:
    """Run a method once to fill the cache of compiled programs, and once more as the run that others are compared with.

    Returns:
        The seconds that the second run took.

    Raises:
        UserError: If it does not end well, or not with the same artefacts both times.
    """
    folder = base / "undisturbed"
    folder.mkdir(parents=True, exist_ok=True)
    found, seconds, memory = [], 0.0, 0
    for name in ("first", "second"):
        run = folder / f"{method}-{name}"
        shutil.rmtree(run, ignore_errors=True)
        line = small_runs.command(base / "images.npz", run, method)
        began = time.monotonic()
        process = start([sys.executable, "-m", "ssdd_jax.main", *line], base)
        while process.poll() is None and time.monotonic() < began + PATIENCE:
            memory = max(memory, _address_space(process.pid))
            time.sleep(0.05)
        answer = end(process, 1)
        if answer.status != 0:
            raise UserError(f"the undisturbed run of {method} failed: {answer.errors.strip()[-300:]}")
        seconds = time.monotonic() - began
        found.append(artefacts(run))
    if found[0] != found[1]:
        names = [name for name in found[0] if found[0][name] != found[1].get(name)]
        raise UserError(f"two undisturbed runs of {method} differ in {', '.join(names)}")
    content = {"seconds": seconds, "memory": memory, "artefacts": found[0]}
    (folder / f"{method}.json").write_text(json.dumps(content))
    return seconds


def _address_space(pid: int) -> int:
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return max([int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmPeak")], default=0)
