"""CIFAR-100 (TFDS) with Boost-SSDD's hyperparameters.

Paper: Yu, Yao and Chiu, "Boost Self-Supervised Dataset Distillation via Parameterization, Predefined Augmentation, and
Approximation", ICLR 2025. Teacher: solo-learn's Barlow Twins for CIFAR, published linear accuracy 70.90.
Command: python -m ssdd_jax.main --config=configs/cifar100.py [--config.data.data_dir=DIR]
Time: one H200 takes 18 ms for an outer step at about this size, 9 minutes for the 30,000 steps; cifar100.py:all_models,
which draws all ten models in each, 184 ms and 92 minutes (docs/guides/speed.md; extrapolated, without the teacher).
"""

from typing import Any

from ml_collections import ConfigDict

from ssdd_jax.config import ALL_MODELS, default, edit

# Ten images per class, as published, in the storage of a thousand images and features.
OWN: dict[str, dict[str, Any]] = {
    "all_models": ALL_MODELS,
    "scdd": {"storage.N": 1000, "scdd.images_per_class": 10},
}


def get_config(edition: str = "") -> ConfigDict:
    """Return the config; `edition` is empty, the name of a method, `all_models`, or `all_models,METHOD`."""
    config = default()
    config.data.name = "tfds:cifar100"
    config.storage.N = 100
    return edit(config, edition, OWN)
