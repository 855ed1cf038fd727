"""Floating-point operations of each stage, computed from the shapes; a multiplication and an addition count as two.

Included are convolutions (direct: `2 h w I O` per pixel), linear layers, the products of kernel regression and the
decoding; norms, activations, pooling and optimisers, a few percent, are not. The count belongs to the method and is the
same for every implementation: one with fewer multiplications (Winograd, FFT) can exceed the machine's rate of matrix
products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Network(NamedTuple):
    """Operations of a network for one image, forward and of the first layer alone, and its number of features."""

    forward: float
    first: float
    features: int

    @property
    def training(self) -> float:
        """Operations of forward and backward pass: the first layer needs no derivative in the pixels."""
        return 3 * self.forward - self.first


class Sizes(NamedTuple):
    """Sizes that the operation counts depend on.

    Attributes:
        images: Decoded images M.
        views: Views of each; there are `images * views` pairs.
        batch: Real images of an outer step, of the features and of the teacher's step.
        size: Side of an image.
        widths: Channels of the ConvNet's blocks.
        dim: Length D of a target.
        bases: Image bases U and feature bases V.
        models_per_step: Inner models of an outer step.
        teacher_width: Channels of the teacher's first stage.
        teacher_blocks: Number of blocks in each of the teacher's stages.
        projector: Width of the projector's three layers.
        hidden: Hidden units of an approximation network.
        evaluation_batch: Pairs of a step of the evaluation.
    """

    images: int
    views: int
    batch: int
    size: int
    widths: tuple[int, ...]
    dim: int
    bases: int
    models_per_step: int
    teacher_width: int
    teacher_blocks: tuple[int, ...]
    projector: int
    hidden: int
    evaluation_batch: int


def convnet(size: int, widths: Sequence[int]) -> Network:
    """Count the operations of the ConvNet without its linear layer."""
    side, before, forward, first = size, 3, 0.0, 0.0
    for i, width in enumerate(widths):
        block = 18.0 * before * width * side**2
        first, forward = block if i == 0 else first, forward + block
        before, side = width, side // 2
    return Network(forward, first, before * side**2)


def resnet(size: int, width: int, blocks: Sequence[int]) -> Network:
    """Count the operations of the teacher's ResNet: a 3x3 stem with padding 2, and stages of basic blocks."""
    side = size + 2
    first = forward = 18.0 * 3 * width * side**2
    channels = width
    for stage, count in enumerate(blocks):
        after = width * 2**stage
        for block in range(count):
            stride = 2 if stage and block == 0 else 1
            side = -(-side // stride)
            forward += 18.0 * (channels + after) * after * side**2
            forward += 2.0 * channels * after * side**2 * (channels != after)
            channels = after
    return Network(forward, first, channels)


def stages(sizes: Sizes) -> dict[str, float]:
    """Count the operations of one step of every stage.

    Let there be `S = images * views` pairs, `B` real images, `F` features (with the constant one) and k models per
    step. The outer step embeds `B + S` images and differentiates the `S` in their pixels (as much again). Its kernel
    regression takes `2 F S (S + B)` for the kernels, `2/3 S^3 + 2 S^2 D` for the solution, `2 B S D` for the
    prediction, and twice that backward. The inner step trains on `S` images, a step of the evaluation on a mini-batch
    of them. The teacher's step trains on two views of `B` images and correlates their projections. `official` is a step
    of KRR-ST's published loop: the teacher's features of the batch, an outer step without decoding, and an inner step.
    """
    pairs, batch, dim, bases = sizes.images * sizes.views, sizes.batch, sizes.dim, sizes.bases
    student = convnet(sizes.size, sizes.widths)
    teacher = resnet(sizes.size, sizes.teacher_width, sizes.teacher_blocks)
    features = student.features + 1
    regression = 2 * features * pairs * (pairs + batch) + 2 / 3 * pairs**3 + 2 * pairs * dim * (pairs + batch)
    decoding = 2 * bases * (sizes.images * 3 * min(16, sizes.size) ** 2 + pairs * dim)
    pooled = student.forward * (batch + 2 * pairs) + 3 * regression
    per_pair = student.training + 6 * student.features * dim
    projection = 2 * (teacher.features * sizes.projector + 2 * sizes.projector**2)
    correlation = 2 * sizes.projector**2 * batch
    count = sizes.models_per_step
    outer, inner = count * (pooled + 3 * decoding), pairs * per_pair
    return {
        "teacher": 2 * batch * (teacher.training + 3 * projection) + 3 * correlation,
        "features": batch * teacher.forward,
        "inner": inner,
        "outer": outer,
        "whole": outer + count * inner + decoding,
        # Per coefficient: forward 2 h + D; backward the same, and h for the second layer's weights.
        "approximation": 2 * (sizes.views - 1) * sizes.images * bases * (5 * sizes.hidden + 2 * dim),
        "evaluation": min(sizes.evaluation_batch, pairs) * per_pair,
        "official": batch * teacher.forward + pooled + inner,
    }
