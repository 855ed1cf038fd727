"""Evaluate a set with the published PyTorch code of KRR-ST, unchanged, for comparison with this package's evaluation.

    git clone https://github.com/db-Lee/selfsup_dd
    python -m ssdd_jax.export --set=cifar10-n20 --form=krr_st --out=exported
    python -m experiments.agreement --repository=selfsup_dd --set=exported --models=convnet_32_64_128_bn --data_dir=DIR

prints the accuracy of every seed. Compare with `python -m ssdd_jax.evaluate --edition=cpu
--protocol=linear_krr_st --epochs=150 --weight_decays=1e-3 --references=none --seeds=5` on the same set and models.
Needs PyTorch; everything else is as in the edition cpu.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

from ssdd_jax.cli import console
from ssdd_jax.data import targets
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate import options, summary

# Passes over the set and weight decay of both sides; the published settings have 1,000 passes.
EPOCHS, WEIGHT_DECAY = 150, 1e-3


def modules(repository: pathlib.Path) -> tuple[Any, Any]:
    """Import `pretrain_krr_st` and `linear_eval` of the repository, with stubs for libraries that they never use."""
    if not (repository / "algorithms" / "linear_eval.py").is_file():
        raise UserError(f"{repository} is not a clone of db-Lee/selfsup_dd: name one with --repository=DIR")
    for name in ("kornia", "kornia.augmentation", "torchvision", "torchvision.models"):
        try:
            __import__(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
    for name in ("resnet18", "resnet34", "resnet50"):
        sys.modules["torchvision.models"].__dict__.setdefault(name, None)
    sys.path.insert(0, str(repository))
    from algorithms import linear_eval, pretrain_krr_st

    return pretrain_krr_st, linear_eval


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Evaluate every architecture with every seed; returns the accuracies as `summary` has them."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    pretrain, probe = modules(pathlib.Path(asked.repository))
    images = torch.load(pathlib.Path(asked.set) / "x_syn.pt", weights_only=True)
    features = torch.load(pathlib.Path(asked.set) / "y_syn.pt", weights_only=True)
    channels, height, width = images.shape[1:]
    data = targets.load(asked.target, data_dir=asked.data_dir, image_shape=(height, width, channels))

    def tensors(pixels: Any, labels: Any) -> Any:
        x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float() / 255
        return TensorDataset(x, torch.from_numpy(labels).long())

    train, test = (
        tensors(data.train_images, data.train_labels),
        tensors(data.test_images, data.test_labels),
    )
    mean = train.tensors[0].mean((0, 2, 3)).reshape(1, -1, 1, 1)
    std = train.tensors[0].std((0, 2, 3)).reshape(1, -1, 1, 1)
    # The settings of both sides must be equal; theirs are named differently.
    preset = options.make(options.edition("cpu"), {})
    settings = argparse.Namespace(
        img_shape=(channels, height, width), num_pretrain_classes=features.shape[1], num_classes=data.classes,
        pre_opt="sgd", pre_lr=preset.learning_rate, pre_wd=WEIGHT_DECAY, pre_epoch=EPOCHS,
        pre_batch_size=preset.batch_size, test_opt="sgd", test_lr=preset.linear_learning_rate, test_wd=0.0,
        test_iteration=preset.linear_steps, test_batch_size=preset.linear_batch_size,
    )  # fmt: skip
    accuracies: dict[str, Any] = {}
    for model in asked.models.split(","):
        values = []
        for seed in range(asked.seeds):
            torch.manual_seed(seed)
            network = pretrain.run(settings, "cpu", model, images, features)
            loaders = [DataLoader(part, settings.test_batch_size, shuffle=part is train) for part in (train, test)]
            values.append(probe.run(settings, "cpu", model, network, *loaders, None, lambda x: (x - mean) / std)[1])
            print(f"agreement: {model}, seed {seed}: {values[-1]:.2f}", flush=True)
        accuracies[model] = summary(values)
    return accuracies


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.agreement", description=__doc__.splitlines()[0])
    parser.add_argument("--repository", required=True, help="a clone of db-Lee/selfsup_dd")
    parser.add_argument("--set", required=True, help="a folder with x_syn.pt and y_syn.pt")
    parser.add_argument("--models", default="convnet_32_64_128_bn", help="as both sides name them")
    parser.add_argument("--target", default="cifar10")
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--seeds", type=int, default=5)
    command = parser.parse_args(arguments)

    def work() -> None:
        for model, row in measure(command).items():
            print(f"{model}: {row['mean']:.1f} ± {row['std']:.1f} over {row['seeds']} seeds")

    return console.answer(work, memory="--seeds", name="agreement")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
