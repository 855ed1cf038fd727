"""Train a Barlow Twins teacher, follow its linear probe, and export small weights.

    python -m experiments.train_teacher --config=configs/cifar10.py --config.data.data_dir=DIR --workdir=FOLDER \\
        --config.teacher.width=32 "--config.teacher.blocks=(1,1,1,1)" --config.teacher.epochs=150

The training is that of a run's stage `teacher` and resumes like it. Every `EVERY` epochs the features of the training
images are probed: standardised, by ridge regression of the labels' indicators, fitted on four fifths of the training
images and tested on the rest; the test part of the data is never read. `FOLDER/export`, written after every
probe, holds `teacher.json`, `teacher.safetensors` (float16) and `curve.json`: a value for `teacher.source`.
"""

from __future__ import annotations

import functools
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measure import command_line
from ssdd_jax import config as configuration
from ssdd_jax import data, teacher
from ssdd_jax.cli import arguments
from ssdd_jax.data import preprocess
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files, inputs
from ssdd_jax.runtime.workdir import Workdir
from ssdd_jax.stages import teacher as stage
from ssdd_jax.training import loop
from ssdd_jax.training.checkpoints import Checkpoints

# Epochs between two probes.
EVERY = 10
# Share of the training images that a probe is tested on, one of `FOLDS`, and ridges relative to the mean variance.
FOLDS = 5
RIDGES = (1e-4, 1e-3, 1e-2)


def probe(train: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Probe features: ridge regression of the labels' indicators from standardised features.

    Args:
        train: Features `(n,D)`.
        labels: Their labels `(n,)`.
        classes: Number of classes.

    Returns:
        The accuracy in percent on every fifth image, fitted to the others, with the best of `RIDGES`.
    """
    held = np.arange(len(train)) % FOLDS == 0
    x = (train - train[~held].mean(0)) / np.maximum(train[~held].std(0), 1e-6)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    y = np.eye(classes)[labels]
    covariance, cross = x[~held].T @ x[~held] / (~held).sum(), x[~held].T @ y[~held] / (~held).sum()
    weights = [np.linalg.solve(covariance + ridge * np.eye(len(covariance)), cross) for ridge in RIDGES]
    return 100 * max(float((np.argmax(x[held] @ w, 1) == labels[held]).mean()) for w in weights)


def train(options: arguments.Options) -> dict[str, Any]:
    """Train or resume, probe on the way, and write the export."""
    config, folder = configuration.resolved(options.config), options.workdir
    configuration.validate(config)
    dataset = data.load(config.data)
    if not dataset.classes:
        raise UserError(f"{config.data.name} has no labels, which the probe needs")
    labels, images = np.asarray(dataset.train_labels), np.asarray(dataset.train_images)
    mean, std = preprocess.dataset_moments(dataset)
    trainer = stage.trainer_of(config, dataset)
    epoch = trainer.steps // config.teacher.epochs
    key = jax.random.fold_in(jax.random.key(config.teacher.seed), 1)
    init = functools.partial(trainer.init, key)
    training = loop.Training(
        name="teacher",
        init=jax.jit(init),
        step=stage.step_of(trainer, resident=True),
        steps=trainer.steps,
        per_call=min(config.teacher.steps_per_call, epoch),
        save_every=config.teacher.save_every,
        advice="try a smaller config.teacher.learning_rate in another folder",
        feed=stage.rows_of(key, trainer),
    )
    path, chosen = folder / "curve.jsonl", config.teacher
    about = {"blocks": list(chosen.blocks), "width": chosen.width, "mean": mean.tolist(), "std": std.tolist()}
    began = time.monotonic()

    def watch(progress: loop.Progress) -> None:
        # A probe follows the first call that completes a multiple of `EVERY` epochs, and the last one.
        due = progress.done // (EVERY * epoch) > (progress.done - training.per_call) // (EVERY * epoch)
        if not due and progress.done < trainer.steps:
            return
        features = teacher.features(
            progress.state.variables, images, mean=mean.tolist(), std=std.tolist(), batch_size=1000
        )
        accuracy = probe(features, labels, dataset.classes)
        line = {"epoch": progress.done / epoch, "probe": accuracy, "loss": float(np.mean(progress.info.loss))}
        files.append_json_line(path, line | {"seconds": time.monotonic() - began})
        print(f"teacher: epoch {line['epoch']:.0f}, probe {accuracy:.2f} %", file=sys.stderr, flush=True)
        export(folder / "export", jax.device_get(progress.state.variables), about)
        curve = {"curve": list(files.json_lines(path)), "config": configuration.flatten(config)}
        files.write_json(folder / "export" / "curve.json", curve | {"device": jax.devices()[0].device_kind})

    work = Workdir(folder)
    with work.claim(config), Checkpoints(folder / "checkpoints", say=print) as checkpoints:
        work.check_inputs(inputs.hashes(training_images=images, labels=(labels, None)))
        work.record(config)
        done = checkpoints.steps()
        # Lines after the checkpoint that is resumed are measured again.
        lines = [line for line in files.json_lines(path) if done and line["epoch"] * epoch <= done[-1]]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        for line in lines:
            files.append_json_line(path, line)
        loop.run(training, jnp.asarray(images), checkpoints=checkpoints, watch=watch)
    return {"probe": list(files.json_lines(path))[-1]["probe"], "folder": str(folder / "export")}


def export(folder: pathlib.Path, variables: Any, about: dict[str, Any]) -> None:
    """Write the backbone and its description, as `teacher.source` reads them; in float16 what fits into its range."""
    kept = {name: {"backbone": tree} for name, tree in teacher.backbone(variables).items()}
    folder.mkdir(parents=True, exist_ok=True)
    checksum = files.write_tensors(folder / "teacher.safetensors", jax.tree.map(_halved, kept), sealed=False)
    files.write_json(folder / "teacher.json", about | {"sha256": checksum})


def _halved(leaf: Any) -> np.ndarray:
    """Convert to float16, unless a value is out of its range, as a variance of batch norm can be."""
    whole = np.asarray(leaf)
    return whole.astype(np.float16) if np.abs(whole).max() < np.finfo(np.float16).max else whole


def main(line: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    given = list(sys.argv[1:] if line is None else line)
    return command_line.run(given, __doc__, _train, memory="config.teacher.batch_size", name="train_teacher")


def _train(given: Sequence[str]) -> None:
    options = arguments.parse(list(given))
    default = arguments.Options(options.config, options.workdir, None, "report")
    if options != default:
        raise UserError("train_teacher has the options --config, --workdir and --config.KEY only")
    if not any(argument.partition("=")[0] == "--workdir" for argument in given):
        # The default folder is not that of a run, whose checkpoints are of another kind.
        options = options._replace(workdir=options.workdir.with_name(f"teacher-{options.workdir.name}"))
    print("teacher: probe {probe:.2f} %, exported to {folder}".format(**train(options)))


if __name__ == "__main__":
    sys.exit(main())
