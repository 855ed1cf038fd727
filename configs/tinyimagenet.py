"""Tiny ImageNet at 64x64, from its original folder or zip, Boost-SSDD's hyperparameters.

Paper: Yu, Yao and Chiu, "Boost Self-Supervised Dataset Distillation via Parameterization, Predefined Augmentation, and
Approximation", ICLR 2025.
Command: python -m ssdd_jax.main --config=configs/tinyimagenet.py --config.data.data_dir=tiny-imagenet-200.zip
"""

from ml_collections import ConfigDict

from ssdd_jax.config import default


def get_config() -> ConfigDict:
    """The config."""
    config = default()
    config.data.name = "tiny_imagenet"
    config.data.image_size = 64
    config.storage.N = 200
    config.storage.hidden = 16
    config.student.widths = (64, 128, 256, 512)
    config.distill.steps = 20_000
    config.pool.vectorize = 10
    return config
