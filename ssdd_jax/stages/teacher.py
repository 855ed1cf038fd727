"""The teacher: trained or converted once and stored, unless its features are precomputed."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssdd_jax import data, teacher
from ssdd_jax.data import preprocess
from ssdd_jax.errors import UserError
from ssdd_jax.methods import Feed
from ssdd_jax.methods.base import Run, Say
from ssdd_jax.models import precision
from ssdd_jax.models.resnet import ResNet
from ssdd_jax.runtime import devices, files
from ssdd_jax.runtime.workdir import Workdir
from ssdd_jax.teacher import Description, pretrained
from ssdd_jax.training import loop, streaming
from ssdd_jax.training.checkpoints import Checkpoints

# Most modules outside of a network that are named.
SHOWN = 12


def train(run: Run) -> None:
    """Train or convert the teacher; skipped if it exists or its features are precomputed."""
    if run.config.teacher.features or (run.work.teacher / "teacher.json").exists():
        return
    if run.config.teacher.source:
        if devices.is_first():
            backbone, description = from_source(run.config, run.dataset)
            # Stored like a trained teacher, so that later stages read both in the same way.
            converted = {name: {"backbone": tree} for name, tree in backbone.items()}
            _write(run.work.teacher, converted, description.as_json() | {"source": _digest(backbone)})
        return
    # The key depends on `teacher.seed` alone, so that runs that share a folder share the teacher.
    mesh, options = run.problem.mesh, run.config.teacher
    trainer = trainer_of(run.config, run.dataset, mesh=mesh)
    key, resident = run.key("teacher", shared=True), run.resident(features=False)
    folder = run.work.teacher / "checkpoints"
    init = functools.partial(trainer.init, key)
    shardings = devices.shardings(mesh, jax.eval_shape(init))
    training = loop.Training(
        name="teacher",
        init=jax.jit(init, out_shardings=shardings),
        step=step_of(trainer, resident=resident),
        steps=trainer.steps,
        per_call=options.steps_per_call,
        save_every=options.save_every,
        advice="try a smaller config.teacher.learning_rate in another folder",
        feed=rows_of(key, trainer) if resident else _feed(run, trainer, key),
        shardings=shardings,
    )
    with Checkpoints(folder, say=run.say) as checkpoints:
        images = devices.place(mesh, jnp.asarray(run.dataset.train_images)) if resident else None
        state = loop.run(training, images, checkpoints=checkpoints, metrics=run.work.metrics, events=run.work.events)
    if not devices.is_first():
        return
    # The checkpoints of the training, with optimizer state, are deleted once the weights are written.
    mean, std = preprocess.dataset_moments(run.dataset)
    about = {"blocks": list(options.blocks), "width": options.width, "mean": mean.tolist(), "std": std.tolist()}
    _write(run.work.teacher, jax.device_get(state.variables), about)
    shutil.rmtree(folder, ignore_errors=True)


def _write(folder: pathlib.Path, variables: Any, about: dict[str, Any]) -> None:
    """Write the weights, and last the description, which marks the teacher as complete."""
    checksum = files.write_tensors(folder / "teacher.safetensors", variables, sealed=False)
    files.write_sealed(folder / "teacher.json", about | {"sha256": checksum})


def _digest(variables: Any) -> str:
    """Compute a hash of all weights and their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def from_source(config: ConfigDict, dataset: data.Dataset) -> tuple[Any, Description]:
    """Read the variables and the description of the network at `config.teacher.source`.

    Raises:
        UserError: If it cannot be read, is only partly recognised, or does not accept the data set's images.
    """
    chosen = config.teacher
    return pretrained.load(
        chosen.source,
        image_shape=dataset.image_shape,
        moments=preprocess.dataset_moments(dataset),
        options=pretrained.Options(chosen.input_size, chosen.preprocessing, chosen.stem_padding, chosen.heads),
    )


class Known(NamedTuple):
    """Shape and weights of a teacher, as known before its stage runs.

    Attributes:
        dim: Length D of its features.
        batch_norm: Whether it has batch norm.
        weights: Hash of the weights at `config.teacher.source`; None without a source, or if the source is gone after
            its conversion.
    """

    dim: int
    batch_norm: bool
    weights: str | None = None


