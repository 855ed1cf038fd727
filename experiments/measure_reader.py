"""How fast random rows are read from memory-mapped images and features: `python -m experiments.measure_reader`.

Writes made-up files of the size asked for (`--rows`), reads them cold, where the system can be made to forget them, and
warm, and removes them.
"""

import argparse
import os
import pathlib
import tempfile
import time

import numpy as np

from ssdd_jax.data import mapped, preprocess
from ssdd_jax.training import streaming

BLOCK, SIDE, DIM = 10_000, 64, 512


def write(folder, count):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (BLOCK, SIDE, SIDE, 3), dtype=np.uint8)
    features = generator.normal(size=(BLOCK, DIM)).astype(np.float32)
    paths = []
    for name, block in (("images", images), ("features", features)):
        paths.append(folder / f"{name}.npy")
        mapped.write(paths[-1], (block for _ in range(count // BLOCK)), count)
    return paths


def forget(path):
    """Drop a file from the system's cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(pairs, *, steps, batch, per_call):
    """Seconds for so many steps."""

    def read(step):
        return pairs.take(np.random.default_rng(step).integers(0, len(pairs.images), batch))

    feed = streaming.feed(read, steps=steps)
    began = time.perf_counter()
    for done in range(0, steps, per_call):
        feed(done, per_call)
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=None, help="where to write; default: a temporary folder")
    parser.add_argument("--rows", type=int, default=400_000, help=f"a multiple of {BLOCK}")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=1024)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        paths = write(pathlib.Path(folder), asked.rows)
        images, features = (mapped.read(path) for path in paths)
        constants = preprocess.fit(images[:BLOCK], features[:BLOCK])
        pairs = streaming.Pairs(images, features, constants)
        size = asked.batch * (images[0].nbytes + features[0].nbytes) / 1e6
        for name in ("cold", "warm", "warm"):
            if name == "cold":
                for path in paths:
                    forget(path)
            each = measure(pairs, steps=asked.steps, batch=asked.batch, per_call=10) / asked.steps
            rows = f"{asked.batch / each:,.0f} rows/s, {size / each:,.0f} MB/s"
            print(f"{name}: {rows}, {each * 1e3:.0f} ms for {asked.batch} rows")


if __name__ == "__main__":
    main()
