"""MKDT (Joshi, Ni and Mirzasoleiman, ICLR 2025); see `ssdd_jax.methods.mkdt.method`."""

from ssdd_jax.methods.mkdt.method import DEFINITION, make

__all__ = ["DEFINITION", "make"]
