"""One call from images and a teacher's features, both in memory, to a distilled set: `ssdd_jax.distill`.

    import ssdd_jax
    distilled = ssdd_jax.distill(images, features, N=20)
    distilled.save("my_set")

The set is that of a run in a folder with the same config (`ssdd_jax.pipeline`): the same functions, without the files.
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
from ssdd_jax.data import features
from ssdd_jax.distilled import DistilledSet
from ssdd_jax.errors import UserError
from ssdd_jax.methods import budget
from ssdd_jax.methods.base import Run
from ssdd_jax.models.convnet import check_divisible
from ssdd_jax.runtime import devices, lapack
from ssdd_jax.runtime.workdir import Workdir
from ssdd_jax.stages import approximate, samples
from ssdd_jax.stages import distill as distill_stage

Teacher = Callable[[np.ndarray], Any]

# Images that a function is given at once.
BATCH = 256
# Keys that are arguments, and those that only a run in a folder reads.
ARGUMENTS = {"method": "method", "storage.N": "N", "distill.steps": "steps", "seed": "seed"}
OF_RUNS = ("data.", "teacher.", "evaluate.", "distill.save_every", "devices.hosts")


class Progress(NamedTuple):
    """What `watch` is given.

    Attributes:
        step: Outer steps done; 0 at the start.
        loss: Of the steps since the last time `(k,)`; empty at the start.
        make: The set as it is at this step, to be asked for within `watch`; the next steps overwrite what it is made
            of. For Boost-SSDD the approximation networks are fitted each time, which takes a second.
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

    What is left out is chosen from the size and number of the images and from whether there is an accelerator: see
    `ssdd_jax.api.defaults`. On a CPU that takes minutes, on an accelerator the published number of steps.

    With the same config, images, features and seed the set is, on a CPU, that of `python -m ssdd_jax.main`, bit by bit.

    Args:
        images: uint8 `(n,H,W,C)` or `(n,H,W)`, C being 1 or 3.
        features: The teacher's features of them: floats `(n,D)`; or a mapping with these as `train` and, under the
            names of views (`rot90`, `rot180`, `rot270`), those of the turned images, without which the turned images
            of Boost-SSDD start with the features of the upright ones; or the teacher itself, a function from uint8
            images `(k,H,W,C)` to features `(k,D)`, which is then run on all images and on the views that are needed.
        N: The set must fit in the storage of so many images and their features.
        method: `boost` (if left out), `krr_st`, `mkdt`, or a subset: `random`, `kmeans`, `high_loss`.
        steps: Outer steps.
        seed: Of the choice of samples and of all that is random in the method; 0 if left out.
        config: Everything else: a mapping of dotted keys such as `{"pool.size": 4}` (`python -m ssdd_jax.main
            --help_config` lists them) on top of what is chosen; or a whole `ConfigDict`, as config files make them,
            in which case nothing is chosen.
        watch: Called at the start and then every `distill.steps_per_call` steps; what it does cannot change the set.
            Methods that learn nothing do not call it.
        say: Told what a user should know, a line at a time.

    Returns:
        The set; `save` writes it. Nothing else is written, but that `mkdt` and `high_loss` keep their experts in a
        temporary folder while they work.

    Raises:
        UserError: If images or features are not of these forms or not finite, or the settings do not fit them.
        ssdd_jax.errors.Stopped: If SIGINT or SIGTERM came.
    """
    pixels = _pixels(images)
    changes = {"method": method, "storage.N": N, "distill.steps": steps, "seed": seed}
    named = {key: _plain(value) for key, value in changes.items() if value is not None}
    chosen = _config(config, named, pixels)
    configuration.validate(chosen)
    chosen.data.name, chosen.teacher.features = "arrays", "a function" if _runs(features) else "an array"
    _check(chosen, pixels)
    dataset = data.Dataset("images", pixels)
    with lapack.single_threaded(), tempfile.TemporaryDirectory() as folder:
        run = _run(chosen, pathlib.Path(folder), dataset, features, say)
        for stage in samples.preparations(chosen, run.problem, run.method):
            stage.run(run)
        return _learn(run._replace(chosen=samples.samples_of(run)), watch)


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _runs(given: Any) -> bool:
    """Whether features are given as a function."""
    return callable(given) and not isinstance(given, Mapping)


def _pixels(given: Any) -> np.ndarray:
    images = np.asarray(given)
    if images.dtype != np.uint8:
        raise UserError(
            f"images must be uint8, 0 to 255, not {images.dtype}: pixels in 0..1 become that by "
            "(255 * images).round().astype('uint8')"
        )
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise UserError(
            f"images must have the shape (n, height, width), or with 1 or 3 channels last, not {np.shape(given)}"
        )
    return images


def _config(given: Mapping[str, Any] | ConfigDict | None, named: dict[str, Any], images: np.ndarray) -> ConfigDict:
    """The config; `named` are the arguments by their keys, and win over a whole config."""
    if isinstance(given, ConfigDict):
        config, changes = given.copy_and_resolve_references(), dict(named)
        if named.get("method") in configuration.EDITIONS:
            configuration.edit(config, changes.pop("method"))
    else:
        changes = {key: tuple(v) if isinstance(v, list) else _plain(v) for key, v in (given or {}).items()}
        _check_keys(changes)
        _set(configuration.default(), changes | named)  # refuses values of a wrong type
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
    return config


def _set(config: ConfigDict, changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        try:
            config.update_from_flattened_dict({key: value})
        except (TypeError, ValueError):
            kind = type(configuration.get(configuration.default(), key)).__name__
            raise UserError(
                f"{ARGUMENTS.get(key, key)}={value!r} is not {'an' if kind == 'int' else 'a'} {kind}"
            ) from None


def _check_keys(changes: Mapping[str, Any]) -> None:
    known = list(configuration.flatten(configuration.default()))
    for key in changes:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise UserError(f"unknown config key {key!r}{f': did you mean {near[0]!r}?' if near else ''}")
        if key in ARGUMENTS:
            raise UserError(f"config key {key!r}: give it as the argument {ARGUMENTS[key]}=")
        if key.startswith(OF_RUNS) and key != "teacher.seed":
            raise UserError(f"config key {key!r} is of no use here: only runs in a folder (ssdd_jax.main) read it")


def _check(config: ConfigDict, images: np.ndarray) -> None:
    """Refuse what cannot work before the teacher is run."""
    methods.check(config.method)
    if methods.METHODS[config.method].network:
        raise UserError(
            f"method={config.method!r} runs the teacher's own network, of which only features are known here: make it "
            f"with python -m ssdd_jax.main --config.method={config.method}, or choose another method"
        )
    budget.check_pairs(config.storage.N, len(images))
    try:
        check_divisible(images.shape[1:3], len(config.student.widths))
    except ValueError as error:
        raise UserError(f"{error}; set fewer student.widths, or resize them") from None


def _run(
    config: ConfigDict, folder: pathlib.Path, dataset: data.Dataset, given: Any, say: Callable[[str], None]
) -> Run:
    """A run that has its features in memory, and in the folder only what the stages of methods leave there."""
    images = dataset.train_images
    brought = _brought(given, config, images)
    problem = methods.Problem(dataset.image_shape, brought.train.shape[1], len(images), mesh=methods.mesh_of(config))
    method = methods.make(config, problem)
    method = method._replace(advice=method.advice.replace(" in another --workdir", ""))
    return Run(
        config,
        Workdir(folder),
        dataset,
        problem,
        method,
        say,
        known=features.Features(brought.train, None),
        brought=brought,
        extract=functools.partial(_extract, given) if _runs(given) else None,
    )


def _brought(given: Any, config: ConfigDict, images: np.ndarray) -> features.Brought:
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in ("train", *augment.VIEWS)]
        if unknown:
            raise UserError(f"features[{unknown[0]!r}] is neither train nor a view: {', '.join(augment.VIEWS)}")
        arrays = {name: np.asarray(array) for name, array in given.items()}
    else:
        arrays = {"train": _apply(given, images) if _runs(given) else np.asarray(given)}
    return features.check("features", arrays, train=len(images), views=tuple(config.views))


def _apply(teacher: Teacher, images: np.ndarray) -> np.ndarray:
    """A function's features of images, a batch after the other."""
    found = []
    for begin in range(0, len(images), BATCH):
        batch = images[begin : begin + BATCH]
        found.append(np.asarray(teacher(batch)))
        if found[-1].ndim != 2 or len(found[-1]) != len(batch) or found[-1].shape != (len(batch), found[0].shape[1]):
            raise UserError(
                f"features: the function gave an array {found[-1].shape} for {len(batch)} images: it must give (k, D), "
                "a row for each of the k images"
            )
    return np.concatenate(found)


def _extract(teacher: Teacher, images: np.ndarray) -> np.ndarray:
    """A function's features of views, checked."""
    return features.check("features of views", {"train": _apply(teacher, images)}, train=len(images)).train


def _learn(run: Run, watch: Callable[[Progress], None] | None) -> DistilledSet:
    start, mesh = run.start(), run.problem.mesh

    def make(state: Any) -> DistilledSet:
        """The set of a state that the next steps overwrite."""
        copied = approximate.set_of(run, devices.local(mesh, state), start)
        return dataclasses.replace(copied, arrays=jax.tree.map(jnp.copy, dict(copied.arrays)))

    def tell(done: int, state: Any, loss: np.ndarray) -> None:
        if watch is not None:
            watch(Progress(done, loss, functools.partial(make, state)))

    state = distill_stage.learn(
        run,
        start,
        watch=lambda now: tell(now.done, now.state, np.asarray(now.info.loss)),
        on_start=lambda state: tell(0, state, np.zeros(0, np.float32)),
    )
    if run.method.step is not None:
        state = devices.local(mesh, state)
    return approximate.set_of(run, state, start)
