"""The stages of a run in their order, each skipped when its output is already there.

data -> teacher -> features -> distill -> approximate -> evaluate -> report
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import platform
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401, loads the LAPACK that XLA calls
from ml_collections import ConfigDict
from threadpoolctl import threadpool_limits

import ssdd_jax
from ssdd_jax import (
    augment,
    data,
    distilled,
    evaluate,
    features,
    files,
    inner,
    loop,
    methods,
    preprocess,
    probes,
    report,
    teacher,
)
from ssdd_jax import (
    config as configuration,
)
from ssdd_jax.checkpoints import Checkpoints
from ssdd_jax.errors import UserError
from ssdd_jax.models.convnet import check_divisible
from ssdd_jax.workdir import Workdir, fingerprint

STAGES = ("data", "teacher", "features", "distill", "approximate", "evaluate", "report")
Say = Callable[[str], None]


class Run(NamedTuple):
    """What every stage is given.

    Attributes:
        config: The run's config.
        work: Its folder.
        dataset: Its images.
        method: Its method.
        say: Told what a user should know.
    """

    config: ConfigDict
    work: Workdir
    dataset: data.Dataset
    method: methods.Method
    say: Say

    def key(self, stage: str) -> jax.Array:
        """The PRNG key of a stage."""
        return jax.random.fold_in(jax.random.key(self.config.seed), STAGES.index(stage))


def run(
    config: ConfigDict, workdir: str | os.PathLike[str], *, until: str = "report", say: Say = print
) -> dict[str, Any] | None:
    """Run the stages up to `until` in a work dir, continuing what is there.

    Args:
        config: See `ssdd_jax.config.default`.
        workdir: The run's folder; made if need be.
        until: The last stage, one of `STAGES`.
        say: Told what a user should know, a line at a time.

    Returns:
        What `results.json` holds, or None if the run ended before the evaluation.

    Raises:
        UserError: For whatever a user can mend.
        ssdd_jax.loop.Stopped: If the run was asked to stop; all is saved.
    """
    if until not in STAGES:
        raise UserError(f"unknown stage {until!r}: the stages are {', '.join(STAGES)}")
    configuration.validate(config)
    work = Workdir(workdir)
    # LAPACK's own threads stand in XLA's way: a Cholesky factorisation of 400 rows takes 0.5 ms with one thread, and
    # was seen to take 350 ms with two.
    with work.claim(config), threadpool_limits(1, "blas"):
        with work.timed("data"):
            job = _prepare(config, work, say)
            work.record(config)
        steps: tuple[tuple[str, Callable[[Run], Any]], ...] = (
            ("teacher", train_teacher),
            ("features", compute_features),
            ("distill", distill),
            ("approximate", export),
            ("evaluate", evaluate_set),
            ("report", draw),
        )
        for stage, function in steps[: STAGES.index(until)]:
            with work.timed(stage):
                function(job)
        return files.read_json(work.results) if work.results.exists() else None


def _prepare(config: ConfigDict, work: Workdir, say: Say) -> Run:
    """Load the data and refuse what cannot work before any work is done."""
    dataset = data.load(config.data)
    if dataset.test_images is None:
        raise UserError(f"{config.data.name} has no test images: set config.data.test_fraction above 0")
    count, shape = len(dataset.train_images), dataset.image_shape
    say(f"data: {dataset.name}, {count:,} training and {len(dataset.test_images):,} test images of "
        f"{shape[0]}x{shape[1]}x{shape[2]}")  # fmt: skip
    try:
        check_divisible(shape[:2], len(config.student.widths))
        augment.table(config.views, *shape[:2])
    except ValueError as error:
        raise UserError(f"{error}; set config.data.image_size, or fewer student.widths or other views") from None
    if config.distill.batch_size > count:
        raise UserError(f"config.distill.batch_size={config.distill.batch_size} is more than the {count} images")
    if config.teacher.features:
        dim = _brought(config, dataset).train.shape[1]
    else:
        _trainer(config, dataset)
        dim = 8 * config.teacher.width
    method = methods.make(config, methods.Problem(shape, dim, count))
    return Run(config, work, dataset, method, say)


def _brought(config: ConfigDict, dataset: data.Dataset) -> features.Brought:
    assert dataset.test_images is not None
    return features.read(
        config.teacher.features,
        train=len(dataset.train_images),
        test=len(dataset.test_images),
        views=tuple(config.views),
    )


def _trainer(config: ConfigDict, dataset: data.Dataset) -> teacher.Trainer:
    mean, std = preprocess.channel_moments(dataset.train_images)
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
        )
    except ValueError as error:
        raise UserError(f"config.teacher: {error}") from None


def train_teacher(job: Run) -> None:
    """Train the teacher, unless there is one or its features were brought."""
    if job.config.teacher.features or (job.work.teacher / "teacher.json").exists():
        return
    trainer, options = _trainer(job.config, job.dataset), job.config.teacher
    folder = job.work.teacher / "checkpoints"
    training = loop.Training(
        name="teacher",
        init=jax.jit(functools.partial(trainer.init, job.key("teacher"))),
        step=trainer.step,
        steps=trainer.steps,
        per_call=options.steps_per_call,
        save_every=options.save_every,
        advice="try a smaller config.teacher.learning_rate in another --workdir",
    )
    with Checkpoints(folder, say=job.say) as checkpoints:
        state = loop.run(
            training, jnp.asarray(job.dataset.train_images), checkpoints=checkpoints, metrics=job.work.metrics
        )
    checksum = files.write_tensors(job.work.teacher / "teacher.safetensors", jax.device_get(state.variables))
    mean, std = preprocess.channel_moments(job.dataset.train_images)
    about = {"blocks": list(options.blocks), "width": options.width, "mean": mean.tolist(), "std": std.tolist()}
    files.write_json(job.work.teacher / "teacher.json", about | {"sha256": checksum})
    shutil.rmtree(folder, ignore_errors=True)


def compute_features(job: Run) -> features.Features:
    """The features of the training and test images, and of the views of the images the method starts from."""
    mark = fingerprint(job.dataset.train_images)
    found = features.load(job.work.features, mark)
    if found is not None:
        return found
    count = len(job.dataset.train_images)
    drawn = jax.random.choice(job.key("features"), count, (job.method.samples,), replace=False)
    samples = np.asarray(drawn, np.int32)
    if job.config.teacher.features:
        brought = _brought(job.config, job.dataset)
        missing = [name for name in job.method.views[1:] if name not in brought.views]
        if missing:
            job.say(
                f"features: none were brought of the views {', '.join(missing)}: they start as the images themselves"
            )
        views = features.of_samples(brought, samples, job.method.views)
        found = features.Features(brought.train, brought.test, samples, views)
    else:
        found = _teacher_features(job, samples)
    if not all(np.isfinite(part).all() for part in found if part is not None):
        raise UserError(
            "the teacher's features are not finite: train another with a smaller config.teacher.learning_rate"
        )
    features.save(job.work.features, found, mark)
    return found


def _teacher_features(job: Run, samples: np.ndarray) -> features.Features:
    about = files.read_json(job.work.teacher / "teacher.json")
    variables = files.read_tensors(job.work.teacher / "teacher.safetensors", about["sha256"])

    train, test = job.dataset.train_images, job.dataset.test_images
    assert test is not None
    table = augment.table(job.method.views, *job.dataset.image_shape[:2])
    turned = np.asarray(augment.apply(table, jnp.asarray(train[samples])))
    # Together, so that one compiled program serves all three.
    images = np.concatenate([train, test, turned.reshape(-1, *job.dataset.image_shape)])
    mean, std = (jnp.asarray(about[name], jnp.float32) for name in ("mean", "std"))
    found = np.asarray(teacher.features(variables, jnp.asarray(images), mean=mean, std=std))
    of_train, of_test, of_views = np.split(found, (len(train), len(train) + len(test)))
    return features.Features(of_train, of_test, samples, of_views.reshape(len(table), len(samples), -1))


def _source(job: Run, found: features.Features) -> methods.Source:
    constants = preprocess.fit(job.dataset.train_images, found.train)
    return methods.Source(
        images=jnp.asarray(job.dataset.train_images),
        targets=constants.targets(jnp.asarray(found.train)),
        samples=jnp.asarray(found.samples),
        view_targets=constants.targets(jnp.asarray(found.views)),
        preprocessing=constants,
    )


def distill(job: Run) -> None:
    """Run the method's outer steps, unless the artefact is there."""
    if (job.work.distilled / distilled.DESCRIPTION).exists():
        return
    with Checkpoints(job.work.checkpoints, say=job.say) as checkpoints:
        _distilled_state(job, _source(job, compute_features(job)), checkpoints)


