"""ImageNet at 64x64 (TFDS imagenet_resized/64x64), Boost-SSDD's hyperparameters.

Paper: Yu, Yao and Chiu, "Boost Self-Supervised Dataset Distillation via Parameterization, Predefined Augmentation, and
Approximation", ICLR 2025. The images, 15.7 GB, and the features stay on the device: 1.28 million of both.
Command: python -m ssdd_jax.main --config=configs/imagenet64.py [--config.data.data_dir=DIR]
"""

from ml_collections import ConfigDict

from ssdd_jax.config import default


def get_config() -> ConfigDict:
    """The config."""
    config = default()
    config.data.name = "tfds:imagenet_resized/64x64"
    config.data.test_split = "validation"
    config.teacher.epochs = 100
    config.storage.N = 200
    config.storage.hidden = 16
    config.student.widths = (64, 128, 256, 512)
    config.distill.steps = 20_000
    config.pool.vectorize = 10
    config.evaluate.full_epochs = 10
    return config
