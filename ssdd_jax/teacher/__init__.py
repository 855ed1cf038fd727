"""The teacher: a self-supervised network, trained here or pretrained, whose features are the regression targets."""

from ssdd_jax.teacher.augmentations import Augmentation, random_views
from ssdd_jax.teacher.barlow_twins import Info, Settings, State, Trainer, loss, make
from ssdd_jax.teacher.description import Description
from ssdd_jax.teacher.description import read as describe
from ssdd_jax.teacher.lars import lars
from ssdd_jax.teacher.network import backbone, batch_of, feature_batches, features, features_of_inputs, load

__all__ = [
    "Augmentation",
    "Description",
    "Info",
    "Settings",
    "State",
    "Trainer",
    "backbone",
    "describe",
    "batch_of",
    "feature_batches",
    "features",
    "features_of_inputs",
    "lars",
    "load",
    "loss",
    "make",
    "random_views",
]
