"""ImageNet at 64x64 (TFDS imagenet_resized/64x64) with Boost-SSDD's hyperparameters.

Paper: Yu, Yao and Chiu, "Boost Self-Supervised Dataset Distillation via Parameterization, Predefined Augmentation, and
Approximation", ICLR 2025. The images, 15.7 GB, and the features, 2.6 GB, are streamed if they exceed half of the
device's memory. With a cache folder they need not fit in the host's memory either: see docs/guides/large_data.md.
Command: python -m ssdd_jax.main --config=configs/imagenet64.py --config.data.cache_dir=DIR [--config.data.data_dir=DIR]
Time: not measured at this size; --dry_run predicts it on the machine at hand. imagenet64.py:all_models draws all ten
models in each outer step and takes about ten times as long.
"""

from typing import Any

from ml_collections import ConfigDict

from ssdd_jax.config import ALL_MODELS, default, edit

EXPERTS: dict[str, Any] = {"experts.widths": (128, 128, 128, 128)}
OWN: dict[str, dict[str, Any]] = {
    "all_models": ALL_MODELS,
    "krr_st": {"distill.learning_rate": 1e-5},
    # Not published at this size: Tiny ImageNet's.
    "mkdt": EXPERTS | {"distill.steps": 10_000, "mkdt.unroll": 10, "mkdt.image_learning_rate": 1e5},
    "high_loss": EXPERTS,
    # Rate and weight published for ImageNet at 224x224; N holds ten images per class.
    "scdd": {
        "storage.N": 10_400,
        "scdd.images_per_class": 10,
        "distill.learning_rate": 0.25,
        "scdd.bn_weight": 0.01,
        "scdd.post_epochs": 300,
    },
    # An image of each class.
    "lgm": {"storage.N": 1000},
    "clp_dd": {"storage.N": 1000},
}


def get_config(edition: str = "") -> ConfigDict:
    """Return the config; `edition` is empty, the name of a method, `all_models`, or `all_models,METHOD`."""
    config = default()
    config.data.name = "tfds:imagenet_resized/64x64"
    config.data.test_split = "validation"
    config.teacher.epochs = 100
    config.storage.N = 200
    config.storage.hidden = 16
    config.student.widths = (64, 128, 256, 512)
    config.distill.steps = 20_000
    config.evaluate.full_steps = 50_000
    return edit(config, edition, OWN)
