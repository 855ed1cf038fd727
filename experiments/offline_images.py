"""Pack a prepared TFDS data set as the encoded files of its images, for a machine without TFDS and without a network.

    python -m experiments.offline_images pack cifar10.npz --data-dir=DIR [--name=cifar10]
    python -m experiments.offline_images unpack cifar10.npz images.npz

`pack` copies the JPEG or PNG files as they are stored: a third of the decoded size. `unpack` decodes them to the arrays
that `--config.data.name=npz:images.npz` reads.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

SPLITS = ("train", "test")


def pack(path: str, name: str, folder: str) -> None:
    """Write the encoded images of both splits, their lengths and labels."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=folder)
    arrays: dict[str, Any] = {}
    for split in SPLITS:
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        encoded = [(bytes(row["image"]), int(row["label"])) for row in source]
        arrays[f"{split}_files"] = np.frombuffer(b"".join(file for file, _ in encoded), np.uint8)
        arrays[f"{split}_lengths"] = np.array([len(file) for file, _ in encoded], np.int32)
        arrays[f"{split}_labels"] = np.array([label for _, label in encoded], np.int32)
    np.savez(path, **arrays)


def unpack(path: str, target: str) -> None:
    """Decode the images to uint8 arrays."""
    arrays: dict[str, Any] = {}
    with np.load(path) as packed, concurrent.futures.ThreadPoolExecutor() as threads:
        for split in SPLITS:
            content = packed[f"{split}_files"].tobytes()
            ends = np.cumsum(packed[f"{split}_lengths"])
            files = [content[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
            arrays[f"{split}_images"] = np.stack(list(threads.map(_decoded, files)))
            arrays[f"{split}_labels"] = packed[f"{split}_labels"]
    np.savez(target, **arrays)


def _decoded(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def main(line: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.offline_images", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("pack", help="encoded files of a prepared data set")
    command.add_argument("path")
    command.add_argument("--name", default="cifar10", help="of the TFDS data set")
    command.add_argument("--data-dir", required=True)
    command = commands.add_parser("unpack", help="decoded arrays")
    command.add_argument("path")
    command.add_argument("target")
    asked = parser.parse_args(line)
    if asked.command == "pack":
        pack(asked.path, asked.name, asked.data_dir)
    else:
        unpack(asked.path, asked.target)


if __name__ == "__main__":
    main()
