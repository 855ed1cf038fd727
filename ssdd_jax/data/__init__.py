"""Images in, arrays out: every source of images becomes one `Dataset` of NumPy arrays."""

from ssdd_jax.data.dataset import Dataset
from ssdd_jax.data.loading import load

__all__ = ["Dataset", "load"]
