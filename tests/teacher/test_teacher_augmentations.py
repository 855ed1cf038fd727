"""Random views: known crops, identity, range, probabilities, colour definitions."""

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ssdd_jax.teacher import augmentations
from ssdd_jax.teacher.augmentations import Augmentation, random_views, resized_crop

IDENTITY = Augmentation(
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    jitter_probability=0.0,
    grayscale_probability=0.0,
    solarize_probability=(0.0, 0.0),
    flip_probability=0.0,
)


def images(count=64, side=16, channels=3):
    return jnp.asarray(np.random.default_rng(0).uniform(size=(count, side, side, channels)), jnp.float32)


def views(key, x, settings):
    return np.asarray(jax.jit(lambda k, x: random_views(k, x, settings=settings))(jax.random.key(key), x))


@pytest.mark.medium
@pytest.mark.parametrize("channels", [1, 3])
def test_identity_settings_give_the_images_back(channels):
    x = images(channels=channels)
    out = views(0, x, IDENTITY)
    np.testing.assert_allclose(out, np.stack([x, x]), atol=2e-6)


@pytest.mark.medium
@pytest.mark.parametrize("box", [(0, 0, 16, 16), (2, 5, 7, 9), (15, 0, 1, 3), (4, 4, 12, 12)])
@pytest.mark.parametrize("flip", [False, True])
def test_crop_equals_pillow(box, flip):
    x = np.asarray(images(1)[0])
    top, left, height, width = box
    expected = []
    for plane in np.moveaxis(x, -1, 0):
        cut = Image.fromarray(plane[top : top + height, left : left + width])
        plane = np.asarray(cut.resize((16, 16), Image.Resampling.BICUBIC))
        expected.append(plane[:, ::-1] if flip else plane)
    out = resized_crop(jnp.asarray(x), jnp.asarray(box), flip)
    np.testing.assert_allclose(out, np.clip(expected, 0.0, 1.0), atol=2e-6)


@pytest.mark.medium
@pytest.mark.parametrize("channels", [1, 3])
def test_range_and_keys(channels):
    # Zeros and ones: every operation meets its limits.
    x = jnp.round(images(128, channels=channels))
    out = views(0, x, Augmentation())
    assert out.shape == (2, *x.shape)
    assert out.dtype == np.float32
    assert out.min() >= 0.0
    assert out.max() <= 1.0
    np.testing.assert_array_equal(out, views(0, x, Augmentation()))
    assert not np.array_equal(out, views(1, x, Augmentation()))
    assert not np.array_equal(out[0], out[1])


@pytest.mark.slow
def test_probabilities():
    x = images(2000, side=4)
    original = np.asarray(x)

    def share(changed, probability):
        shares = changed.mean(axis=1)
        np.testing.assert_allclose(shares, probability, atol=0.04)

    def same(a, b):
        return np.abs(a - b).max(axis=(2, 3, 4)) < 1e-5

    out = views(0, x, IDENTITY._replace(flip_probability=0.3))
    share(same(out, original[None, :, :, ::-1]), 0.3)
    out = views(1, x, IDENTITY._replace(solarize_probability=(0.0, 0.2)))
    solarized = np.where(original < 0.5, original, 1.0 - original)
    share(same(out, solarized[None]), [0.0, 0.2])
    out = views(2, x, IDENTITY._replace(grayscale_probability=0.2))
    gray = (original @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    share(same(out, np.broadcast_to(gray, original.shape)[None]), 0.2)
    out = views(3, x, IDENTITY._replace(jitter_probability=0.8))
    share(~same(out, original[None]), 0.8)


@pytest.mark.medium
def test_boxes_cover_the_declared_areas_and_ratios():
    settings = Augmentation()
    draws = jax.random.uniform(jax.random.key(0), (4000, 22))
    boxes = np.asarray(jax.vmap(lambda d: augmentations._box(d, 32, 32, settings))(draws))
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 32).all() and (left + width <= 32).all()
    area = height * width / 1024
    assert 0.06 < area.min() < 0.11 and area.max() > 0.9
    # Uniform in [0.08, 1] but for the boxes that do not fit and are drawn again.
    assert area.mean() == pytest.approx(0.5, abs=0.03)
    ratio = width / height
    assert 0.6 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.6
    assert np.log(ratio).mean() == pytest.approx(0.0, abs=0.01)
    assert set(top[height == 30]) == {0, 1, 2}


@pytest.mark.medium
def test_central_box_where_none_fits():
    # Areas above the image never fit; the fallback is the largest box of an allowed ratio, in the middle.
    settings = IDENTITY._replace(crop_scale=(2.0, 2.0), crop_ratio=(0.75, 4 / 3))
    box = augmentations._box(jnp.full((22,), 0.5), 12, 32, settings)
    np.testing.assert_array_equal(box, [0, 8, 12, 16])


def test_blends_are_torchvisions():
    x = np.moveaxis(np.asarray(images(1)[0]), -1, 0).astype(np.float64)
    gray = (0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2])[None]
    for kind, other in enumerate((0.0, gray.mean(), gray)):
        for factor in (0.6, 1.4):
            out = augmentations._blend(jnp.asarray(x, jnp.float32), jnp.int32(kind), jnp.float32(factor))
            np.testing.assert_allclose(out, np.clip(factor * x + (1 - factor) * other, 0, 1), atol=1e-6)


@pytest.mark.medium
def test_jitter_runs_every_operation_once_in_the_drawn_order():
    planes = jnp.moveaxis(images(1)[0], -1, 0)
    settings = Augmentation(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)
    # Factors; order contrast, saturation, brightness; hue; hue's turn after two of the three.
    draws = jnp.asarray([0.1, 0.9, 0.2, 0.8, 0.1, 0.5, 0.75, 0.6], jnp.float32)
    out = augmentations._color_jitter(draws, planes, jnp.bool_(True), settings)
    factors = (0.6 + 0.8 * 0.1, 0.7 + 0.6 * 0.9, 0.8 + 0.4 * 0.2)
    expected = planes
    for kind in (1, 2):
        expected = augmentations._blend(expected, jnp.int32(kind), jnp.float32(factors[kind]))
    with jax.numpy_dtype_promotion("standard"):
        expected = dm_pix.adjust_hue(expected, 0.05, channel_axis=0)
    expected = augmentations._blend(expected, jnp.int32(0), jnp.float32(factors[0]))
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_other_channel_counts_are_refused():
    with pytest.raises(ValueError, match="not 2"):
        random_views(jax.random.key(0), jnp.zeros((1, 8, 8, 2)))
