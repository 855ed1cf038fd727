"""Registry of distillation methods, and the device mesh that suits a method.

Each method is a module with a `Definition`. `register` adds one, also from outside the package.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssdd_jax import config as configuration
from ssdd_jax.config import CODES
from ssdd_jax.distilled import DistilledSet, pack
from ssdd_jax.errors import UserError
from ssdd_jax.methods import boost, budget, composed, frozen_encoder, krr_st, mkdt, noise, rela, scdd, subset
from ssdd_jax.methods.base import Definition, Feed, Method, Problem, Run, Source, Stage, Trial
from ssdd_jax.runtime import devices
from ssdd_jax.storage import mosaic

Array = jax.Array

__all__ = [
    "METHODS",
    "Definition",
    "Feed",
    "Method",
    "Problem",
    "Run",
    "Source",
    "Stage",
    "Trial",
    "changed",
    "check",
    "counted",
    "make",
    "mesh_of",
    "register",
    "titles",
]

METHODS: dict[str, Definition] = {}


def register(name: str, definition: Definition) -> None:
    """Add a method to the registry, and its editions to those of every config.

    Args:
        name: Its name in `config.method`.
        definition: Its constructor and facts.

    Raises:
        ValueError: If the name or one of the editions is taken.
    """
    if METHODS.get(name) == definition:
        return  # a config file that registers a method may be executed more than once
    if name in METHODS:
        raise ValueError(f"method {name!r} is registered already")
    # All editions are checked before anything is stored, so that a refused method leaves no trace.
    for edition in definition.editions:
        if edition in configuration.EDITIONS:
            raise ValueError(f"method {name!r}: there is an edition {edition!r} already")
    METHODS[name] = definition
    configuration.EDITIONS.update({edition: dict(changes) for edition, changes in definition.editions.items()})


register("boost", boost.DEFINITION)
register("composed", composed.DEFINITION)
register("krr_st", krr_st.DEFINITION)
register("mkdt", mkdt.DEFINITION)
register("scdd", scdd.DEFINITION)
register("lgm", frozen_encoder.LGM)
register("clp_dd", frozen_encoder.CLP_DD)
register("subset", subset.DEFINITION)
register("rela", rela.DEFINITION)
register("noise", noise.DEFINITION)


def check(name: str) -> None:
    """Check that a method is registered.

    Raises:
        UserError: If it is not; the registered ones are listed.
    """
    if name not in METHODS:
        raise UserError(f"config.method={name!r} is out of range: it must be one of {', '.join(METHODS)}")


def counted(config: ConfigDict, problem: Problem) -> ConfigDict:
    """Return the config with the N of its budget in bytes; see `ssdd_jax.methods.budget.counted`.

    Raises:
        UserError: If there is no such method, or the budget holds nothing.
    """
    check(config.method)
    return budget.counted(config, problem, coded=METHODS[config.method].coded, bases=METHODS[config.method].bases)


def make(config: ConfigDict, problem: Problem) -> Method:
    """Build the method that `config.method` names.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data and facts about the teacher.

    Returns:
        The method.

    Raises:
        UserError: If there is no such method, there are fewer images than N, there are features without the network
            that the method runs, or it cannot handle the problem or store its set in the configured precision.
    """
    check(config.method)
    budget.check_pairs(config.storage.N, problem.images)
    definition, storage = METHODS[config.method], config.storage
    if definition.network and not problem.network:
        raise UserError(
            f"config.method={config.method} runs the teacher's network, and only precomputed features are available: "
            "leave config.teacher.features empty to train a teacher, give the network as config.teacher.source, or "
            "choose another method"
        )
    images, targets = budget.precisions(config, coded=definition.coded)
    if images in CODES and not definition.coded:
        raise UserError(
            f"config.storage.images={images!r} codes images of the data, and config.method={config.method} learns "
            "others: choose a precision, such as int8"
        )
    if storage.quality and images not in mosaic.LOSSY:
        raise UserError(
            f"config.storage.quality={storage.quality} is of images in webp or jpeg, and these are stored in {images}: "
            "leave it at 0, or set config.storage.images"
        )
    method = definition.make(config, problem)

    def export(key: Array, state: Any, source: Source) -> DistilledSet:
        exported = method.export(key, state, source)
        return pack(exported, images=images, targets=targets, quality=storage.quality, limit=storage.bytes)

    if storage.bytes and images in CODES and method.settle is None:
        method = method._replace(settle=functools.partial(_coded, config, problem, images))
    return method._replace(export=export)


def _coded(config: ConfigDict, problem: Problem, code: str, source: Source) -> dict[str, int]:
    """Return the number of images whose codes fit the budget in bytes, by the mean code of the source's samples."""
    pixels = np.asarray(source.images[source.samples])

    def held(size: float) -> int:
        return max(1, min(budget.pairs(config, problem, coded=size), problem.images))

    return {"storage.N": held(mosaic.room_each(pixels, code, config.storage.quality, held=held))}


def changed(run: Run, changes: Mapping[str, Any]) -> Run:
    """Return a run with changes to its config, dotted keys to values, and the method that results from them."""
    config = run.config.copy_and_resolve_references()
    config.update_from_flattened_dict(dict(changes))
    return run._replace(config=config, method=make(config, run.problem)._replace(advice=run.method.advice))


def titles() -> dict[str, str]:
    """Return the display names of all registered methods, by edition."""
    return {edition: title for definition in METHODS.values() for edition, title in definition.titles.items()}


def mesh_of(config: ConfigDict) -> Mesh | None:
    """Build the device mesh that a config describes; None for a single device. See `ssdd_jax.runtime.devices.make`."""
    # Only batches of trainings that this run performs limit the mesh: a precomputed teacher sets no constraint.
    trained = not (config.teacher.features or config.teacher.source)
    batches = {"teacher.batch_size": config.teacher.batch_size} if trained else {}
    pooled = config.method in METHODS and METHODS[config.method].pooled
    if pooled:
        batches["distill.batch_size"] = config.distill.batch_size
    models = config.pool.models_per_step if pooled else 1
    return devices.make(config.devices.pool, config.devices.data, models=models, batches=batches)
