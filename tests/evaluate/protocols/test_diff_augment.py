"""Differentiable augmentation: by hand, and against PyTorch with the same random numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal

from ssdd_jax.evaluate.protocols import diff_augment

COUNT, HEIGHT, WIDTH, CHANNELS = 5, 8, 12, 3
IMAGES = normal(0, COUNT, HEIGHT, WIDTH, CHANNELS)
DRAWS = jnp.asarray(np.random.default_rng(1).uniform(size=(COUNT, 3)), jnp.float32)


def apply(name, draws, images=IMAGES):
    return np.asarray(jax.jit(diff_augment.FAMILIES[name])(jnp.asarray(draws, jnp.float32), images))


def spread(*values):
    """Draws `(B,3)` whose columns are these numbers, or these arrays."""
    return np.stack([np.broadcast_to(np.asarray(value, np.float32), (COUNT,)) for value in values], 1)


def test_color_is_brightness_then_saturation_then_contrast():
    x, draws = np.asarray(IMAGES, np.float64), np.asarray(DRAWS, np.float64)[..., None, None, None]
    x = x + (draws[:, 0] - 0.5)
    grey = x.mean(3, keepdims=True)
    x = (x - grey) * (2.0 * draws[:, 1]) + grey
    mean = x.mean((1, 2, 3), keepdims=True)
    x = (x - mean) * (draws[:, 2] + 0.5) + mean
    np.testing.assert_allclose(apply("color", DRAWS), x, atol=1e-5)


def test_color_leaves_an_image_where_its_numbers_do_nothing():
    np.testing.assert_allclose(apply("color", spread(0.5, 0.5, 0.5)), IMAGES, atol=1e-6)
    grey = apply("color", spread(0.5, 0.0, 0.5))
    np.testing.assert_allclose(grey, np.repeat(np.asarray(IMAGES).mean(3, keepdims=True), 3, 3), atol=1e-6)


def shifted(image, down, right):
    """Pixel (i, j) is what was at (i + down, j + right), 0 outside."""
    out = np.zeros_like(image)
    for i in range(HEIGHT):
        for j in range(WIDTH):
            if 0 <= i + down < HEIGHT and 0 <= j + right < WIDTH:
                out[i, j] = image[i + down, j + right]
    return out


def test_crop_shifts_by_an_eighth_at_most():
    """One pixel of 8 rows (1.0 and a half upwards), two of 12 columns (1.5)."""
    rows, columns = np.arange(COUNT) % 3, np.arange(COUNT)
    found = apply("crop", spread((rows + 0.5) / 3, (columns + 0.5) / 5, 0))
    expected = [shifted(image, i - 1, j - 2) for image, i, j in zip(np.asarray(IMAGES), rows, columns, strict=True)]
    np.testing.assert_array_equal(found, expected)
    extremes = apply("crop", spread(np.nextafter(np.float32(1), 0), 0, 0))
    np.testing.assert_array_equal(extremes[0], shifted(np.asarray(IMAGES[0]), 1, -2))


@pytest.mark.parametrize("height, width", [(8, 12), (6, 6)])  # boxes of even and of odd sides
def test_cutout_zeroes_a_box_cut_off_at_the_border(height, width):
    images = normal(0, 1, height, width, 1)
    function = jax.jit(diff_augment.cutout)
    size = height // 2, width // 2
    places = [side + 1 - part % 2 for side, part in zip((height, width), size, strict=True)]
    for i in range(places[0]):
        for j in (0, 2, places[1] - 1):
            draws = jnp.array([[(i + 0.5) / places[0], (j + 0.5) / places[1], 0.0]])
            expected = np.array(images)
            for row in range(size[0]):
                for column in range(size[1]):
                    r = np.clip(i + row - size[0] // 2, 0, height - 1)
                    c = np.clip(j + column - size[1] // 2, 0, width - 1)
                    expected[0, r, c] = 0
            np.testing.assert_array_equal(function(draws, images), expected)


def test_flip_exchanges_left_and_right_below_a_half():
    found = apply("flip", spread([0.0, 0.49, 0.5, 0.51, 0.99], 0, 0))
    np.testing.assert_array_equal(found[:2], IMAGES[:2, :, ::-1])
    np.testing.assert_array_equal(found[2:], IMAGES[2:])


def test_scale_and_rotation_by_nothing_change_nothing():
    ratio = diff_augment.SCALE
    one = (1 - 1 / ratio) / (ratio - 1 / ratio)
    np.testing.assert_allclose(apply("scale", spread(one, one, 0)), IMAGES, atol=1e-5)
    np.testing.assert_allclose(apply("rotate", spread(0.5, 0, 0)), IMAGES, atol=1e-5)


def test_scale_acts_on_width_and_height_apart():
    """A factor above 1 samples beyond the border: zeros come in there. Columns of one value show which side."""
    ones = jnp.ones((COUNT, 8, 8, 1))
    ratio = diff_augment.SCALE
    one = (1 - 1 / ratio) / (ratio - 1 / ratio)
    found = apply("scale", spread(0.9999, one, 0), ones)
    assert np.all(found[:, :, 0] < 0.5) and np.all(found[:, :, -1] < 0.5)
    np.testing.assert_allclose(found[:, :, 2:-2], 1.0, atol=1e-5)
    found = apply("scale", spread(one, 0.9999, 0), ones)
    assert np.all(found[:, 0] < 0.5) and np.all(found[:, -1] < 0.5)
    np.testing.assert_allclose(found[:, 2:-2], 1.0, atol=1e-5)


@pytest.mark.parametrize("name", ["scale", "rotate"])
def test_resampling_is_pytorch_s(name):
    torch = pytest.importorskip("torch")
    draws = torch.from_numpy(np.asarray(DRAWS, np.float64))
    nothing = torch.zeros(COUNT, dtype=draws.dtype)
    if name == "scale":
        factor = draws * (1.2 - 1.0 / 1.2) + 1.0 / 1.2
        rows = [factor[:, 0], nothing, nothing, nothing, factor[:, 1], nothing]
    else:
        angle = (draws[:, 0] - 0.5) * 2 * 15.0 / 180 * math.pi
        rows = [torch.cos(angle), torch.sin(-angle), nothing, torch.sin(angle), torch.cos(angle), nothing]
    theta = torch.stack(rows, 1).reshape(-1, 2, 3)
    images = torch.from_numpy(np.asarray(IMAGES, np.float64)).permute(0, 3, 1, 2)
    grid = torch.nn.functional.affine_grid(theta, images.shape, align_corners=True)
    expected = torch.nn.functional.grid_sample(images, grid, align_corners=True).permute(0, 2, 3, 1)
    np.testing.assert_allclose(apply(name, DRAWS), expected.numpy(), atol=1e-5)


def test_gradients_reach_the_images():
    """Resampling is linear, so its gradient carries an image to exactly what its transpose does."""
    weights = normal(3, *IMAGES.shape)
    for name in ("rotate", "crop"):
        value, gradient = jax.jit(
            jax.value_and_grad(lambda x, name=name: jnp.sum(weights * diff_augment.FAMILIES[name](DRAWS, x)))
        )(IMAGES)
        np.testing.assert_allclose(jnp.sum(gradient * IMAGES), value, rtol=1e-4)


@pytest.mark.medium
def test_one_family_for_the_batch_and_each_in_its_turn():
    """Over many keys all six come up; each batch is what one family makes of numbers that differ between images."""
    images = jnp.broadcast_to(normal(5, 1, 8, 8, 3), (4, 8, 8, 3))
    keys = jax.random.split(jax.random.key(0), 120)
    batches = np.asarray(jax.jit(jax.vmap(diff_augment.augment, (0, None)))(keys, images))
    families = jax.jit(
        jax.vmap(lambda key: jax.random.randint(jax.random.split(key)[0], (), 0, len(diff_augment.FAMILIES)))
    )(keys)
    counts = np.bincount(np.asarray(families), minlength=6)
    assert counts.min() >= 8  # 20 expected
    both = (np.asarray(images[0]), np.asarray(images[0])[:, ::-1])
    for name, batch in zip(np.array(list(diff_augment.FAMILIES))[families], batches, strict=True):
        flipped = all(any(np.array_equal(image, one) for one in both) for image in batch)
        assert flipped == (name == "flip")
        if name in ("color", "scale", "rotate"):
            assert not np.array_equal(batch[0], batch[1])
        if name == "cutout":
            assert np.all((batch == 0) | (batch == images))


@pytest.mark.medium
def test_alone_or_under_vmap():
    keys = jax.random.split(jax.random.key(1), 3)
    together = jax.jit(jax.vmap(diff_augment.augment, (0, None)))(keys, IMAGES)
    alone = jax.jit(diff_augment.augment)
    for key, batch in zip(keys, together, strict=True):
        np.testing.assert_allclose(alone(key, IMAGES), batch, atol=1e-5)


def test_names_choose_the_families():
    only_flip = jax.jit(diff_augment.augment, static_argnames="names")(jax.random.key(0), IMAGES, names=("flip",))
    for before, after in zip(np.asarray(IMAGES), np.asarray(only_flip), strict=True):
        assert np.array_equal(after, before) or np.array_equal(after, before[:, ::-1])


@pytest.mark.parametrize("names", [(), ("flip", "blur")])
def test_unknown_names_are_refused(names):
    with pytest.raises(ValueError, match="color, crop, cutout, flip, scale, rotate"):
        diff_augment.augment(jax.random.key(0), IMAGES, names=names)
