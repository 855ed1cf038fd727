"""scikit-learn's digits at 16x16: the whole pipeline in two minutes on two CPU cores.

Command: python -m ssdd_jax.main [--config=configs/digits.py:EDITION]
Memory: 1.6 GB
Results: docs/guides/results.md
"""

from typing import Any

from ml_collections import ConfigDict

from ssdd_jax.config import default, edit

EXPERTS: dict[str, Any] = {
    "experts.widths": (32, 32, 32),
    "experts.count": 10,
    "experts.start_epochs": 5,
    "experts.vectorize": 5,
}
# A mirrored or a cut digit is another one.
ENCODER: dict[str, Any] = {"distill.steps": 1000, "encoder.flip": 0.0, "encoder.crop_scale": (0.6, 1.0)}
OWN: dict[str, dict[str, Any]] = {
    "krr_st": {"distill.steps": 500, "distill.learning_rate": 3e-2},
    "mkdt": EXPERTS
    | {
        "distill.steps": 300,
        "mkdt.unroll": 20,
        "mkdt.image_learning_rate": 300.0,
        "mkdt.target_learning_rate": 100.0,
        "mkdt.rate_learning_rate": 1e-5,
        "mkdt.rate": 0.03,
    },
    "high_loss": EXPERTS,
    "scdd": {"scdd.jitter": 2, "scdd.padding": 2, "scdd.flip": 0.0},
    "lgm": ENCODER,
    "clp_dd": ENCODER,
}


def get_config(edition: str = "") -> ConfigDict:
    """Return the config; `edition` is empty or the name of a method."""
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
    config.storage.base_size = 8
    config.storage.hidden = 8

    config.student.widths = (16, 32, 64, 64)
    config.pool.size = 5
    config.pool.steps = 200
    config.distill.steps = 500
    config.distill.batch_size = 256
    config.distill.learning_rate = 3e-2

    config.evaluate.batch_size = 64
    config.evaluate.steps = 1000
    # Chosen out of 1e-4 and 1e-3 on held-out training images, for every row alike.
    config.evaluate.weight_decays = (1e-4,)
    config.evaluate.full_steps = 1500
    config.evaluate.probe_steps = 1000
    return edit(config, edition, OWN)
