"""Benchmark random reads from memory-mapped images and features: `python -m experiments.measure_reader`.

Writes random files with `--rows` rows, reads them cold (after dropping them from the page cache, where the system
supports it) and warm, and removes them.
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
    """Write random images and features with `count` rows, and return their paths."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (BLOCK, SIDE, SIDE, 3), dtype=np.uint8)
    features = generator.normal(size=(BLOCK, DIM)).astype(np.float32)
    paths = []
    for name, block in (("images", images), ("features", features)):
        paths.append(folder / f"{name}.npy")
        mapped.write(paths[-1], (block for _ in range(count // BLOCK)), count)
    return paths


def forget(path):
    """Drop a file from the system's page cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(pairs, *, steps, batch, per_call):
    """Measure the seconds that a number of steps takes."""

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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        paths = write(pathlib.Path(folder), options.rows)
        images, features = (mapped.read(path) for path in paths)
        constants = preprocess.fit(images[:BLOCK], features[:BLOCK])
        pairs = streaming.Pairs(images, features, constants)
        size = options.batch * (images[0].nbytes + features[0].nbytes) / 1e6
        for name in ("cold", "warm", "warm"):
            if name == "cold":
                for path in paths:
                    forget(path)
            seconds = measure(pairs, steps=options.steps, batch=options.batch, per_call=10) / options.steps
            rows = f"{options.batch / seconds:,.0f} rows/s, {size / seconds:,.0f} MB/s"
            print(f"{name}: {rows}, {seconds * 1e3:.0f} ms for {options.batch} rows")


if __name__ == "__main__":
    main()
