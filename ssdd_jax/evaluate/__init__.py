"""What a distilled set is worth: networks trained on it from scratch, judged by several protocols on several targets.

    import ssdd_jax
    result = ssdd_jax.evaluate("runs/digits/distilled", models=["convnet", "resnet18"], targets=["cifar10"])
    result["rows"][0]  # {"target": "cifar10", "model": "convnet", "entry": "distilled", "measure": "linear", ...}

The module is the function of the same name: calling it is calling `evaluate.evaluate`. On the command line it is
`python -m ssdd_jax.evaluate --set=PATH`. Nothing here knows which method made a set.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from ssdd_jax.evaluate.api import evaluate, write
from ssdd_jax.evaluate.entries import REFERENCES, SourceData, Target
from ssdd_jax.evaluate.options import EDITIONS, Options
from ssdd_jax.evaluate.protocols.table import PROTOCOLS
from ssdd_jax.evaluate.statistics import paired, summary
from ssdd_jax.evaluate.store import Store
from ssdd_jax.evaluate.suite import Request, run

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


# A function and a module cannot both be `ssdd_jax.evaluate`: the module answers to being called.
sys.modules[__name__].__class__ = _Callable
