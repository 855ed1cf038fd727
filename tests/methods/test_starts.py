"""The choice of sizes by what the decoded start teaches."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_run, prepare, small_config

from ssdd_jax import config as configuration
from ssdd_jax.data import preprocess
from ssdd_jax.methods import budget, starts
from ssdd_jax.methods.base import Source

SIDE, DIM = 8, 6


def source(count=300):
    """Images of a few patterns, and targets that are linear in them."""
    generator = np.random.default_rng(0)
    patterns = generator.normal(size=(5, SIDE, SIDE, 1))
    images = 128 + 25 * np.einsum("nk,khwc->nhwc", generator.normal(size=(count, 5)), patterns)
    images = np.clip(images, 0, 255).astype(np.uint8)
    features = (images.reshape(count, -1) / 100 @ generator.normal(size=(SIDE * SIDE, DIM))).astype(np.float32)
    constants = preprocess.fit(images, features)
    targets = constants.targets(jnp.asarray(features))
    rows = jnp.arange(50, dtype=jnp.int32)
    return Source(jnp.asarray(images), targets, rows, targets[rows][None], constants, None, None)


def sizes(**changes):
    return dataclasses.replace(budget.Sizes(8, 60, 5, 6, 4, 1, (SIDE, SIDE, 1), (SIDE, SIDE), DIM), **changes)


@pytest.fixture(scope="module")
def score():
    chosen = configuration.default()
    chosen.student.widths = (8, 8)
    return starts.score_of(chosen, source(), (SIDE, SIDE))


def test_more_images_and_bases_score_more(score):
    """Up to the patterns that there are."""
    whole = score(sizes())
    assert score(sizes(M=8)) < whole - 0.05 and score(sizes(U=1)) < whole - 0.05 and score(sizes(V=1)) < whole - 0.05
    assert 0.2 < whole < 1 and score(sizes(U=20)) == pytest.approx(whole, abs=0.03)
    assert score(sizes()) == whole


def test_sorted_images_are_drawn_at_random():
    """Sorted by what holds most of the variance, the first ones would be alike."""
    data = source()
    order = np.argsort(np.asarray(data.targets) @ np.linalg.svd(np.asarray(data.targets))[2][0])
    sorted_ = data._replace(images=data.images[order], targets=data.targets[order])
    config = configuration.default()
    config.student.widths = (8, 8)
    found = [starts.score_of(config, one, (SIDE, SIDE))(sizes(M=20)) for one in (data, sorted_)]
    assert abs(found[0] - found[1]) < 0.15


def test_more_images_than_there_are_count_as_all(score):
    assert score(sizes(M=240)) == score(sizes(M=5000))


def errors(numbers):
    return 0.9 ** np.arange(numbers + 1)


def chosen(score, **changes):
    start = budget.Sizes(10, 10, 5, 5, 4, 4, (32, 32, 3), (16, 16), 512)
    options = {"free": ("M", "U", "V"), "most": 50_000, "score": score, **changes}
    return budget.fit(start, errors(768), errors(512), **options)


def test_the_smallest_number_of_images_about_as_good_as_the_best_is_taken():
    by_images = {10: 0.1, 20: 0.3, 30: 0.395, 40: 0.4, 60: 0.39}
    found = chosen(lambda one: by_images.get(one.M, 0.0))
    assert found.M == 30 and found.fits


def test_of_two_weights_the_better_one_is_taken():
    """The score is that of the share for images."""
    few, many = chosen(lambda one: -one.U / 1000), chosen(lambda one: one.U / 1000)
    alike = [
        budget.fit(
            dataclasses.replace(one, U=1, V=1), errors(768), errors(512), free=("U", "V"), most=9, image_weight=w
        )
        for one, w in ((few, 1.0), (many, 8.0))
    ]
    assert alike[1] == many and many.U > alike[0].U


def test_more_images_are_not_tried_once_the_score_falls():
    asked = []
    chosen(lambda one: asked.append(one.M) or -abs(one.M - 40) / 1000)
    assert max(asked) == 80 and len(asked) == 2 * len([one for one in budget.MULTIPLES if one <= 8])


@pytest.mark.medium
def test_a_run_takes_the_sizes_that_the_loss_chooses(tmp_path):
    configs = {}
    for criterion in ("error", "loss"):
        one = small_config("boost")
        one.update_from_flattened_dict({"storage.M": 0, "storage.U": 0, "storage.V": 0, "storage.criterion": criterion})
        folder = tmp_path / criterion
        folder.mkdir()
        run = prepare(make_run(folder, one))
        configs[criterion] = run.config.storage
        assert all(run.config.storage[name] for name in ("M", "U", "V"))
    keys = ("M", "U", "V")
    assert [configs["error"][key] for key in keys] != [configs["loss"][key] for key in keys]
