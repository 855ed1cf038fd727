"""Estimate of a program's memory from its trace, without compiling it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def peak(jaxpr: Jaxpr) -> int:
    """Compute the largest number of bytes that values of a traced program take at a time.

    Values live from their equation to their last use, and arguments to the end. XLA fuses equations, whose results are
    then never stored, but also copies values, orders equations anew, and has libraries with scratch memory: its own
    estimates are between half and twice as much.

    Args:
        jaxpr: The program.

    Returns:
        Bytes, arguments and results included.
    """
    last: dict[Any, int] = {}
    for position, equation in enumerate(jaxpr.eqns):
        last |= {var: position for var in equation.invars if not isinstance(var, Literal)}
    kept = {var for var in (*jaxpr.invars, *jaxpr.constvars, *jaxpr.outvars) if not isinstance(var, Literal)}
    live = sum(_bytes(var) for var in (*jaxpr.invars, *jaxpr.constvars))
    most = live
    for position, equation in enumerate(jaxpr.eqns):
        results = sum(_bytes(var) for var in equation.outvars)
        # Arguments of an inner program are values of this one; its results are those of the equation.
        inside = [peak(inner) - sum(map(_bytes, inner.invars)) for inner in _inner(equation.params)]
        most = max(most, live + max([results, *inside]))
        live += results
        operands = {var for var in equation.invars if not isinstance(var, Literal)}
        ended = [var for var in operands if last[var] == position and var not in kept]
        unused = [var for var in equation.outvars if var not in last and var not in kept]
        live -= sum(map(_bytes, (*ended, *unused)))
    return most


def _inner(parameters: Any) -> Iterator[Jaxpr]:
    """Programs among the parameters of an equation: bodies of loops, branches, compiled functions."""
    for value in parameters.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one


def _bytes(var: Any) -> int:
    """Bytes of a variable's array; a PRNG key is negligible."""
    if not hasattr(var.aval, "shape") or jax.dtypes.issubdtype(var.aval.dtype, jax.dtypes.prng_key):
        return 0
    return int(np.prod(var.aval.shape)) * var.aval.dtype.itemsize
