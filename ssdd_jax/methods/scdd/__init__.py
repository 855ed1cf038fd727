"""SC-DD (Zhou, Yin, Shao and Shen, 2024); see `ssdd_jax.methods.scdd.method`."""

from ssdd_jax.methods.scdd.method import DEFINITION, make

__all__ = ["DEFINITION", "make"]
