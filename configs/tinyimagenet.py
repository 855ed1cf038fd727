"""Tiny ImageNet at 64x64, from its original folder or zip, with Boost-SSDD's hyperparameters.

Paper: Yu, Yao and Chiu, "Boost Self-Supervised Dataset Distillation via Parameterization, Predefined Augmentation, and
Approximation", ICLR 2025.
Command: python -m ssdd_jax.main --config=configs/tinyimagenet.py --config.data.data_dir=tiny-imagenet-200.zip
Time: not measured at this size; --dry_run predicts it on the machine at hand. tinyimagenet.py:all_models draws all ten
models in each outer step and takes about ten times as long.
"""

from typing import Any

from ml_collections import ConfigDict

from ssdd_jax.config import ALL_MODELS, default, edit

EXPERTS: dict[str, Any] = {"experts.widths": (128, 128, 128, 128)}
OWN: dict[str, dict[str, Any]] = {
    "all_models": ALL_MODELS,
    "krr_st": {"distill.learning_rate": 1e-5},
    "mkdt": EXPERTS | {"distill.steps": 10_000, "mkdt.unroll": 10, "mkdt.image_learning_rate": 1e5},
    "high_loss": EXPERTS,
    # The recovery's rate as published; its post-training (500 epochs of SGD at 0.2) is not offered.
    "scdd": {"storage.N": 2000, "scdd.images_per_class": 10, "distill.learning_rate": 0.6},
}


def get_config(edition: str = "") -> ConfigDict:
    """Return the config; `edition` is empty, the name of a method, `all_models`, or `all_models,METHOD`."""
    config = default()
    config.data.name = "tiny_imagenet"
    config.data.image_size = 64
    config.storage.N = 200
    config.storage.hidden = 16
    config.student.widths = (64, 128, 256, 512)
    config.distill.steps = 20_000
    return edit(config, edition, OWN)
