"""Distillation of arrays in memory: `ssdd_jax.distill`.

    import ssdd_jax
    distilled = ssdd_jax.distill(images, features, N=20)
    distilled.save("my_set")

It calls the same functions as a run in a folder with the same config (`ssdd_jax.pipeline`), without the files.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssdd_jax import augment, data, methods
from ssdd_jax import config as configuration
from ssdd_jax.api import defaults
from ssdd_jax.data import conversion, features
from ssdd_jax.distilled import DistilledSet
from ssdd_jax.errors import UserError
from ssdd_jax.methods import budget
from ssdd_jax.methods.base import Run
from ssdd_jax.models.convnet import check_divisible
from ssdd_jax.runtime import devices, lapack
from ssdd_jax.runtime.workdir import Workdir
from ssdd_jax.stages import approximate, samples
from ssdd_jax.stages import distill as distill_stage
from ssdd_jax.stages import features as feature_stage

Teacher = Callable[[np.ndarray], Any]

# Images per call of a teacher that is a function.
BATCH = 256
# Config keys that are arguments of `distill`, and those that only a run in a folder reads.
ARGUMENTS = {"method": "method", "storage.N": "N", "distill.steps": "steps", "seed": "seed"}
OF_RUNS = ("data.", "teacher.", "evaluate.", "distill.save_every", "devices.hosts")


class Progress(NamedTuple):
    """Progress of a distillation, passed to `watch`.

    Attributes:
        step: Outer steps done; 0 at the start.
        loss: Losses of the steps since the previous call `(k,)`; empty at the start.
        make: Builds the set at this step. It must be called within `watch`, because the next steps overwrite its data.
            For Boost-SSDD each call fits the approximation networks, which takes a second.
    """

    step: int
    loss: np.ndarray
    make: Callable[[], DistilledSet]


def distill(
    images: Any,
    features: Any,
    *,
    N: int | None = None,
    method: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    config: Mapping[str, Any] | ConfigDict | None = None,
    watch: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] = print,
) -> DistilledSet:
    """Distil images into a small set on which a network trained from scratch imitates a teacher.

    Unset options default to values chosen from the data and the hardware; see `ssdd_jax.api.defaults`. With these a run
    takes minutes on a CPU, and performs the published number of steps on an accelerator.

    On a CPU, the same config, images, features and seed give the same set as `python -m ssdd_jax.main`, bit by bit. The
    images that `boost_plus` and `noise` make reach a function in 256 levels, and so differ a little.

    Args:
        images: uint8 `(n,H,W,C)` or `(n,H,W)`, C being 1 or 3. Also what `ssdd_jax.data.conversion.to_images` takes:
            tensors, lists of PIL images, data sets of PyTorch or Hugging Face, pixels of other types.
        features: The teacher's features of the images, floats `(n,D)`. Or a mapping with these as `train` and the
            features of rotated images under the names of views (`rot90`, `rot180`, `rot270`); without these Boost-SSDD
            distils the upright images only. Or the teacher itself, a function from
            uint8 images `(k,H,W,C)` to features `(k,D)`, which is applied to all images and the views that are needed.
        N: Budget: the set must fit in the storage of N images and their features.
        method: `boost` (the default), `krr_st`, `mkdt`, or a subset: `random`, `kmeans`, `high_loss`. With the teacher
            as a function also `boost_plus` or `noise`, for which it is applied to images that are made.
        steps: Outer steps.
        seed: Seed of the choice of samples and of the method, from 0 to 2**32 - 1; default 0.
        config: Other settings: a mapping of dotted keys such as `{"pool.size": 4}` (`python -m ssdd_jax.main
            --help_config` lists them) that overrides the chosen defaults, or a complete `ConfigDict` like those of
            config files, which replaces them.
        watch: Called at the start and after every `distill.steps_per_call` steps. It cannot change the set. Methods
            that learn nothing do not call it.
        say: Called with each message for the user.

    Returns:
        The set; `save` writes it. No other file is written, except that `mkdt` and `high_loss` keep their experts in a
        temporary folder during the call.

    Raises:
        UserError: If images or features are not of these forms or not finite, or the settings do not fit them.
        ssdd_jax.errors.Stopped: On SIGINT or SIGTERM.
    """
    if _is_module(features):
        raise UserError(
            "features is a module of PyTorch, which takes its own inputs: wrap it, as in lambda x: module(normalise("
            "torch.tensor(x).permute(0, 3, 1, 2) / 255)), where x is uint8 (k, H, W, C)"
        )
    devices.check_backend()
    pixels = conversion.to_images("images", images)
    # Explicit arguments override the config, which overrides the defaults chosen from the images.
    changes = {"method": method, "storage.N": N, "distill.steps": steps, "seed": seed}
    named = {key: _plain(value) for key, value in changes.items() if value is not None}
    chosen = _config(config, named, pixels)
    configuration.validate(chosen)
    chosen.data.name, chosen.teacher.features = "arrays", "a function" if _is_function(features) else "an array"
    _check(chosen, pixels, function=_is_function(features))
    # The folder is needed only by stages that cannot work in memory, such as the training of experts.
    dataset = data.Dataset("images", pixels)
    dataset.check_varied()
    with lapack.single_threaded(), tempfile.TemporaryDirectory() as folder:
        run = _run(chosen, pathlib.Path(folder), dataset, features, say)
        try:
            for stage in samples.preparations(chosen, run.problem, run.method):
                stage.run(run)
            return _learn(samples.settled(run._replace(chosen=samples.samples_of(run))), watch)
        except jax.errors.JaxRuntimeError:
            if isinstance(run.extract, _Kept) and run.extract.error is not None:
                raise run.extract.error from None
            raise


def _plain(value: Any) -> Any:
    """Convert scalars of NumPy, JAX and PyTorch to Python scalars."""
    return value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value


def _is_module(given: Any) -> bool:
    """Return whether this is a network of PyTorch, which is not imported for it."""
    return callable(given) and hasattr(given, "forward") and hasattr(given, "state_dict")


def _is_function(teacher_features: Any) -> bool:
    """Return whether the features are a function, that is, the teacher itself."""
    return callable(teacher_features) and not isinstance(teacher_features, Mapping)


def _config(overrides: Mapping[str, Any] | ConfigDict | None, named: dict[str, Any], images: np.ndarray) -> ConfigDict:
    """Build the config; `named`, the arguments by config key, override both defaults and a complete config."""
    # A complete config is used as it is, apart from explicit arguments; otherwise defaults are chosen from the images.
    if isinstance(overrides, ConfigDict):
        config, changes = overrides.copy_and_resolve_references(), dict(named)
        if named.get("method") in configuration.EDITIONS:
            configuration.edit(config, changes.pop("method"))
    else:
        changes = {key: tuple(v) if isinstance(v, list) else _plain(v) for key, v in (overrides or {}).items()}
        _check_keys(changes)
        _set(configuration.default(), changes | named)  # raises an error for values of a wrong type
        config = defaults.choose(
            images.shape[1:],
            len(images),
            method=named.get("method", "boost"),
            N=named.get("storage.N"),
            steps=named.get("distill.steps"),
            accelerator=jax.default_backend() != "cpu",
        )
        changes |= {key: value for key, value in named.items() if key != "method"}
    _set(config, changes)
    if "storage.N" in named and config.storage.bytes:
        raise UserError("N and config storage.bytes are two budgets: give one of them")
    return config


def _set(config: ConfigDict, changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        kind = type(configuration.get(configuration.default(), key)).__name__
        try:
            # True is an integer to Python.
            if isinstance(value, bool) and kind != "bool":
                raise TypeError
            config.update_from_flattened_dict({key: value})
        except (TypeError, ValueError):
            raise UserError(
                f"{ARGUMENTS.get(key, key)}={value!r} is not {'an' if kind == 'int' else 'a'} {kind}"
            ) from None


def _check_keys(changes: Mapping[str, Any]) -> None:
    keys = list(configuration.flatten(configuration.default()))
    for key in changes:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1)
            raise UserError(f"unknown config key {key!r}{f': did you mean {near[0]!r}?' if near else ''}")
        if key in ARGUMENTS:
            raise UserError(f"config key {key!r}: pass it as the argument {ARGUMENTS[key]}=")
        if key.startswith(OF_RUNS) and key != "teacher.seed":
            raise UserError(f"config key {key!r} has no effect here: only runs in a folder (ssdd_jax.main) read it")


def _check(config: ConfigDict, images: np.ndarray, *, function: bool) -> None:
    """Raise errors for settings that cannot work before the teacher, which may be a function, is run."""
    methods.check(config.method)
    definition = methods.METHODS[config.method]
    if definition.network and not (definition.forward and function):
        advice = "pass the teacher as a function" if definition.forward else "choose another method"
        raise UserError(
            f"method={config.method!r} runs the teacher's network, but only its features are available here: run it "
            f"with python -m ssdd_jax.main --config.method={config.method}, or {advice}"
        )
    if not config.storage.bytes:
        budget.check_pairs(config.storage.N, len(images))
    try:
        check_divisible(images.shape[1:3], len(config.student.widths))
    except ValueError as error:
        raise UserError(f"{error}; set fewer student.widths, or resize them") from None


def _run(
    config: ConfigDict, folder: pathlib.Path, dataset: data.Dataset, teacher_features: Any, say: Callable[[str], None]
) -> Run:
    """Build a run with its features in memory; only the methods' own stages write to the folder."""
    images = dataset.train_images
    precomputed = _precomputed(teacher_features, config, images)
    problem = methods.Problem(
        dataset.image_shape,
        precomputed.train.shape[1],
        len(images),
        network=_is_function(teacher_features) and methods.METHODS[config.method].forward,
        mesh=methods.mesh_of(config),
    )
    config = methods.counted(config, problem)
    method = methods.make(config, problem)
    if not _is_function(teacher_features):
        config = feature_stage.only_known_views(config, method, precomputed, say)
        method = methods.make(config, problem)
    # There is no work dir to change in a call from Python.
    method = method._replace(advice=method.advice.replace(" in another --workdir", ""))
    return Run(
        config,
        Workdir(folder),
        dataset,
        problem,
        method,
        say,
        known=features.Features(precomputed.train, None),
        brought=precomputed,
        extract=_Kept(functools.partial(_extract, teacher_features)) if _is_function(teacher_features) else None,
    )


