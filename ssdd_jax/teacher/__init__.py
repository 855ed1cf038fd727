"""The teacher: a ResNet-18 trained without labels, whose features are what a distilled set teaches."""

from ssdd_jax.teacher.augmentations import Augmentation, random_views
from ssdd_jax.teacher.barlow_twins import Info, Settings, State, Trainer, loss, make
from ssdd_jax.teacher.lars import lars
from ssdd_jax.teacher.network import features

__all__ = [
    "Augmentation",
    "Info",
    "Settings",
    "State",
    "Trainer",
    "features",
    "lars",
    "loss",
    "make",
    "random_views",
]
