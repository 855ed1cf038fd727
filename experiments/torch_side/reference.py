"""PyTorch implementation of `methods.boost`'s step: the other side of the benchmark.

Written from the description of the method (Boost-SSDD, sections 3.1 to 3.3; KRR-ST, equation 6) for PyTorch's layout,
images `(B,C,H,W)`. Weights and initial values are copied from the JAX side, so that both compute the same values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.measure import timing
from experiments.measure.machine import PRODUCTS
from experiments.measure.timing import Timed
from ssdd_jax import decoder


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, batch norm, ReLU and 2x2 average pooling, then a linear layer.

    Args:
        image_shape: `(H,W,C)`.
        widths: Channels of each block.
        dim: Length D of a target.
    """

    def __init__(self, image_shape: tuple[int, int, int], widths: Sequence[int], dim: int):
        super().__init__()
        height, width, channels = image_shape
        layers: list[nn.Module] = []
        for before, after in zip((channels, *widths), widths, strict=False):
            block = (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True))
            layers += [*block, nn.AvgPool2d(2)]
        self.blocks = nn.Sequential(*layers)
        side = 2 ** len(widths)
        self.fc = nn.Linear((height // side) * (width // side) * widths[-1], dim)

    def features(self, x: Tensor) -> Tensor:
        """Compute the flattened last block: `(B,C,H,W)` to `(B,F)`."""
        return self.blocks(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Predict targets: `(B,C,H,W)` to `(B,D)`."""
        return self.fc(self.features(x))


class Pairs(nn.Module):
    """Parameterized pairs: learned bases and coefficients, and fixed means.

    Args:
        params: Parameters of the JAX side, as NumPy arrays.
    """

    def __init__(self, params: decoder.Params):
        super().__init__()
        bases = np.moveaxis(np.asarray(params.image_bases), -1, 1)
        self.low_shape = bases.shape[1:]
        self.size = params.image_size
        self.views = params.views
        self.image_bases = nn.Parameter(tensor(bases).flatten(1))
        self.image_coefficients = nn.Parameter(tensor(params.image_coefficients))
        self.feature_bases = nn.Parameter(tensor(params.feature_bases))
        self.feature_coefficients = nn.Parameter(tensor(params.feature_coefficients))
        self.image_mean: Tensor
        self.feature_mean: Tensor
        self.register_buffer("image_mean", tensor(np.moveaxis(np.asarray(params.image_mean), -1, 0)).flatten())
        self.register_buffer("feature_mean", tensor(params.feature_mean))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Decode images `(views*M,C,H,W)` and targets `(views*M,D)`, ordered by view."""
        low = torch.addmm(self.image_mean, self.image_coefficients, self.image_bases)
        images = low.unflatten(1, self.low_shape)
        images = F.interpolate(images, self.size, mode="bilinear", align_corners=False)
        targets = self.feature_coefficients @ self.feature_bases + self.feature_mean
        return torch.cat([_view(images, name) for name in self.views]), targets.flatten(0, 1)


def _view(images: Tensor, name: str) -> Tensor:
    """Apply the view `rotK` or `flipK` of `augment.table`: mirror for `flip`, then rotate by K degrees."""
    base = "flip" if name.startswith("flip") else "rot"
    turns = int(name.removeprefix(base) or 0) // 90
    return torch.rot90(images.flip(3) if base == "flip" else images, turns, (2, 3))


class FreePairs(nn.Module):
    """Pairs whose pixels and targets are learned directly, as in KRR-ST.

    Args:
        images: `(S,C,H,W)`.
        targets: `(S,D)`.
    """

    def __init__(self, images: Tensor, targets: Tensor):
        super().__init__()
        self.images, self.targets = nn.Parameter(images.clone()), nn.Parameter(targets.clone())

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the images and the targets."""
        return self.images, self.targets


class Settings(NamedTuple):
    """Learning rates and scales of both problems, memory format of images, and precision.

    With `precision` `bfloat16` the networks run under autocast; kernel regression stays in float32.
    """

    outer_rate: float
    inner_rate: float
    momentum: float
    weight_decay: float
    ridge_scale: float
    memory_format: torch.memory_format = torch.contiguous_format
    precision: str = "float32"


class Reference:
    """State of a distillation, and the steps that the benchmark times.

    Args:
        pairs: `Pairs` or `FreePairs`.
        models: The inner models.
        settings: Rates, scales, memory format and precision.
        device: Device of the computation.
        compiled: Apply `torch.compile` to the networks.
    """

    def __init__(
        self,
        pairs: nn.Module,
        models: Sequence[ConvNet],
        settings: Settings,
        device: torch.device,
        compiled: bool = False,
    ):
        self.settings = settings
        self.pairs = pairs.to(device)
        layout: dict[str, Any] = {"memory_format": settings.memory_format}  # unknown to the stubs of Module.to
        self.models = [model.to(device).to(**layout) for model in models]
        self.embed = [lowered(compiler(compiled)(model.features), settings.precision, device) for model in self.models]
        self.predict = [lowered(compiler(compiled)(model), settings.precision, device) for model in self.models]
        self.outer_optimizer = torch.optim.AdamW(self.pairs.parameters(), settings.outer_rate, weight_decay=0.0)
        self.inner_optimizers: list[torch.optim.Optimizer] = [
            torch.optim.SGD(
                model.parameters(),
                settings.inner_rate,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
            )
            for model in self.models
        ]

    def outer_loss(self, index: int, x_real: Tensor, y_real: Tensor) -> Tensor:
        """Compute the outer loss of one model with its weights held fixed, in eval mode."""
        model = self.models[index].eval().requires_grad_(False)
        embed = self.embed[index]
        x_syn, y_syn = self.pairs()
        f_syn = _with_one(embed(self._laid_out(x_syn)))
        with torch.no_grad():
            f_real = _with_one(embed(self._laid_out(x_real)))
        model.requires_grad_(True)
        kernel = f_syn @ f_syn.T
        ridge = self.settings.ridge_scale * kernel.detach().trace()
        system = kernel + ridge * torch.eye(len(kernel), device=kernel.device)
        return F.mse_loss((f_real @ f_syn.T) @ torch.linalg.solve(system, y_syn), y_real)

    def outer_step(self, indices: Sequence[int], x_real: Tensor, y_real: Tensor) -> Tensor:
        """Take one step of AdamW on the mean of the models' outer losses; returns that mean."""
        self.outer_optimizer.zero_grad(set_to_none=True)
        values = []
        for index in indices:
            loss = self.outer_loss(index, x_real, y_real) / len(indices)
            loss.backward()
            values.append(loss.detach())
        self.outer_optimizer.step()
        return torch.stack(values).sum()

    def decode(self) -> tuple[Tensor, Tensor]:
        """Decode the pairs without recording gradients."""
        with torch.no_grad():
            images, targets = self.pairs()
            return self._laid_out(images), targets

    def inner_step(self, index: int, x: Tensor, y: Tensor) -> Tensor:
        """Take one full-batch SGD step of one model on the pairs; returns the loss before it."""
        self.models[index].train()
        optimizer = self.inner_optimizers[index]
        optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(self.predict[index](x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def whole_step(self, indices: Sequence[int], x_real: Tensor, y_real: Tensor) -> Tensor:
        """Take an outer step, and one inner step of each drawn model; returns the outer loss."""
        value = self.outer_step(indices, x_real, y_real)
        pairs = self.decode()
        for index in indices:
            self.inner_step(index, *pairs)
        return value

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=self.settings.memory_format)


def network_from(variables: Any, image_shape: tuple[int, int, int]) -> ConvNet:
    """Create the network with the weights and running statistics of a `models.convnet.ConvNet`.

    Args:
        variables: `params` and `batch_stats` of the JAX network, as NumPy arrays.
        image_shape: `(H,W,C)`.

    Returns:
        The network, in train mode.
    """
    params, stats = variables["params"], variables["batch_stats"]
    widths = [params[f"conv{i}"]["bias"].shape[-1] for i in range(len(stats))]
    network = ConvNet(image_shape, widths, params["fc"]["bias"].shape[-1])
    state = network.state_dict()
    for i in range(len(stats)):
        convolution, norm = f"blocks.{4 * i}", f"blocks.{4 * i + 1}"
        state[f"{convolution}.weight"] = tensor(params[f"conv{i}"]["kernel"].transpose(3, 2, 0, 1))
        state[f"{convolution}.bias"] = tensor(params[f"conv{i}"]["bias"])
        state[f"{norm}.weight"] = tensor(params[f"bn{i}"]["scale"])
        state[f"{norm}.bias"] = tensor(params[f"bn{i}"]["bias"])
        state[f"{norm}.running_mean"] = tensor(stats[f"bn{i}"]["mean"])
        state[f"{norm}.running_var"] = tensor(stats[f"bn{i}"]["var"])
    kernel, side = params["fc"]["kernel"], 2 ** len(widths)
    # Flattened features are ordered (H,W,C) in JAX and (C,H,W) in PyTorch.
    kernel = kernel.reshape(image_shape[0] // side, image_shape[1] // side, widths[-1], -1)
    state["fc.weight"] = tensor(kernel.transpose(3, 2, 0, 1)).flatten(1)
    state["fc.bias"] = tensor(params["fc"]["bias"])
    network.load_state_dict(state)
    return network


class Work(NamedTuple):
    """Workload of the timed steps: real images `(n,C,H,W)`, their targets `(n,D)`, batch sizes, and steps per call."""

    images: Tensor
    targets: Tensor
    batch: int
    models_per_step: int
    steps: int
    evaluation_batch: int = 256

    def draw(self, models: int) -> tuple[list[int], Tensor, Tensor]:
        """Draw indices out of `models` models, and real images with their targets."""
        indices = torch.randperm(models)[: self.models_per_step].tolist()
        rows = torch.randint(len(self.images), (self.batch,), device=self.images.device)
        return indices, self.images[rows], self.targets[rows]


def timed(part: str, reference: Reference, work: Work) -> Timed:
    """Prepare the timing of `outer`, `inner`, `whole` or `evaluation`, with `work.steps` steps per call."""
    pairs, models = reference.decode(), len(reference.models)

    def evaluation_step() -> None:
        rows = torch.randperm(len(pairs[0]), device=work.images.device)[: work.evaluation_batch]
        reference.inner_step(0, pairs[0][rows], pairs[1][rows])

    steps: dict[str, Callable[[], Any]] = {
        "outer": lambda: reference.outer_step(*work.draw(models)),
        "inner": lambda: reference.inner_step(0, *pairs),
        "whole": lambda: reference.whole_step(*work.draw(models)),
        "evaluation": evaluation_step,
    }
    return repeated(steps[part], work.steps, work.images.device)


def repeated(step: Callable[[], Any], steps: int, device: torch.device) -> Timed:
    """Prepare the timing of repeated steps, with one as warm-up; on a GPU with the peak memory of the allocator."""

    def call(count: int = steps) -> None:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(count):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    def memory() -> int | None:
        return torch.cuda.max_memory_allocated() if device.type == "cuda" else None

    return Timed(call, steps, memory, warm=lambda: call(1))


def faster(calls: Mapping[str, Timed]) -> tuple[str, dict[str, float]]:
    """Return the name of the fastest call, and the seconds per step of each."""
    measured = timing.take_turns(list(calls.values()), 2)
    seconds = {name: min(one.seconds) for name, one in zip(calls, measured, strict=True)}
    return min(seconds, key=lambda name: seconds[name]), seconds


def product(size: int, dtype: str, device: torch.device) -> Timed:
    """Prepare a product of square matrices; on a GPU float32 uses TF32, as PyTorch's convolutions do there."""
    matrix = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))

    def call() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
        try:
            for _ in range(PRODUCTS):
                matrix @ matrix
            if device.type == "cuda":
                torch.cuda.synchronize()
        finally:
            torch.set_float32_matmul_precision(before)

    return Timed(call, PRODUCTS)


def compiler(compiled: bool) -> Callable[[Any], Any]:
    """Return `torch.compile` for fixed shapes, or the identity."""
    return functools.partial(torch.compile, dynamic=False) if compiled else lambda function: function


def lowered(function: Callable[[Tensor], Tensor], precision: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Run the function under autocast if the precision is `bfloat16`; its result is float32."""
    if precision == "float32":
        return function

    def call(x: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            result = function(x)
        return result.float()

    return call


def tensor(array: Any) -> Tensor:
    """Convert an array to a float32 tensor."""
    return torch.from_numpy(np.array(array, np.float32, order="C"))


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)
