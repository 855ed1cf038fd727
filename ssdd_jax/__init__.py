"""Self-supervised dataset distillation in JAX.

A large unlabelled image set in, a tiny set of images and target features out, on which a network trained from
scratch imitates a self-supervised teacher.

    import ssdd_jax
    distilled = ssdd_jax.distill(images, features)  # or ssdd_jax.load("runs/digits/distilled")
    inputs, targets = distilled.pairs()
    student = ssdd_jax.train(distilled, "resnet18")
    result = ssdd_jax.evaluate(distilled, models=["resnet18"], targets=["cifar10"])

`distill`, `load`, `train` and `evaluate` are all that most need. The modules behind them are pure functions over
explicit pytrees; each has a page of its own (`mkdocs serve`, or `python -m pydoc ssdd_jax.krr`). Everything is imported
on first use, so that the package itself loads at once.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from ssdd_jax.errors import UserError
from ssdd_jax.runtime.version import __version__

if TYPE_CHECKING:
    from ssdd_jax import evaluate
    from ssdd_jax.api.distill import distill
    from ssdd_jax.api.train import train
    from ssdd_jax.distilled import DistilledSet
    from ssdd_jax.formats import read as load

__all__ = ["DistilledSet", "UserError", "__version__", "distill", "evaluate", "load", "train"]

# Public names by the module that defines them, and their name in it. `evaluate` is a callable module.
_ORIGINS = {
    "DistilledSet": ("ssdd_jax.distilled", "DistilledSet"),
    "distill": ("ssdd_jax.api.distill", "distill"),
    "load": ("ssdd_jax.formats", "read"),
    "train": ("ssdd_jax.api.train", "train"),
}


def __getattr__(name: str) -> Any:
    """Import a public function, or a module of the package, when it is first used."""
    if name in _ORIGINS:
        module, original = _ORIGINS[name]
        value = getattr(importlib.import_module(module), original)
    elif not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
