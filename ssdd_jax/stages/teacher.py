"""The teacher: trained once and kept, unless its features were brought."""

from __future__ import annotations

import functools
import pathlib
import shutil

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssdd_jax import data, devices, files, loop, preprocess, streaming, teacher
from ssdd_jax.checkpoints import Checkpoints
from ssdd_jax.errors import UserError
from ssdd_jax.methods import Feed
from ssdd_jax.stages.base import Run


def train(run: Run) -> None:
    """Train the teacher, unless there is one or its features were brought."""
    if run.config.teacher.features or (run.work.teacher / "teacher.json").exists():
        return
    mesh, options = run.problem.mesh, run.config.teacher
    trainer = trainer_of(run.config, run.dataset, mesh=mesh)
    key, resident = run.key("teacher", shared=True), run.resident(features=False)
    folder = run.work.teacher / "checkpoints"
    init = functools.partial(trainer.init, key)
    shardings = devices.shardings(mesh, jax.eval_shape(init))
    training = loop.Training(
        name="teacher",
        init=jax.jit(init, out_shardings=shardings),
        step=trainer.step,
        steps=trainer.steps,
        per_call=options.steps_per_call,
        save_every=options.save_every,
        advice="try a smaller config.teacher.learning_rate in another folder",
        feed=None if resident else _feed(run, trainer, key),
        shardings=shardings,
    )
    with Checkpoints(folder, say=run.say) as checkpoints:
        images = devices.place(mesh, jnp.asarray(run.dataset.train_images)) if resident else None
        state = loop.run(training, images, checkpoints=checkpoints, metrics=run.work.metrics)
    if not devices.is_first():
        return
    checksum = files.write_tensors(run.work.teacher / "teacher.safetensors", jax.device_get(state.variables))
    mean, std = preprocess.dataset_moments(run.dataset)
    about = {"blocks": list(options.blocks), "width": options.width, "mean": mean.tolist(), "std": std.tolist()}
    files.write_json(run.work.teacher / "teacher.json", about | {"sha256": checksum})
    shutil.rmtree(folder, ignore_errors=True)


def _feed(run: Run, trainer: teacher.Trainer, key: jax.Array) -> Feed:
    rows, images = trainer.rows(key), run.dataset.train_images
    return streaming.feed(lambda step: streaming.gather(images, rows(step)), steps=trainer.steps)


def trainer_of(config: ConfigDict, dataset: data.Dataset, *, mesh: Mesh | None = None) -> teacher.Trainer:
    """The teacher's training as the config describes it.

    Raises:
        UserError: If the data set is too small for it.
    """
    mean, std = preprocess.dataset_moments(dataset)
    options = config.teacher
    settings = teacher.Settings(
        width=options.width,
        blocks=tuple(options.blocks),
        projector_hidden=options.projector_hidden,
        projector_output=options.projector_out,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_epochs=options.warmup_epochs,
        off_diagonal=options.off_diagonal,
        scale=options.scale,
        precision=config.precision,
        augmentation=teacher.Augmentation(
            crop_scale=tuple(options.crop_scale),
            flip_probability=options.flip_probability,
            solarize_probability=(0.0, options.solarize_probability),
        ),
    )
    try:
        return teacher.make(
            settings,
            image_shape=dataset.image_shape,
            images_count=len(dataset.train_images),
            mean=mean.tolist(),
            std=std.tolist(),
            mesh=mesh,
        )
    except ValueError as error:
        raise UserError(f"config.teacher: {error}") from None


def words(config: ConfigDict) -> str:
    """What the teacher is, for the set's description."""
    if config.teacher.features:
        return f"features of {pathlib.Path(config.teacher.features).name}"
    layers = 2 + 2 * sum(config.teacher.blocks)
    return f"ResNet-{layers} of width {config.teacher.width}, Barlow Twins, {config.teacher.epochs} epochs"
