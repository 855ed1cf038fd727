"""Self-supervised dataset distillation in JAX.

A large unlabelled image set in, a tiny set of images and target features out, on which a network trained from
scratch imitates a self-supervised teacher.

    import ssdd_jax
    distilled = ssdd_jax.distill(images, features)  # or ssdd_jax.load("runs/digits/distilled")
    inputs, targets = distilled.pairs()
    student = ssdd_jax.train(distilled, "resnet18")
    result = ssdd_jax.evaluate(distilled, models=["resnet18"], targets=["cifar10"])

`distill`, `load`, `train` and `evaluate` are all that most need. The modules behind them are pure functions over
explicit pytrees; each has a page of its own (`mkdocs serve`, or `python -m pydoc ssdd_jax.krr`).
"""

from ssdd_jax import evaluate
from ssdd_jax.api.distill import distill
from ssdd_jax.api.train import train
from ssdd_jax.distilled import DistilledSet
from ssdd_jax.errors import UserError
from ssdd_jax.formats import read as load
from ssdd_jax.runtime.version import __version__

__all__ = ["DistilledSet", "UserError", "__version__", "distill", "evaluate", "load", "train"]
