"""A whole run of any method that takes seconds: 160 images of 8x8 pixels, a narrow teacher, a few steps."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

# Values of the config that make each stage small.
SMALL = {
    "devices.preflight": "off",
    "teacher.gate": "off",
    "storage.N": 4,
    "storage.base_size": 4,
    "storage.hidden": 2,
    "student.widths": "(4,8)",
    "pool.size": 2,
    "pool.steps": 5,
    "distill.steps": 40,
    "distill.steps_per_call": 5,
    "distill.save_every": 10,
    "distill.batch_size": 32,
    "distill.learning_rate": 1e-2,
    "approximate.steps": 50,
    "evaluate.seeds": 2,
    "evaluate.steps": 5,
    "evaluate.full_steps": 3,
    "evaluate.weight_decays": "(1e-3,)",
    "evaluate.probe_steps": 20,
}
# A teacher trained in the run, and what the methods need besides.
TAUGHT = {
    "teacher.features": "",
    "teacher.blocks": "(1,1,1,1)",
    "teacher.width": 2,
    "teacher.projector_hidden": 8,
    "teacher.projector_out": 8,
    "teacher.epochs": 2,
    "teacher.warmup_epochs": 1,
    "teacher.batch_size": 40,
    "experts.widths": "(4,4)",
    "experts.count": 3,
    "experts.start_epochs": 2,
    "experts.batch_size": 40,
    "mkdt.unroll": 2,
    "mkdt.batch_size": 4,
    "mkdt.image_learning_rate": 1.0,
    "mkdt.target_learning_rate": 1.0,
    "scdd.post_epochs": 2,
    "scdd.jitter": 1,
    "scdd.padding": 1,
    "encoder.copies": 2,
    "encoder.extend_every": 10,
    "encoder.head_epochs": 5,
}


def write_images(path: pathlib.Path, *, labels: bool = True, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Write 120 training and 40 test images of three patterns with noise to an .npz file; returns images and labels."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, 160)
    pattern = generator.integers(40, 216, (3, side, side, 1))
    images = np.clip(pattern[label] + generator.normal(0, 25, (160, side, side, 1)), 0, 255).astype(np.uint8)
    named: dict[str, Any] = {"train_labels": label[:120], "test_labels": label[120:]} if labels else {}
    np.savez(path, train_images=images[:120], test_images=images[120:], **named)
    return images, label


def command(images: pathlib.Path, workdir: pathlib.Path, method: str) -> list[str]:
    """Return the command line of a small run of a method, with a teacher of its own."""
    evaluated = {"evaluate.entries": "('distilled','random_real')", "evaluate.seeds": 1}
    values = {"data.name": f"npz:{images}", "data.image_size": 0, **SMALL, **TAUGHT, **evaluated}
    return [
        f"--config=configs/digits.py:{method}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in values.items()),
    ]
