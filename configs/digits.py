"""scikit-learn's digits at 16x16: the whole job in two minutes on two cores."""

from ml_collections import ConfigDict

from ssdd_jax.config import default


def get_config() -> ConfigDict:
    """The config."""
    config = default()
    config.data.name = "digits"
    config.data.image_size = 16

    config.teacher.blocks = (1, 1, 1, 1)
    config.teacher.width = 8
    config.teacher.projector_hidden = 256
    config.teacher.projector_out = 256
    config.teacher.epochs = 35
    config.teacher.warmup_epochs = 3
    config.teacher.batch_size = 128
    config.teacher.learning_rate = 0.3
    config.teacher.crop_scale = (0.6, 1.0)
    config.teacher.flip_probability = 0.0

    config.storage.N = 20
    config.storage.M = 60
    config.storage.base_size = 8
    config.storage.hidden = 8

    config.student.widths = (16, 32, 64, 64)
    config.pool.size = 5
    config.pool.steps = 200
    config.distill.steps = 500
    config.distill.batch_size = 256
    config.distill.learning_rate = 3e-2

    config.evaluate.epochs = 350
    config.evaluate.full_epochs = 40
    config.evaluate.probe_steps = 1000
    return config
