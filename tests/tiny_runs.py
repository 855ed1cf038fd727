"""A whole run small enough for a test: 8x8 images, features that are brought or a narrow teacher, a few steps."""

import fcntl
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from experiments.measure import small_runs
from ssdd_jax import main

ROOT = pathlib.Path(__file__).parent.parent
# Seconds after which a process or a thread that a test waits for is taken to hang, however busy the machine is.
TIMEOUT = 1800

# Two checks before the distillation take a third of a tiny run's time. They are made in their own tests, in those of
# one method, and in the run that several files share.
CHECKED = {"devices__preflight": "warn", "teacher__gate": "warn"}

TINY = small_runs.SMALL
TAUGHT = small_runs.TAUGHT


def write_data(folder: pathlib.Path, *, labels: bool = True, side: int = 8) -> None:
    """`images.npz` (120 + 40 images) and `features.npz` in the folder."""
    images, label = small_runs.write_images(folder / "images.npz", labels=labels, side=side)

    def features_of(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1)[:, :12].astype(np.float32) + np.eye(3, 12, dtype=np.float32)[label] * 50

    features = features_of(images)
    views = {f"rot{90 * k}": features_of(np.rot90(images, k, (1, 2)))[:120] for k in (1, 2, 3)}
    np.savez(folder / "features.npz", train=features[:120], test=features[120:], **views)


def arguments(folder: pathlib.Path, workdir: str | os.PathLike[str] = "run", **changes: object) -> list[str]:
    """The command line of a tiny run; `a__b=value` changes `config.a.b`."""
    values = {
        "data.name": f"npz:{folder / 'images.npz'}",
        "data.image_size": 0,
        "teacher.features": folder / "features.npz",
        **TINY,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return [
        "--config=configs/digits.py",
        f"--workdir={folder / workdir}",
        *(f"--config.{key}={value}" for key, value in values.items()),
    ]


def taught(folder: pathlib.Path, edition: str, workdir: str = "", **changes: object) -> list[str]:
    """The command line of a tiny run of an edition, with a teacher of its own that the folder's runs share."""
    own = {key.replace(".", "__"): value for key, value in TAUGHT.items()}
    line = arguments(folder, workdir or edition, **own | changes)
    return [f"--config=configs/digits.py:{edition}", *line[1:], f"--shared={folder / 'shared'}"]


def with_teacher(base: pathlib.Path) -> pathlib.Path:
    """A folder in `base` with data and, in `shared/`, a teacher and its features; made once, not to be changed."""
    folder = base / "with_teacher"
    if not folder.exists():
        folder.mkdir()
        write_data(folder)
        assert main.main([*taught(folder, "random", "teacher"), "--stage=features"]) == 0
    return folder


def finished(base: pathlib.Path) -> tuple[pathlib.Path, str]:
    """A run of Boost-SSDD in `base`, left alone in a process of its own: its folder, not to be changed, and its output.

    The first process that asks for it makes it; the others wait.
    """
    folder = base / "finished"
    folder.mkdir(exist_ok=True)
    output = folder / "output.txt"
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            write_data(folder)
            process = start(arguments(folder, **CHECKED), folder)
            out, err = process.communicate(timeout=TIMEOUT)
            assert process.returncode == 0, err
            output.write_text(out)
    return folder / "run", output.read_text()


def start(line: list[str], folder: pathlib.Path, **variables: str) -> subprocess.Popen:
    """The command line in a process of its own, in another directory than the checkout; `variables` of environment."""
    environment = os.environ | variables
    if not any("site-packages" in path for path in main.__spec__.origin.split(os.sep)):
        environment["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(
        [sys.executable, "-m", "ssdd_jax.main", *line],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Until the condition holds, or the process has ended."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline and (process is None or process.poll() is None) and not condition():
        time.sleep(0.02)


def wait_for_step(run: pathlib.Path, step: int, process: subprocess.Popen) -> None:
    """Until the run's metrics have the step, or the process has ended."""
    metrics = run / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and f'"step": {step}' in metrics.read_text(), process)
