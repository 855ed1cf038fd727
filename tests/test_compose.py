"""Images composed of stored ones: against PIL's crops and shapes drawn on a finer grid."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CHANNELS, DIM, normal, relative
from PIL import Image

from ssdd_jax import compose

SQUARE, WIDE = (12, 12), (10, 14)
FINE = 16


def table(count=6, images=3, seed=0, **options):
    return compose.table(seed, count, images, **options)


def params(count=6, images=3, size=SQUARE, seed=0):
    return compose.Params(
        images=normal(seed, images, 8, 8, CHANNELS),
        feature_bases=normal(seed + 1, 4, DIM),
        feature_coefficients=normal(seed + 2, count, 4),
        feature_mean=normal(seed + 3, DIM),
        image_size=size,
        seed=seed,
    )


def crop_by_pil(image, crop, symmetry, size):
    height, width = image.shape[:2]
    top, left, tall, broad = np.asarray(crop, np.float64) * [height, width, height, width]
    box = (left, top, left + broad, top + tall)
    planes = [
        np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.BICUBIC, box=box))
        for plane in np.moveaxis(np.asarray(image, np.float32), -1, 0)
    ]
    made = np.stack(planes, -1)
    made = made[:, ::-1] if symmetry & 4 else made
    made = made[::-1] if symmetry & 2 else made
    return made.swapaxes(0, 1) if symmetry & 1 else made


def cover(centre, half, turn, is_round, size):
    """Share of each pixel that a shape covers, by points on a finer grid."""
    if np.isinf(half[0]):
        return np.ones(size)
    rows, columns = ((np.arange(side * FINE) + 0.5) / FINE for side in size)
    down, across = rows[:, None] - centre[0] * size[0], columns[None] - centre[1] * size[1]
    along, beside = down * turn[0] + across * turn[1], across * turn[0] - down * turn[1]
    a, b = half * max(size)
    if not a:
        return np.zeros(size)
    inside = (along / a) ** 2 + (beside / b) ** 2 < 1 if is_round else (abs(along) < a) & (abs(beside) < b)
    return inside.reshape(size[0], FINE, size[1], FINE).mean((1, 3))


@pytest.mark.parametrize("size", [SQUARE, WIDE])
def test_a_composed_image_is_its_layers_one_over_the_other(size):
    images = normal(0, 3, 8, 9, CHANNELS)
    rows = table(count=20, square=size[0] == size[1])
    found = compose.compose(rows, images, size)
    assert found.shape == (20, *size, CHANNELS) and found.dtype == jnp.float32
    errors = []
    for index, made in enumerate(np.asarray(found)):
        below = np.zeros((*size, CHANNELS))
        for layer in range(compose.LAYERS):
            row = [leaf[index, layer] for leaf in rows]
            mask = cover(*row[3:], size)[..., None]
            below = (1 - mask) * below + mask * crop_by_pil(images[row[0]], row[1], int(row[2]), size)
        # Away from the edges of shapes, whose width is a matter of definition, both agree.
        errors.append(np.abs(made - below).max(-1).ravel())
    errors = np.concatenate(errors)
    assert np.median(errors) < 1e-4
    assert errors.mean() < 0.12  # of images with variance 1


def test_a_layer_that_covers_all_is_a_crop_alone():
    """To the last digits, for all symmetries."""
    images = normal(0, 3, 8, 9, CHANNELS)
    rows = table(count=64)
    rows = rows._replace(half=rows.half * np.where(np.arange(compose.LAYERS) == 0, 1, 0)[None, :, None])
    rows = rows._replace(half=np.where(np.isnan(rows.half), np.inf, rows.half))
    found = compose.compose(rows, images, SQUARE)
    assert set(rows.symmetry[:, 0].tolist()) == set(range(8))
    for made, image, crop, symmetry in zip(found, rows.image[:, 0], rows.crop[:, 0], rows.symmetry[:, 0], strict=True):
        assert relative(made, crop_by_pil(images[image], crop, int(symmetry), SQUARE)) < 1e-5


def test_the_table_stays_the_same():
    """A stored set holds only the seed, so that another table would change its images."""
    rows = table(count=100, images=7, seed=3)
    content = b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in rows)
    assert hashlib.sha256(content).hexdigest() == "ed8b02a3fe0e18546ade1ef4214749fb9e933389b0a9eef2f68e373fde281fd8"
    again = table(count=100, images=7, seed=3)
    assert all(np.array_equal(one, other) for one, other in zip(rows, again, strict=True))
    assert not np.array_equal(rows.image, table(count=100, images=7, seed=4).image)


def test_the_table_is_within_bounds():
    rows = table(count=500, images=7)
    assert rows.image.min() == 0 and rows.image.max() == 6
    start, length = rows.crop[..., :2], rows.crop[..., 2:]
    assert start.min() >= 0 and length.min() > 0 and (start + length).max() <= 1 + 1e-6
    area = length.prod(-1)
    assert compose.LEAST_AREA - 0.01 < area.min() < 0.3 and area.max() > 0.9
    ratio = np.log(length[..., 1] / length[..., 0])
    assert np.abs(ratio).max() < compose.LARGEST_RATIO + 0.01
    layers = (rows.half[..., 0] > 0).sum(1)
    assert set(layers.tolist()) == set(range(2, compose.LAYERS + 1))
    np.testing.assert_allclose(np.square(rows.turn).sum(-1), 1, atol=3e-3)


def test_oblong_images_are_not_turned_on_their_side():
    assert not (table(count=50, square=False).symmetry & 1).any()
    assert (table(count=50).symmetry & 1).any()


def test_compose_is_linear_in_the_stored_images():
    """So that the outer gradient reaches them all, whatever the other images are."""
    rows, one, other = table(), normal(0, 3, 8, 8, CHANNELS), normal(1, 3, 8, 8, CHANNELS)
    run = jax.jit(lambda images: compose.compose(rows, images, SQUARE))
    np.testing.assert_allclose(run(2 * one - other), 2 * run(one) - run(other), atol=1e-4)
    gradient = jax.grad(lambda images: jnp.sum(compose.compose(rows, images, SQUARE) * run(other)))(one)
    assert np.isfinite(gradient).all()
    # The derivative in a direction is the function's value there, as it is linear.
    np.testing.assert_allclose(jnp.vdot(gradient, other), jnp.square(run(other)).sum(), rtol=1e-4)


def test_pairs_are_composed_images_and_combined_bases():
    made = params()
    images, targets = made.pairs()
    expected = np.asarray(made.feature_coefficients, np.float64) @ np.asarray(made.feature_bases, np.float64)
    np.testing.assert_allclose(targets, expected + np.asarray(made.feature_mean), atol=1e-5)
    rows = compose.table(made.seed, 6, 3)
    np.testing.assert_allclose(images, compose.compose(rows, made.images, SQUARE), atol=1e-5)


def test_it_needs_an_image():
    with pytest.raises(ValueError, match="at least one"):
        table(images=0)
