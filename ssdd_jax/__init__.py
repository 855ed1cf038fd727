"""Self-supervised dataset distillation in JAX.

A large unlabelled image set in, a tiny set of images and target features out, on which a network trained from
scratch imitates a self-supervised teacher.

    import ssdd_jax
    distilled = ssdd_jax.load("runs/digits/distilled")
    images, targets = distilled.pairs()
    result = ssdd_jax.evaluate(distilled, models=["resnet18"], targets=["cifar10"])
"""

from ssdd_jax import evaluate
from ssdd_jax.distilled import DistilledSet
from ssdd_jax.errors import UserError
from ssdd_jax.formats import read as load

__version__ = "0.1.0"
__all__ = ["DistilledSet", "UserError", "__version__", "evaluate", "load"]