def _distilled_state(job: Run, source: methods.Source, checkpoints: Checkpoints) -> Any:
    options = job.config.distill
    if not checkpoints.steps():
        job.say("distill: preparing the start")
    training = loop.Training(
        name="distill",
        init=functools.partial(jax.jit(job.method.init), job.key("distill"), source),
        step=job.method.step,
        steps=job.method.steps,
        per_call=options.steps_per_call,
        save_every=options.save_every,
        advice="try a smaller config.distill.learning_rate or a larger config.distill.ridge_scale in another --workdir",
    )
    return loop.run(training, source, checkpoints=checkpoints, metrics=job.work.metrics)


def export(job: Run) -> None:
    """Fit what remains to be fitted and write the artefact, unless it is there."""
    if (job.work.distilled / distilled.DESCRIPTION).exists():
        return
    source = _source(job, compute_features(job))
    with Checkpoints(job.work.checkpoints, say=job.say) as checkpoints:
        state = _distilled_state(job, source, checkpoints)
    found = job.method.export(job.key("approximate"), state, source)
    about = {
        "method": job.config.method,
        "dataset": job.config.data.name,
        "class_names": list(job.dataset.class_names),
        "teacher": _teacher_words(job.config),
        "seed": job.config.seed,
        "config": configuration.flatten(job.config),
        "images": fingerprint(job.dataset.train_images),
        "version": ssdd_jax.__version__,
        "jax": jax.__version__,
    }
    bad = [name for name, array in found.arrays.items() if not np.isfinite(np.asarray(array)).all()]
    if bad:
        raise UserError(f"approximate: {', '.join(bad)} is not finite: try a smaller config.approximate.learning_rate")
    size = dataclasses.replace(found, about=about).save(job.work.distilled)
    job.say(f"approximate: {found.numbers_stored():,} numbers, {size:,} bytes in {job.work.distilled}")


