"""CIFAR-100 (TFDS), Boost-SSDD's hyperparameters.

Paper: Yu, Yao and Chiu, "Boost Self-Supervised Dataset Distillation via Parameterization, Predefined Augmentation, and
Approximation", ICLR 2025. Teacher: solo-learn's Barlow Twins for CIFAR, published linear accuracy 70.90.
Command: python -m ssdd_jax.main --config=configs/cifar100.py [--config.data.data_dir=DIR]
"""

from ml_collections import ConfigDict

from ssdd_jax.config import default


def get_config() -> ConfigDict:
    """The config."""
    config = default()
    config.data.name = "tfds:cifar100"
    config.storage.N = 100
    config.pool.vectorize = 10
    return config
