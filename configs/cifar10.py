"""CIFAR-10 (TFDS), Boost-SSDD's hyperparameters; cifar10.py:cpu is an edition for two cores.

Paper: Yu, Yao and Chiu, "Boost Self-Supervised Dataset Distillation via Parameterization, Predefined Augmentation, and
Approximation", ICLR 2025. Teacher: solo-learn's Barlow Twins for CIFAR, published linear accuracy 92.10.
Command: python -m ssdd_jax.main --config=configs/cifar10.py [--config.data.data_dir=DIR]
"""

from ml_collections import ConfigDict

from ssdd_jax.config import default


def get_config(edition: str = "") -> ConfigDict:
    """The config; `edition` is empty or `cpu`."""
    config = default()
    config.data.name = "tfds:cifar10"
    config.storage.N = 100
    config.pool.vectorize = 10
    if edition == "cpu":
        return _cpu(config)
    if edition:
        raise ValueError(f"unknown edition {edition!r}: there is 'cpu'")
    return config


def _cpu(config: ConfigDict) -> ConfigDict:
    """The same job at 32x32 with narrower networks and fewer steps: under half an hour on two cores."""
    config.teacher.blocks = (1, 1, 1, 1)
    config.teacher.width = 16
    config.teacher.projector_hidden = 512
    config.teacher.projector_out = 512
    config.teacher.batch_size = 128
    config.teacher.epochs = 2
    config.teacher.warmup_epochs = 0
    config.teacher.steps_per_call = 10
    config.teacher.save_every = 100

    config.storage.N = 50
    config.storage.M = 100

    config.student.widths = (32, 64, 128)
    config.pool.vectorize = 1
    config.pool.size = 4
    config.pool.steps = 150
    config.distill.steps = 800
    config.distill.batch_size = 256
    config.distill.learning_rate = 1e-2
    config.distill.steps_per_call = 20
    config.distill.save_every = 100

    config.evaluate.epochs = 150
    config.evaluate.full_epochs = 2
    config.evaluate.probe_steps = 2000
    return config
