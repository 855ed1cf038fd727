"""Data sets: every source of images is loaded as one `Dataset` of NumPy arrays."""

from ssdd_jax.data.dataset import Dataset
from ssdd_jax.data.loading import load

__all__ = ["Dataset", "load"]