def known(config: ConfigDict, work: Workdir, dataset: data.Dataset, say: Say) -> Known:
    """Determine the shape of a teacher before its stage runs.

    Raises:
        UserError: If the teacher cannot be trained or read, or was converted from weights that have changed since.
    """
    if not config.teacher.source:
        trainer_of(config, dataset)
        return Known(8 * config.teacher.width, True)
    weights, path = None, work.teacher / "teacher.json"
    if path.exists():
        about = files.read_sealed(path)
        description = teacher.describe(about, path)
        # The source may have been deleted after the conversion; if it exists, it must be unchanged.
        if pathlib.Path(config.teacher.source).expanduser().exists():
            backbone, current = from_source(config, dataset)
            weights = _digest(backbone)
            differences = ["weights"] if weights != about.get("source", weights) else _differences(description, current)
            if differences:
                raise UserError(
                    f"{path.parent} was made of other {' and '.join(differences)} than teacher.source="
                    f"{config.teacher.source} holds now: choose another --workdir (and --shared), or restore the old "
                    "files"
                )
    else:
        backbone, description = from_source(config, dataset)
        weights = _digest(backbone)
        say(f"teacher: {description.words}")
        if description.aside:
            shown = ", ".join(description.aside[:SHOWN]) + (", ..." if len(description.aside) > SHOWN else "")
            say(f"teacher: set aside, as it lies outside of the network: {shown}")
    return Known(description.network.features, isinstance(description.network, ResNet), weights)


def _differences(stored: Description, current: Description) -> list[str]:
    """Name what differs between two descriptions of the same weights, apart from words."""
    # Moments of the data may differ in their last digits between machines.
    close = np.allclose(stored.mean + stored.std, current.mean + current.std, rtol=1e-4)
    sides = (stored.size, stored.resize, stored.shortest_side) == (current.size, current.resize, current.shortest_side)
    network = [] if stored.network == current.network else ["settings of the network"]
    return network + ([] if close and sides else ["preprocessing"])


def step_of(trainer: teacher.Trainer, *, resident: bool) -> Callable[..., Any]:
    """Return the step for the training loop, `(state, images, item) -> (state, info)`.

    Args:
        trainer: The teacher's training.
        resident: Whether `images` are all images on the device, and `item` indices of a batch `(B,)`, from `rows_of`.
            Otherwise `item` is the batch, and `images` are ignored.
    """
    if resident:
        return lambda state, images, rows: trainer.step(state, images[rows])
    return lambda state, _, batch: trainer.step(state, batch)


def rows_of(key: jax.Array, trainer: teacher.Trainer) -> Feed:
    """Return the feed of a resident training: the indices of each step's images, int32 `(count,B)`.

    Args:
        key: The key passed to `trainer.init`.
        trainer: The teacher's training.
    """
    rows = trainer.rows(key)
    return lambda done, count: np.stack([rows(step) for step in range(done, done + count)])


def _feed(run: Run, trainer: teacher.Trainer, key: jax.Array) -> Feed:
    indices, images = trainer.rows(key), run.dataset.train_images
    rows = devices.rows(run.problem.mesh, run.config.teacher.batch_size, everywhere=True)
    return streaming.feed(
        lambda step: streaming.gather(images, indices(step)[rows.own]), steps=trainer.steps, rows=rows
    )


def trainer_of(config: ConfigDict, dataset: data.Dataset, *, mesh: Mesh | None = None) -> teacher.Trainer:
    """Build the teacher's training from a config.

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
        precision=precision.resolve(config.precision, jax.default_backend()),
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


def words(run: Run) -> str:
    """Describe the teacher in words, for the description of the set."""
    config = run.config
    if config.teacher.features:
        return f"features of {pathlib.Path(config.teacher.features).name}"
    if config.teacher.source:
        return teacher.describe(run.teacher()[1]).words
    # Two convolutions per basic block, the stem and the last layer, as in the names ResNet-10 and ResNet-18.
    layers = 2 + 2 * sum(config.teacher.blocks)
    return f"ResNet-{layers} of width {config.teacher.width}, Barlow Twins, {config.teacher.epochs} epochs"
