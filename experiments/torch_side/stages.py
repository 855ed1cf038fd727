"""PyTorch implementation of the stages around a distillation: the other side of the benchmark.

The teacher's training follows solo-learn's description of Barlow Twins for CIFAR (da Costa et al., JMLR 2022): separate
forward passes of the two views, and clipped LARS on everything that is not a vector. The projector has no biases, as on
the JAX side: batch norm would subtract what they add. Weights are copied from the JAX side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.torch_side.reference import compiler, lowered, tensor
from ssdd_jax import approximate


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is a 1x1 projection if the shape changes."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.projects = stride != 1 or before != after
        if self.projects:
            self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B,I,H,W)` to `(B,O,H',W')`."""
        shortcut = self.shortcut_norm(self.shortcut(x)) if self.projects else x
        x = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(x)) + shortcut, inplace=True)


class ResNet(nn.Module):
    """ResNet for small images up to the global average pool: a 3x3 stem with padding 2, without max-pool.

    Args:
        width: Channels of the first stage.
        blocks: Number of blocks in each stage.
    """

    def __init__(self, width: int, blocks: Sequence[int]):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 2, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.names = []
        before = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                name, after = f"stage{stage + 1}_block{block + 1}", width * 2**stage
                self.add_module(name, Block(before, after, 2 if stage and block == 0 else 1))
                self.names.append(name)
                before = after
        self.features = before

    def forward(self, x: Tensor) -> Tensor:
        """Compute features `(B,D)` of images `(B,C,H,W)`."""
        x = F.relu(self.stem_norm(self.stem(x)), inplace=True)
        for name in self.names:
            x = getattr(self, name)(x)
        return x.mean((2, 3))


class Projector(nn.Module):
    """Three linear layers with batch norm and ReLU between them."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.linear1, self.norm1 = nn.Linear(features, width, bias=False), nn.BatchNorm1d(width)
        self.linear2, self.norm2 = nn.Linear(width, width, bias=False), nn.BatchNorm1d(width)
        self.linear3 = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map features `(B,D)` to projections `(B,P)`."""
        x = F.relu(self.norm1(self.linear1(x)), inplace=True)
        return self.linear3(F.relu(self.norm2(self.linear2(x)), inplace=True))


class Teacher(nn.Module):
    """Backbone and projector of the training."""

    def __init__(self, width: int, blocks: Sequence[int], projector: int):
        super().__init__()
        self.backbone = ResNet(width, blocks)
        self.projector = Projector(self.backbone.features, projector)

    def forward(self, x: Tensor) -> Tensor:
        """Compute projections `(B,P)` of images `(B,C,H,W)`."""
        return self.projector(self.backbone(x))


def teacher_from(variables: Any, width: int, blocks: Sequence[int], projector: int) -> Teacher:
    """Create the network with the weights and statistics of the JAX side, whose modules have the same names."""
    network = Teacher(width, blocks, projector)
    state = network.state_dict()
    for collection in ("params", "batch_stats"):
        for path, value in _leaves(variables[collection]):
            *names, last = path
            renamed = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
            array = tensor(value)
            # Kernels: (h,w,I,O) to (O,I,h,w), and (I,O) to (O,I).
            array = array.permute(3, 2, 0, 1) if array.ndim == 4 else array.T if array.ndim == 2 else array
            state[".".join([*names, renamed.get(last, last)])] = array.contiguous()
    network.load_state_dict(state)
    return network


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for name, branch in tree.items() for leaf in _leaves(branch, (*path, name))]


class TeacherSettings(NamedTuple):
    """Settings of the loss and of LARS."""

    off_diagonal: float
    scale: float
    rate: float
    weight_decay: float
    momentum: float = 0.9
    eta: float = 0.02


class TeacherReference:
    """State of a teacher's training, and its steps.

    Args:
        network: Backbone and projector.
        settings: Settings of the loss and of LARS.
        precision: `float32`, or `bfloat16` for autocast.
        compiled: Apply `torch.compile` to the network.
    """

    def __init__(
        self, network: Teacher, settings: TeacherSettings, precision: str = "float32", *, compiled: bool = False
    ):
        device = next(network.parameters()).device
        self.network, self.settings = network, settings
        self.project = lowered(compiler(compiled)(network), precision, device)
        self.embed = lowered(compiler(compiled)(network.backbone), precision, device)
        self.momenta = [torch.zeros_like(weight) for weight in network.parameters()]

    def step(self, first: Tensor, second: Tensor) -> Tensor:
        """Take one step on two views `(B,C,H,W)` of a batch; returns the loss before it."""
        self.network.train()
        self.network.zero_grad(set_to_none=True)
        loss = self.loss(self.project(first), self.project(second))
        loss.backward()
        self._update()
        return loss.detach()

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Compute the distance of the cross-correlation of projections `(B,P)` from the identity."""
        first, second = (F.batch_norm(z, None, None, training=True) for z in (first, second))
        difference = (first.T @ second / len(first) - torch.eye(first.shape[1], device=first.device)).square()
        on_diagonal = difference.diagonal().sum()
        return self.settings.scale * (on_diagonal + self.settings.off_diagonal * (difference.sum() - on_diagonal))

    def features(self, images: Tensor) -> Tensor:
        """Compute features `(B,D)` in eval mode."""
        self.network.eval()
        with torch.no_grad():
            return self.embed(images)

    @torch.no_grad()
    def _update(self) -> None:
        settings = self.settings
        for weight, momentum in zip(self.network.parameters(), self.momenta, strict=True):
            gradient = weight.grad
            assert gradient is not None
            if weight.ndim != 1:
                size, slope = weight.norm(), gradient.norm()
                local = settings.eta * size / (slope + settings.weight_decay * size + 1e-8)
                scaled = (gradient + settings.weight_decay * weight) * (local / settings.rate).clamp(max=1.0)
                gradient = torch.where((size > 0) & (slope > 0), scaled, gradient)
            momentum.mul_(settings.momentum).add_(gradient)
            weight.sub_(momentum, alpha=settings.rate)


def fit(
    networks: approximate.Networks, coefficients: Tensor, bases: Tensor, settings: approximate.Settings
) -> list[Tensor]:
    """Fit the approximation networks by full-batch Adam with cosine decay.

    Args:
        networks: Initial networks, NumPy arrays.
        coefficients: Coefficients of every view `(views,M,V)`.
        bases: Feature bases `(V,D)`.
        settings: Number of steps and learning rate.

    Returns:
        W1, b1, W2 and b2, in the order of `approximate.Networks`.
    """
    weights = [tensor(array).to(coefficients.device).requires_grad_() for array in networks]
    kernel, bias, out_kernel, out_bias = weights
    optimizer = torch.optim.Adam(weights, settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for _ in range(settings.steps):
        hidden = F.relu(torch.einsum("mk,vkh->vmh", coefficients[0], kernel) + bias[:, None])
        shift = torch.bmm(hidden, out_kernel) + out_bias[:, None]
        error = ((coefficients[0] + shift - coefficients[1:]) @ bases).square().mean()
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        optimizer.step()
        schedule.step()
    return [weight.detach() for weight in weights]
