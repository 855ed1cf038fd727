"""Distillation methods by name. Each is a module with `make(config, problem) -> Method`."""

from collections.abc import Callable

from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssdd_jax.errors import UserError
from ssdd_jax.methods import boost, krr_st, mkdt, noise, scdd, subset
from ssdd_jax.methods.base import Feed, Method, Problem, Source, Stage
from ssdd_jax.methods.budget import check_pairs
from ssdd_jax.runtime import devices

METHODS: dict[str, Callable[[ConfigDict, Problem], Method]] = {
    "boost": boost.make,
    "krr_st": krr_st.make,
    "mkdt": mkdt.make,
    "scdd": scdd.make,
    "subset": subset.make,
    "noise": noise.make,
}

# Those that learn against the pool: their steps split over several devices.
POOLED = ("boost", "krr_st")

__all__ = ["METHODS", "POOLED", "Feed", "Method", "Problem", "Source", "Stage", "check", "make", "mesh_of"]


def check(name: str) -> None:
    """Refuse a method that there is not.

    Raises:
        UserError: Listing those that there are.
    """
    if name not in METHODS:
        raise UserError(f"config.method={name!r} is out of range: it must be one of {', '.join(METHODS)}")


def make(config: ConfigDict, problem: Problem) -> Method:
    """The method that `config.method` names.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data, and what is known of the teacher.

    Returns:
        The method.

    Raises:
        UserError: If there is no such method, there are fewer images than N, or the method cannot serve the problem.
    """
    check(config.method)
    check_pairs(config.storage.N, problem.images)
    return METHODS[config.method](config, problem)


def mesh_of(config: ConfigDict) -> Mesh | None:
    """The devices that a config asks for, None for one alone; see `devices.make`."""
    trained = not (config.teacher.features or config.teacher.source)
    batches = {"teacher.batch_size": config.teacher.batch_size} if trained else {}
    pooled = config.method in POOLED
    if pooled:
        batches["distill.batch_size"] = config.distill.batch_size
    models = config.pool.models_per_step if pooled else 1
    return devices.make(config.devices.pool, config.devices.data, models=models, batches=batches)
