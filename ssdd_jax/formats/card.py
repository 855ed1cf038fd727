"""The card of a data set repository: a page for people, with a header that the Hugging Face hub reads."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ssdd_jax.errors import UserError
from ssdd_jax.formats.content import IMPORTED

NAME = "README.md"
# The hub's identifier for a licence that nobody has stated.
UNKNOWN = "unknown"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_CARD = """\
---
license: {licence}
pretty_name: {quoted}
task_categories:
- image-feature-extraction
size_categories:
- {size}
tags:
- dataset-distillation
- self-supervised-learning
- ssdd_jax
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---
# {title}

{count} pairs of an image and a target. A network trained from scratch on them by plain regression imitates a
self-supervised teacher, without the images that the set was distilled from.

| | |
|---|---|
{facts}

| column | contents |
|---|---|
| `image` | the image, 8 bits, to look at |
| `pixel_values` | the network's input, float32, height x width x channels = {shape} |
| `target` | what the network regresses, {dim} float32 numbers |

{undo} These constants are in `constants.json`.
{results}
## Load it

In JAX, with `ssdd_jax`:

```python
import ssdd_jax

distilled = ssdd_jax.load("{address}")
inputs, targets = distilled.pairs()  # float32 (P,H,W,C) and (P,D)
student = ssdd_jax.train(distilled, "resnet18")
```

In PyTorch, without JAX:

```python
{torch}
dataset = TensorDataset(pairs["images"], pairs["targets"])  # float32 (P,C,H,W) and (P,D)
```

With `datasets`:

```python
from datasets import load_dataset

pairs = load_dataset("{place}", split="train").with_format("numpy")
inputs, targets = pairs["pixel_values"][:], pairs["target"][:]
```
"""
_TORCH_FOLDER = """\
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

pairs = load_file("{place}/pairs.safetensors")"""
_TORCH_HUB = """\
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

pairs = load_file(hf_hub_download("{place}", "pairs.safetensors", repo_type="dataset"))"""


class Evaluation(NamedTuple):
    """Facts about the run that distilled a set, for its card.

    Attributes:
        method: Display name of the method; empty for its name in the config.
        results: Markdown about the protocol and the numbers; empty if there are none.
    """

    method: str = ""
    results: str = ""


def check_licence(licence: str) -> None:
    """Check that a licence may be an identifier of the hub.

    Raises:
        UserError: If it cannot be one.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise UserError(
            f"--license={licence} is no identifier of a licence, such as cc-by-4.0, mit or other: "
            "https://huggingface.co/docs/hub/repositories-licenses lists them"
        )


def write(
    folder: pathlib.Path,
    facts: Mapping[str, Any],
    undo: str,
    *,
    repository: str = "",
    licence: str = UNKNOWN,
    evaluation: Evaluation = Evaluation(),
) -> None:
    """Write the card of a set.

    Args:
        folder: Folder of the exported set.
        facts: Content of its `constants.json`.
        undo: A sentence that explains how to recover pixels and features from the columns.
        repository: `OWNER/NAME` of the repository that the folder is uploaded to; empty for a folder on a disk.
        licence: The hub's identifier of the licence, such as `cc-by-4.0`.
        evaluation: Name of the method, and results.
    """
    place = repository or "path/to/this/folder"
    # A set from elsewhere need not say how it was made, nor from what.
    method = evaluation.method or str(facts.get("title") or facts.get("method", "").replace(IMPORTED, ""))
    dataset = str(facts.get("dataset", ""))
    budget = f" in the storage of {facts['N']} images" if facts.get("N") else ""
    title = f"{dataset or 'Images'}, distilled{budget}" + (f" by {method}" if method else "")
    rows = {
        "Task": "pre-training of image networks: distillation of a self-supervised teacher's features",
        "Distilled from": dataset or "unknown images",
        "Method": method or "unknown",
        "Teacher": facts.get("teacher"),
        "Size": _size(facts),
        "Made with": f"ssdd_jax {facts['version']}" if facts.get("version") else None,
        "Licence": licence if licence != UNKNOWN else f"not stated; that of {dataset or 'the images'} may apply",
    }
    fields = {
        "licence": licence,
        "quoted": json.dumps(title),
        "title": title,
        "size": next((name for most, name in _SIZES if facts["pairs"] < most), "n>1M"),
        "count": f"{facts['pairs']:,}",
        "facts": "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value),
        "shape": " x ".join(map(str, facts["image_shape"])),
        "dim": facts["target_length"],
        "undo": undo,
        "results": f"\n## Results\n\n{evaluation.results.strip()}\n" if evaluation.results else "",
        "address": f"hf://{repository}" if repository else place,
        "torch": (_TORCH_HUB if repository else _TORCH_FOLDER).format(place=place),
        "place": place,
    }
    (folder / NAME).write_bytes(_CARD.format(**fields).encode(errors="backslashreplace"))


def _size(facts: Mapping[str, Any]) -> str:
    height, width, channels = facts["image_shape"]
    words = f"{facts['pairs']:,} pairs of {height}x{width}x{channels} images and {facts['target_length']} numbers"
    if facts.get("N"):
        words += f"; stored in the budget of N = {facts['N']} images with their features"
    return words


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