def _precomputed(values: Any, config: ConfigDict, images: np.ndarray) -> features.Brought:
    if isinstance(values, Mapping):
        unknown = [name for name in values if name not in ("train", *augment.VIEWS)]
        if unknown:
            raise UserError(f"features[{unknown[0]!r}] is neither train nor a view: {', '.join(augment.VIEWS)}")
        arrays = {name: conversion.to_features(f"features[{name!r}]", array) for name, array in values.items()}
    else:
        arrays = {
            "train": _apply(values, images) if _is_function(values) else conversion.to_features("features", values)
        }
    return features.check("features", arrays, train=len(images), views=tuple(config.views))


def _apply(teacher: Teacher, images: np.ndarray) -> np.ndarray:
    """Apply a teacher function to images batch by batch, and check the shapes of its features."""
    batches = []
    for begin in range(0, len(images), BATCH):
        batch = images[begin : begin + BATCH]
        batches.append(conversion.to_features("features", teacher(batch)))
        shape = batches[-1].shape
        # All batches must agree in D with the first.
        if len(shape) != 2 or len(batches[-1]) != len(batch) or shape != (len(batch), batches[0].shape[1]):
            raise UserError(
                f"features: the function returned an array {shape} for {len(batch)} images: it must return (k, D), "
                "a row for each of the k images"
            )
    return np.concatenate(batches)


