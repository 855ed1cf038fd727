"""Neural networks: the students that evaluate a distilled set, the teacher's ResNet, and their shared layers."""

from ssdd_jax.models.architectures import ARCHITECTURES, count, make
from ssdd_jax.models.convnet import ConvNet
from ssdd_jax.models.convolution import conv
from ssdd_jax.models.network import features, initialize

__all__ = ["ARCHITECTURES", "ConvNet", "conv", "count", "features", "initialize", "make"]
