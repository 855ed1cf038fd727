"""Step of KRR-ST's published loop, which recomputes the teacher's features of every real batch.

With a clone of db-Lee/selfsup_dd, its `algorithms/distill.py` and `model_pool.py` are timed unchanged. Without one, the
same step is implemented here from their description: free pixels and targets, the teacher's features of the batch, an
outer step, and an inner step of the drawn model. Both omit the random crops and flips (kornia) and data loading; both
use the ResNet of `torch_side.stages` as the teacher, since torchvision may not be installed.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from experiments import agreement
from experiments.measure.timing import Timed
from experiments.torch_side.reference import ConvNet, FreePairs, Reference, Settings, repeated
from experiments.torch_side.stages import ResNet


def from_clone(repository: str, teacher: ResNet, images: Tensor, options: argparse.Namespace) -> Timed:
    """Prepare the body of the published loop.

    Args:
        repository: Folder of the clone.
        teacher: The frozen teacher.
        images: Real images `(n,C,H,W)`, from which the initial pairs and the batches are drawn.
        options: Options of the benchmark.

    Returns:
        Steps of the loop.

    Raises:
        UserError: If the folder is not a clone.
    """
    agreement.modules(pathlib.Path(repository))
    import model_pool
    from algorithms import distill

    device, count = images.device, options.images * options.views
    name = "_".join(["convnet", *map(str, options.widths), "bn"])
    settings = argparse.Namespace(
        num_models=options.pool, train_model=name, img_shape=tuple(images.shape[1:]),
        num_pretrain_classes=teacher.features, online_opt="sgd", online_lr=0.1, online_wd=1e-3, online_iteration=1000,
        outer_grad_norm=0.0,
    )  # fmt: skip
    models: Any = model_pool.ModelPool(settings, device)
    x_syn, y_syn = (tensor.requires_grad_() for tensor in _start(count, teacher, images))
    optimizer = torch.optim.AdamW([x_syn, y_syn], 1e-3, weight_decay=0.0)
    batches = _batches(images, options.batch)

    def step() -> None:
        distill.run(settings, device, teacher, models, optimizer, batches, nn.Identity(), x_syn, y_syn)

    return repeated(step, options.steps, device)


def described(teacher: ResNet, images: Tensor, settings: Settings, options: argparse.Namespace) -> Timed:
    """Prepare the same step, implemented from its description; arguments and result are those of `from_clone`."""
    count, shape = options.images * options.views, (options.size, options.size, 3)
    models = [ConvNet(shape, options.widths, teacher.features) for _ in range(options.pool)]
    reference = Reference(FreePairs(*_start(count, teacher, images)), models, settings, images.device)
    batches = _batches(images, options.batch)
    teacher = teacher.to(memory_format=settings.memory_format)  # type: ignore[call-overload, unused-ignore]

    def step() -> None:
        x_real, _ = next(batches)
        with torch.no_grad():
            y_real = teacher(x_real.contiguous(memory_format=settings.memory_format))
        reference.whole_step(torch.randperm(options.pool)[:1].tolist(), x_real, y_real)

    return repeated(step, options.steps, images.device)


def _start(count: int, teacher: ResNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Draw `count` images with replacement, and random targets of the teacher's size."""
    rows = torch.randint(len(images), (count,), device=images.device)
    return images[rows].clone(), torch.randn(count, teacher.features, device=images.device)


def _batches(images: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        rows = torch.randint(len(images), (size,), device=images.device)
        yield images[rows], rows