def _teacher_words(config: ConfigDict) -> str:
    if config.teacher.features:
        return f"features of {pathlib.Path(config.teacher.features).name}"
    layers = 2 + 2 * sum(config.teacher.blocks)
    return f"ResNet-{layers} of width {config.teacher.width}, Barlow Twins, {config.teacher.epochs} epochs"


def evaluate_set(job: Run) -> None:
    """Evaluate the artefact as saved, and the baselines; each entry is kept as soon as it is there."""
    if job.work.results.exists():
        return
    found = distilled.load(job.work.distilled)
    benchmark = _benchmark(job, compute_features(job), found.preprocessing)
    settings = evaluation_settings(job.config)
    if benchmark.test_features is None:
        job.say("evaluate: no features of the test images were brought: without feature_r2 and the teacher's row")
    measured: dict[str, dict[str, Any]] = {}
    for entry in evaluate.entries(found, benchmark, job.config.storage.N, settings):
        path = job.work.evaluation / f"{entry.name}.json"
        if not path.exists():
            files.write_json(path, evaluate.evaluate(entry, benchmark, seed=job.config.seed, settings=settings))
        measured[entry.name] = files.read_json(path)
        words = ", ".join(f"{name} {row['mean']:.4g} ± {row['std']:.2g}" for name, row in measured[entry.name].items())
        job.say(f"evaluate: {entry.name}: {words or 'nothing to measure'}")
    files.write_json(job.work.results, _results(job, found, measured))


def evaluation_settings(config: ConfigDict) -> evaluate.Settings:
    """How networks are trained and probed, out of a config."""
    options = config.evaluate
    return evaluate.Settings(
        seeds=options.seeds,
        widths=tuple(config.student.widths),
        epochs=options.epochs,
        full_epochs=options.full_epochs,
        batch_size=options.batch_size,
        inner=inner.Settings(options.learning_rate, options.momentum, options.weight_decay),
        probe=probes.Settings(options.probe_steps, options.probe_batch_size, options.probe_learning_rate),
    )


def _benchmark(job: Run, found: features.Features, constants: preprocess.Preprocessing) -> evaluate.Benchmark:
    def device(array: np.ndarray | None) -> jax.Array | None:
        return None if array is None else jnp.asarray(array)

    assert job.dataset.test_images is not None
    return evaluate.Benchmark(
        train_images=jnp.asarray(job.dataset.train_images),
        train_features=jnp.asarray(found.train),
        test_images=jnp.asarray(job.dataset.test_images),
        test_features=device(found.test),
        train_labels=device(job.dataset.train_labels),
        test_labels=device(job.dataset.test_labels),
        classes=job.dataset.classes,
        preprocessing=constants,
    )


def _results(job: Run, found: distilled.DistilledSet, measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    height, width, channels = job.dataset.image_shape
    dim = found.pairs()[1].shape[1]
    measures = {
        measure: {name: rows[measure] for name, rows in measured.items() if measure in rows}
        for measure in ("linear", "few_shot", "feature_r2")
    }
    size = sum(file.stat().st_size for file in job.work.distilled.iterdir() if file.is_file())
    return {
        **{name: rows for name, rows in measures.items() if rows},
        "storage": {
            "numbers": found.numbers_stored(),
            "budget": job.config.storage.N * (height * width * channels + dim),
            "bytes": size,
            "N": job.config.storage.N,
            "images": len(found.images()),
            "parts": {name: int(np.prod(array.shape)) for name, array in found.arrays.items()},
        },
        "seconds": job.work.read_seconds(),
        "method": job.config.method,
        "dataset": job.config.data.name,
        "seed": job.config.seed,
        "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}",
        "version": ssdd_jax.__version__,
    }


def draw(job: Run) -> None:
    """Draw the figures, and bring the seconds in `results.json` up to date."""
    found, results = distilled.load(job.work.distilled), files.read_json(job.work.results)
    results["seconds"] = job.work.read_seconds()
    files.write_json(job.work.results, results)
    lines = [line for line in loop.read_metrics(job.work.metrics) if line["stage"] == "distill"]
    report.draw(job.work.figures, found, lines, results)
    storage = results["storage"]
    job.say(f"\n{report.table(results)}\n\n{storage['numbers']:,} of {storage['budget']:,} numbers, "
            f"{storage['bytes']:,} bytes; figures in {job.work.figures}")  # fmt: skip
