"""Pretrained networks: read weight files, recognise the network by tensor names and shapes, and convert it."""

from ssdd_jax.teacher.pretrained.loading import Options, load

__all__ = ["Options", "load"]
