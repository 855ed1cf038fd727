"""Methods for a frozen encoder: images on which a linear head is trained in place of all real images."""

from ssdd_jax.methods.frozen_encoder.method import CLP_DD, LGM

__all__ = ["CLP_DD", "LGM"]
