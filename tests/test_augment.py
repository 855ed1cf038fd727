"""Views as pixel permutations, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdd_jax import augment


def eighth(image):
    return max(1, len(image) // 8)


EXPECTED = {
    "rot0": lambda image: image,
    "rot90": np.rot90,
    "rot180": lambda image: np.rot90(image, 2),
    "rot270": lambda image: np.rot90(image, 3),
    "flip": np.fliplr,
    "flip90": lambda image: np.rot90(np.fliplr(image)),
    "flip180": lambda image: np.rot90(np.fliplr(image), 2),
    "flip270": lambda image: np.rot90(np.fliplr(image), 3),
    "up": lambda image: np.concatenate([image[eighth(image) :], image[: eighth(image)]]),
    "down": lambda image: np.concatenate([image[-eighth(image) :], image[: -eighth(image)]]),
    "left": lambda image: EXPECTED["up"](image.swapaxes(0, 1)).swapaxes(0, 1),
    "right": lambda image: EXPECTED["down"](image.swapaxes(0, 1)).swapaxes(0, 1),
}
NAMES = tuple(EXPECTED)


def test_every_view_has_a_case():
    assert set(EXPECTED) == set(augment.VIEWS)


@settings(deadline=None, max_examples=25)
@given(side=st.integers(1, 17))
def test_table_equals_numpy(side):
    table = augment.table(NAMES, side, side)
    pixels = np.random.default_rng(side).permutation(side * side)
    assert table.shape == (len(NAMES), side * side) and table.dtype == np.int32
    for row, view in zip(table, EXPECTED.values(), strict=True):
        np.testing.assert_array_equal(np.sort(row), np.arange(side * side))
        np.testing.assert_array_equal(pixels[row], view(pixels.reshape(side, side)).ravel())


@settings(deadline=None, max_examples=10)
@given(side=st.integers(2, 12))
def test_four_quarter_turns_are_none(side):
    (turn,) = augment.table(("rot90",), side, side)
    assert not np.array_equal(turn, np.arange(side * side))
    np.testing.assert_array_equal(turn[turn[turn[turn]]], np.arange(side * side))


def test_shifts_of_an_image_that_is_not_square():
    rows, columns = augment.table(("down", "right"), 16, 24).reshape(2, 16, 24)
    grid = np.arange(16 * 24).reshape(16, 24)
    np.testing.assert_array_equal(rows[2:], grid[:-2])
    np.testing.assert_array_equal(columns[:, 3:], grid[:, :-3])


@pytest.mark.parametrize(
    ("names", "height", "width", "message"),
    [
        (("rot0", "rot90"), 4, 6, "rot90.*4x6.*square"),
        (("flip270",), 6, 4, "flip270.*6x4.*square"),
        (("rot45",), 4, 4, "unknown view 'rot45'.*rot90"),
        ((), 4, 4, "no views"),
    ],
)
def test_refusals(names, height, width, message):
    with pytest.raises(ValueError, match=message):
        augment.table(names, height, width)


def test_half_turns_and_flips_of_oblong_images():
    image = np.arange(24).reshape(4, 6)
    table = augment.table(("rot180", "flip"), 4, 6)
    np.testing.assert_array_equal(image.ravel()[table[0]].reshape(4, 6), np.rot90(image, 2))
    np.testing.assert_array_equal(image.ravel()[table[1]].reshape(4, 6), np.fliplr(image))


@pytest.mark.medium
def test_apply_equals_numpy_per_view():
    images = normal(0, 3, 6, 6, 2)
    found = augment.apply(augment.table(NAMES, 6, 6), images)
    assert found.shape == (len(NAMES), 3, 6, 6, 2)
    for views, view in zip(found, EXPECTED.values(), strict=True):
        expected = np.stack([view(np.asarray(image)) for image in images])
        np.testing.assert_array_equal(views, expected)


@pytest.mark.medium
def test_gradient_is_the_inverse_permutation():
    images, weights = normal(0, 2, 5, 5, 3), normal(1, len(NAMES), 2, 5, 5, 3)
    table = augment.table(NAMES, 5, 5)
    found = jax.grad(lambda images: jnp.vdot(augment.apply(table, images), weights))(images)
    flat = np.asarray(weights).reshape(len(NAMES), 2, 25, 3)
    expected = sum(row[:, np.argsort(turn)] for row, turn in zip(flat, table, strict=True))
    np.testing.assert_allclose(found, expected.reshape(images.shape), rtol=1e-5, atol=1e-6)


def test_table_is_a_constant_of_the_graph():
    table = augment.table(("rot90",), 4, 4)
    closed = jax.make_jaxpr(lambda images: augment.apply(table, images))(jnp.zeros((1, 4, 4, 1)))
    assert len(closed.jaxpr.invars) == 1
    literals = [getattr(value, "val", None) for equation in closed.eqns for value in equation.invars]
    assert any(np.array_equal(constant, table[0]) for constant in [*closed.consts, *literals])


def test_wrong_table_is_refused():
    with pytest.raises(AssertionError):
        augment.apply(augment.table(("rot0",), 4, 4), jnp.zeros((1, 5, 5, 1)))
