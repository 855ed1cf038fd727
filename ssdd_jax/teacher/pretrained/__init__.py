"""Networks that were trained elsewhere: their files read, recognised by names and shapes, and converted."""

from ssdd_jax.teacher.pretrained.loading import Options, load

__all__ = ["Options", "load"]
