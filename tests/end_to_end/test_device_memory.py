"""Whole runs with a device that holds a megabyte: what is on it at a time, and that the results are the same."""

import json
import threading

import jax
import numpy as np
import pytest
import tiny_runs

from ssdd_jax import main
from ssdd_jax.evaluate.protocols.probes import pieces
from ssdd_jax.training import streaming

pytestmark = pytest.mark.slow

# Bytes for images and features. The images take 1.5 times, the features of an evaluated network three times as much.
LIMIT = 10**6
COUNT, SIDE = 6000, 16
# What methods and networks hold besides: parameters, pools, the batches of a call.
BESIDES = 600_000
SETTINGS = {
    "student.widths": "(4,8)",
    "evaluate.seeds": 1,
    "evaluate.full_steps": 20,
    "distill.steps": 5,
    "distill.batch_size": 16,
    "views": "('rot0',)",
}


def write(folder):
    """Images of three classes, and features that depend on them."""
    generator = np.random.default_rng(0)
    labels = np.arange(COUNT + 500) % 3
    pattern = generator.integers(60, 196, (3, SIDE, SIDE, 1))
    images = np.clip(pattern[labels] + generator.normal(0, 60, (COUNT + 500, SIDE, SIDE, 1)), 0, 255).astype(np.uint8)
    split = {"train": slice(COUNT), "test": slice(COUNT, None)}
    arrays = {f"{name}_{kind}": array[part] for name, part in split.items()
              for kind, array in (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(folder / "images.npz", **arrays)
    features = images.reshape(len(images), -1)[:, :12].astype(np.float32)
    np.savez(folder / "features.npz", **{name: features[part] for name, part in split.items()})


class Watch:
    """The most bytes that were ever on the device at a time, of arrays and of pieces that programs read."""

    def __init__(self, monkeypatch):
        self.arrays = self.pieces = 0
        self.ended = threading.Event()
        own = pieces.Reader.read

        def read(reader, begin, count):
            found = own(reader, begin, count)
            self.pieces = max(self.pieces, found.nbytes)
            return found

        monkeypatch.setattr(pieces.Reader, "read", read)

    def __enter__(self):
        self.thread = threading.Thread(target=self.sample, daemon=True)
        self.thread.start()
        return self

    def sample(self):
        while not self.ended.wait(0.05):
            self.arrays = max(self.arrays, sum(array.nbytes for array in jax.live_arrays() if not array.is_deleted()))

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


@pytest.mark.parametrize("edition", ["krr_st", "scdd", "mkdt"])
def test_all_stages_keep_to_the_limit(edition, tmp_path, monkeypatch):
    """All stages streamed, among them k-means, experts and SC-DD's probe; then distillation and evaluation whole.

    Both share the teacher and what methods prepare, because a teacher that is trained again magnifies rounding.
    """
    write(tmp_path)
    results = {}
    for name, gigabytes in (("streamed", LIMIT / 1e9), ("resident", 0.0)):
        changes = {key.replace(".", "__"): value for key, value in SETTINGS.items()}
        changes |= {
            "teacher__epochs": 1,
            "teacher__warmup_epochs": 0,
            "teacher__batch_size": 400,
            "teacher__steps_per_call": 2,
        }
        changes |= {"scdd__post_epochs": 1, "experts__count": 1, "experts__batch_size": 400}
        if edition == "krr_st":
            changes["distill__samples"] = "kmeans"
        else:  # the rows without a set are the same for every method
            changes["evaluate__entries"] = "('distilled',)"
        line = tiny_runs.taught(tmp_path, edition, name, devices__gigabytes=gigabytes, **changes)
        with Watch(monkeypatch) as watch:
            before = sum(array.nbytes for array in jax.live_arrays())
            assert main.main([*line, "--stage=evaluate"]) == 0
        results[name] = json.loads((tmp_path / name / "results.json").read_text())
        if name == "streamed":
            assert pieces.HELD * watch.pieces <= LIMIT and watch.pieces > 0
            assert watch.arrays - before <= LIMIT + BESIDES
        else:
            # The control: without the limit the images alone are more.
            assert watch.arrays - before > LIMIT + BESIDES
    # Accuracies to one image in a hundred of the 500: small networks after a few steps amplify rounding.
    for measure in ("linear", "linear_krr_st", "few_shot", "feature_r2"):
        for entry, found in results["streamed"][measure].items():
            tolerance = 0.05 if measure == "feature_r2" else 1.0
            np.testing.assert_allclose(found["mean"], results["resident"][measure][entry]["mean"], atol=tolerance)


def test_pieces_follow_the_limit():
    images, features = np.zeros((100, 4, 4, 1), np.uint8), np.zeros((100, 6), np.float32)
    pairs = streaming.Pairs(images, features, None, gigabytes=1600e-9)  # type: ignore[arg-type]
    assert streaming.rows_per_piece(pairs) == 10
    assert streaming.steps_per_call(pairs, 5, 100) == 2 and streaming.steps_per_call(pairs, 50, 100) == 1
