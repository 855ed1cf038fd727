"""The arithmetic of `methods.boost`'s step as eager PyTorch would do it: the other side of the benchmark.

Written from the description of the method (Boost-SSDD, sections 3.1 to 3.3; KRR-ST, equation 6) for PyTorch's layout,
images `(B,C,H,W)`. Weights and starting values are taken from the JAX side, so that both compute the same numbers.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        """Flattened last block, `(B,C,H,W)` to `(B,F)`."""
        return self.blocks(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Predicted targets, `(B,C,H,W)` to `(B,D)`."""
        return self.fc(self.features(x))


class Pairs(nn.Module):
    """The parameterized pairs: bases and coefficients that are learned, means that are not.

    Args:
        params: The same on the JAX side, as NumPy arrays.
    """

    def __init__(self, params: decoder.Params):
        super().__init__()
        bases = np.moveaxis(np.asarray(params.image_bases), -1, 1)
        self.low_shape = bases.shape[1:]
        self.size = params.image_size
        self.views = params.views
        self.image_bases = nn.Parameter(_tensor(bases).flatten(1))
        self.image_coefficients = nn.Parameter(_tensor(params.image_coefficients))
        self.feature_bases = nn.Parameter(_tensor(params.feature_bases))
        self.feature_coefficients = nn.Parameter(_tensor(params.feature_coefficients))
        self.image_mean: Tensor
        self.feature_mean: Tensor
        self.register_buffer("image_mean", _tensor(np.moveaxis(np.asarray(params.image_mean), -1, 0)).flatten())
        self.register_buffer("feature_mean", _tensor(params.feature_mean))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Images `(views*M,C,H,W)` and targets `(views*M,D)`, view by view."""
        low = torch.addmm(self.image_mean, self.image_coefficients, self.image_bases)
        images = low.unflatten(1, self.low_shape)
        images = F.interpolate(images, self.size, mode="bilinear", align_corners=False)
        targets = self.feature_coefficients @ self.feature_bases + self.feature_mean
        return torch.cat([_view(images, name) for name in self.views]), targets.flatten(0, 1)


def _view(images: Tensor, name: str) -> Tensor:
    """The view `rotK` or `flipK` of `augment.table`: mirrored if so named, then turned by K degrees."""
    base = "flip" if name.startswith("flip") else "rot"
    turns = int(name.removeprefix(base) or 0) // 90
    return torch.rot90(images.flip(3) if base == "flip" else images, turns, (2, 3))


class Settings(NamedTuple):
    """Rates and scales of both problems, and the layout of images in memory."""

    outer_rate: float
    inner_rate: float
    momentum: float
    weight_decay: float
    ridge_scale: float
    memory_format: torch.memory_format = torch.contiguous_format


class Reference:
    """The state of a distillation, and the steps that the benchmark times.

    Args:
        params: The parameterized pairs of the JAX side.
        models: Variables of its inner models, one pytree each.
        settings: Rates, scales and layout.
        device: Where to compute.
        compiled: Put the networks through `torch.compile`.
    """

    def __init__(
        self,
        params: decoder.Params,
        models: Sequence[Any],
        settings: Settings,
        device: torch.device,
        compiled: bool = False,
    ):
        self.settings = settings
        self.pairs = Pairs(params).to(device)
        channels = params.image_mean.shape[-1]
        shape = (*params.image_size, channels)
        layout: dict[str, Any] = {"memory_format": settings.memory_format}  # unknown to the stubs of Module.to
        self.models = [network_from(variables, shape).to(device).to(**layout) for variables in models]
        wrap = functools.partial(torch.compile, dynamic=False) if compiled else lambda function: function
        self.embed = [wrap(model.features) for model in self.models]
        self.predict = [wrap(model) for model in self.models]
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
        """The outer loss of one model with its weights held fixed, in eval mode."""
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
        """One step of AdamW on the mean of the models' outer losses; returns that mean."""
        self.outer_optimizer.zero_grad(set_to_none=True)
        values = []
        for index in indices:
            loss = self.outer_loss(index, x_real, y_real) / len(indices)
            loss.backward()
            values.append(loss.detach())
        self.outer_optimizer.step()
        return torch.stack(values).sum()

    def decode(self) -> tuple[Tensor, Tensor]:
        """The pairs, without a graph."""
        with torch.no_grad():
            images, targets = self.pairs()
            return self._laid_out(images), targets

    def inner_step(self, index: int, x: Tensor, y: Tensor) -> Tensor:
        """One full-batch step of SGD of one model on the pairs; returns the loss before it."""
        self.models[index].train()
        optimizer = self.inner_optimizers[index]
        optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(self.predict[index](x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def whole_step(self, indices: Sequence[int], x_real: Tensor, y_real: Tensor) -> Tensor:
        """An outer step, and one inner step of each drawn model; returns the outer loss."""
        value = self.outer_step(indices, x_real, y_real)
        pairs = self.decode()
        for index in indices:
            self.inner_step(index, *pairs)
        return value

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=self.settings.memory_format)


def network_from(variables: Any, image_shape: tuple[int, int, int]) -> ConvNet:
    """The network with the weights and running statistics of a `models.convnet.ConvNet`.

    Args:
        variables: Its `params` and `batch_stats`, as NumPy arrays.
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
        state[f"{convolution}.weight"] = _tensor(params[f"conv{i}"]["kernel"].transpose(3, 2, 0, 1))
        state[f"{convolution}.bias"] = _tensor(params[f"conv{i}"]["bias"])
        state[f"{norm}.weight"] = _tensor(params[f"bn{i}"]["scale"])
        state[f"{norm}.bias"] = _tensor(params[f"bn{i}"]["bias"])
        state[f"{norm}.running_mean"] = _tensor(stats[f"bn{i}"]["mean"])
        state[f"{norm}.running_var"] = _tensor(stats[f"bn{i}"]["var"])
    kernel, side = params["fc"]["kernel"], 2 ** len(widths)
    # Flattened features are ordered (H,W,C) there and (C,H,W) here.
    kernel = kernel.reshape(image_shape[0] // side, image_shape[1] // side, widths[-1], -1)
    state["fc.weight"] = _tensor(kernel.transpose(3, 2, 0, 1)).flatten(1)
    state["fc.bias"] = _tensor(params["fc"]["bias"])
    network.load_state_dict(state)
    return network


class Work(NamedTuple):
    """What to time on: real images `(n,C,H,W)`, their targets `(n,D)`, how many at a time, and steps per call."""

    images: Tensor
    targets: Tensor
    batch: int
    models_per_step: int
    steps: int


def parts(reference: Reference, work: Work) -> dict[str, Callable[[], None]]:
    """Per part of a step what does `work.steps` of it and returns when the device is done."""
    pairs = reference.decode()

    def draw() -> tuple[list[int], Tensor, Tensor]:
        indices = torch.randperm(len(reference.models))[: work.models_per_step].tolist()
        rows = torch.randint(len(work.images), (work.batch,), device=work.images.device)
        return indices, work.images[rows], work.targets[rows]

    def repeated(step: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            for _ in range(work.steps):
                step()
            if work.images.is_cuda:
                torch.cuda.synchronize()

        return call

    return {
        "outer": repeated(lambda: reference.outer_step(*draw())),
        "inner": repeated(lambda: reference.inner_step(0, *pairs)),
        "whole": repeated(lambda: reference.whole_step(*draw())),
    }


def with_faster_layout(
    params: decoder.Params, models: Sequence[Any], settings: Settings, work: Work
) -> tuple[Settings, dict[str, float]]:
    """The settings with the layout of images in which a whole step is faster, and seconds of one step in each."""
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    work = work._replace(steps=1)
    calls, seconds = {}, dict.fromkeys(layouts, float("inf"))
    for name, layout in layouts.items():
        reference = Reference(params, models, settings._replace(memory_format=layout), work.images.device)
        calls[name] = parts(reference, work)["whole"]
        calls[name]()
    for _ in range(2):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    best = min(seconds, key=lambda name: seconds[name])
    return settings._replace(memory_format=layouts[best]), seconds


def product(size: int, device: torch.device) -> Callable[[], None]:
    """A float32 matrix product of that size."""
    matrix = torch.randn(size, size, device=device)

    def call() -> None:
        matrix @ matrix
        if matrix.is_cuda:
            torch.cuda.synchronize()

    return call


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32, order="C"))


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)
