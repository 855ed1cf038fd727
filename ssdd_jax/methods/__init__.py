"""Distillation methods by name. Each is a module with `make(config, problem) -> Method`."""

from collections.abc import Callable

from ml_collections import ConfigDict

from ssdd_jax.methods import boost
from ssdd_jax.methods.base import Method, Problem, Source

METHODS: dict[str, Callable[[ConfigDict, Problem], Method]] = {"boost": boost.make}

__all__ = ["METHODS", "Method", "Problem", "Source", "make"]


def make(config: ConfigDict, problem: Problem) -> Method:
    """The method that `config.method` names.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data, `(H,W,C)`, D and n.

    Raises:
        UserError: If the method cannot serve the problem.
    """
    return METHODS[config.method](config, problem)