def _extract(teacher: Teacher, images: np.ndarray) -> np.ndarray:
    """Apply a teacher function to views or composed images, and check its features, which may all be equal."""
    return features.check_part("features of views", "the function", _apply(teacher, images), len(images))


@dataclasses.dataclass
class _Kept:
    """A function that keeps its last error, which a callback would bury in an error of JAX."""

    function: Callable[[np.ndarray], np.ndarray]
    error: Exception | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        try:
            return self.function(images)
        except Exception as error:
            self.error = error
            raise


def _learn(run: Run, watch: Callable[[Progress], None] | None) -> DistilledSet:
    start, mesh = run.start(), run.problem.mesh

    def make(state: Any) -> DistilledSet:
        """Build the set of a state, with copies of arrays that the next steps overwrite."""
        copied = approximate.set_of(run, devices.local(mesh, state), start)
        return dataclasses.replace(copied, arrays=jax.tree.map(jnp.copy, dict(copied.arrays)))

    def notify(done: int, state: Any, loss: np.ndarray) -> None:
        if watch is not None:
            watch(Progress(done, loss, functools.partial(make, state)))

    # `Progress` of the loop holds states; users receive a function that exports the current one.
    state = distill_stage.learn(
        run,
        start,
        watch=lambda progress: notify(progress.done, progress.state, np.asarray(progress.info.loss)),
        on_start=lambda state: notify(0, state, np.zeros(0, np.float32)),
    )
    if run.method.step is not None:
        state = devices.local(mesh, state)
    return approximate.set_of(run, state, start)
