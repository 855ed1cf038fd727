"""Images and features at the ends of what numbers can be: they work, or are refused before any work, with the place."""

import numpy as np
import pytest

import ssdd_jax
from ssdd_jax.errors import UserError

COUNT, SIDE, DIM = 60, 8, 6
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (COUNT, SIDE, SIDE, 1)).astype(np.uint8)
FEATURES = GENERATOR.normal(size=(COUNT, DIM)).astype(np.float32)
SETTINGS = {"student.widths": (4, 8), "pool.size": 2, "pool.steps": 5, "distill.batch_size": 32}


def distil(images=IMAGES, features=FEATURES, **options):
    options = {"N": 4, "method": "krr_st", "steps": 10, "config": SETTINGS} | options
    return ssdd_jax.distill(images, features, say=lambda line: None, **options)


def with_value(array, index, value):
    changed = array.copy()
    changed[index].flat[2] = value
    return changed


def teacher_without_17(images):
    features = images.reshape(len(images), -1)[:, :DIM].astype(np.float32)
    features[(images == IMAGES[17]).all((1, 2, 3))] = np.nan
    return features


REFUSED = {
    "overflow of float16": ({"features": with_value(FEATURES.astype(np.float16), 17, np.inf)}, "first at index 17"),
    "beyond float32": ({"features": with_value(FEATURES.astype(np.float64), 3, 1e300)}, "in float32, first at index 3"),
    "a number that is none": ({"features": with_value(FEATURES, 17, np.nan)}, "first at index 17"),
    "a teacher that fails at an image": ({"features": teacher_without_17}, "first at index 17"),
    "denormals": ({"features": FEATURES * np.float32(1e-42)}, "differ by 3.3e-42 at most, .* multiply them by 1e[+]30"),
    "constant features": ({"features": np.ones_like(FEATURES)}, "the same for all 60 images"),
    "no features": ({"features": FEATURES[:, :0]}, r"floats of shape \(n, D\), not float32 \(60, 0\)"),
    "constant images": ({"images": np.full_like(IMAGES, 7)}, "all 60 training images are the same"),
    "one image that is no picture": ({"images": with_value(IMAGES / 255, 17, np.nan)}, "in the image of index 17"),
    "large pixels": ({"images": IMAGES / 255 * 1e300}, "not float64 from 0 to 1e[+]300"),
    "more pairs than images": ({"N": COUNT + 1}, "more images than the 60 there are"),
    "a batch above all images": ({"config": SETTINGS | {"distill.batch_size": 61}}, "more than the 60 images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_before_any_work(case, monkeypatch):
    monkeypatch.setattr("ssdd_jax.training.loop.run", None)  # nothing is trained
    options, words = REFUSED[case]
    with pytest.raises(UserError, match=words) as refused:
        distil(**options)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e37, 1e-29])
def test_the_scale_of_features_does_not_matter(scale):
    expected, found = (distil(features=FEATURES * np.float32(factor)).pairs()[1] for factor in (1, scale))
    np.testing.assert_allclose(found, expected, atol=1e-4)


WORKS = {
    "rank one": {"features": np.outer(FEATURES[:, 0], np.arange(1, 7)).astype(np.float32)},
    "one feature": {"features": FEATURES[:, :1]},
    "a constant feature": {"features": np.concatenate([FEATURES, np.ones((COUNT, 1), np.float32)], 1)},
    "duplicates": {"images": np.repeat(IMAGES[:10], 6, 0), "features": np.repeat(FEATURES[:10], 6, 0)},
    "as many pairs as images": {"N": COUNT},
    "one image": {
        "images": IMAGES[:1],
        "features": FEATURES[:1],
        "N": 1,
        "config": SETTINGS | {"distill.batch_size": 1},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("case", WORKS)
def test_works(case):
    images, targets = distil(**WORKS[case]).pairs()
    assert np.isfinite(images).all() and np.isfinite(targets).all() and len(images) == len(targets) >= 1
