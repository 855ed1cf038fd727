"""The teacher: a ResNet-18 trained without labels, whose features are what a distilled set teaches."""

from ssdd_jax.teacher.augmentations import Augmentation, random_views
from ssdd_jax.teacher.barlow_twins import Info, Settings, State, Trainer, loss, make
from ssdd_jax.teacher.lars import lars
from ssdd_jax.teacher.network import backbone, feature_batches, features, features_of_inputs, load

__all__ = [
    "Augmentation",
    "Info",
    "Settings",
    "State",
    "Trainer",
    "backbone",
    "feature_batches",
    "features",
    "features_of_inputs",
    "lars",
    "load",
    "loss",
    "make",
    "random_views",
]
