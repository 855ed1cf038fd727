"""Networks: the convolution they share, the ConvNet that is trained on a distilled set, the teacher's ResNet."""

from ssdd_jax.models.convnet import ConvNet
from ssdd_jax.models.convolution import conv

__all__ = ["ConvNet", "conv"]
