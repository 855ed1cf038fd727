"""CIFAR-10 (TFDS) with Boost-SSDD's hyperparameters; cifar10.py:cpu is sized for two cores.

Paper: Yu, Yao and Chiu, "Boost Self-Supervised Dataset Distillation via Parameterization, Predefined Augmentation, and
Approximation", ICLR 2025. Teacher: solo-learn's Barlow Twins for CIFAR, published linear accuracy 92.10.
Command: python -m ssdd_jax.main --config=configs/cifar10.py [--config.data.data_dir=DIR]
Teacher of cifar10.py:cpu: the one in experiments/results/teacher-cifar10, a ResNet-10 of width 32 trained by Barlow
Twins for 150 epochs (`experiments.train_teacher`).
The full config has not been run in full. One H200 takes 18 ms for an outer step at about this size, 9 minutes for the
30,000 steps; cifar10.py:all_models, which draws all ten models in each, 184 ms and 92 minutes (docs/guides/speed.md;
extrapolated, without the teacher).
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from ssdd_jax.config import ALL_MODELS, default, edit

# The stored teacher: in a checkout, or beside this file in the installed package.
HERE = pathlib.Path(__file__).resolve().parent
TEACHERS = (HERE.parent / "experiments" / "results" / "teacher-cifar10", HERE / "teacher-cifar10")

# Narrower networks and fewer steps at 32x32.
CPU: dict[str, Any] = {
    "teacher.source": next((str(folder) for folder in TEACHERS if folder.is_dir()), ""),
    "storage.N": 50,
    "student.widths": (32, 64, 128),
    "pool.size": 4,
    "pool.steps": 150,
    "distill.steps": 800,
    "distill.batch_size": 256,
    "distill.learning_rate": 1e-2,
    "distill.steps_per_call": 20,
    "distill.save_every": 100,
    "evaluate.steps": 1000,
    "evaluate.full_steps": 2000,
    "evaluate.probe_steps": 2000,
}

EXPERTS: dict[str, Any] = {
    "experts.widths": (32, 32, 32),
    "experts.count": 5,
    "experts.batch_size": 128,
}
OWN: dict[str, dict[str, Any]] = {
    "cpu": CPU,
    "all_models": ALL_MODELS,
    "cpu,krr_st": {"distill.steps": 800, "distill.learning_rate": 1e-2},
    "cpu,mkdt": EXPERTS | {"distill.steps": 200, "mkdt.unroll": 10},
    "cpu,high_loss": EXPERTS,
    "cpu,scdd": {"distill.steps": 300, "distill.learning_rate": 0.4},
}


def get_config(edition: str = "") -> ConfigDict:
    """Return the config; `edition` is empty, `cpu`, `all_models`, the name of a method, or one of these two with it."""
    config = default()
    config.data.name = "tfds:cifar10"
    config.storage.N = 100
    return edit(config, edition, OWN)
