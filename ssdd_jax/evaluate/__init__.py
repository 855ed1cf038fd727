"""Evaluate distilled sets: train networks on them from scratch and test these by several protocols on several targets.

    import ssdd_jax
    result = ssdd_jax.evaluate("runs/digits/distilled", models=["convnet", "resnet18"], targets=["cifar10"])
    result["rows"][0]  # {"target": "cifar10", "model": "convnet", "entry": "distilled", "measure": "linear", ...}

The module is callable: `ssdd_jax.evaluate(...)` calls `ssdd_jax.evaluate.evaluate(...)`. The command line is
`python -m ssdd_jax.evaluate --set=PATH`. The evaluation does not depend on the method that distilled a set.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from ssdd_jax.evaluate.api import evaluate, write
from ssdd_jax.evaluate.entries import REFERENCES, SourceData, Target
from ssdd_jax.evaluate.options import EDITIONS, Options
from ssdd_jax.evaluate.protocols.table import PROTOCOLS
from ssdd_jax.evaluate.store import Store
from ssdd_jax.evaluate.suite import Request, run
from ssdd_jax.report.statistics import paired, summary

__all__ = [
    "EDITIONS",
    "Options",
    "PROTOCOLS",
    "REFERENCES",
    "Request",
    "SourceData",
    "Store",
    "Target",
    "evaluate",
    "paired",
    "run",
    "summary",
    "write",
]


class _Callable(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return evaluate(*args, **kwargs)


# `ssdd_jax.evaluate` has to be both a function and a package. Changing the class of the module makes it callable.
sys.modules[__name__].__class__ = _Callable
