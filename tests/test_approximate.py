"""Approximation networks: what they can represent they recover."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal

from ssdd_jax import approximate

SETTINGS = approximate.Settings(hidden=4, steps=1000, learning_rate=2e-2)
fit = jax.jit(approximate.fit, static_argnames="settings")
VIEWS, M, V = 3, 30, 5


def empty():
    return approximate.init(jax.random.key(0), VIEWS, V, 4)


def shifted():
    """Shifts that are a constant (view 1) and a linear map of rank one plus a constant (view 2): two hidden units."""
    first, direction, amount = normal(0, M, V), normal(1, V), normal(2, V)
    linear = (first @ direction)[:, None] * amount[None] + 0.5
    return jnp.stack([first, first + amount[None], first + linear])


@pytest.mark.medium
def test_representable_shifts_are_recovered():
    coefficients = shifted()
    networks = fit(jax.random.key(0), coefficients, settings=SETTINGS)
    error = float(approximate.error(networks, coefficients))
    np.testing.assert_allclose(
        error, np.mean((np.asarray(approximate.apply(networks, coefficients[0])) - coefficients)[1:] ** 2), rtol=1e-4
    )
    assert error < 1e-2 * float(jnp.square(coefficients[1:] - coefficients[:1]).mean())


def test_first_view_is_untouched():
    coefficients = shifted()
    networks = approximate.Networks(*(normal(k, *leaf.shape) for k, leaf in enumerate(empty())))
    found = approximate.apply(networks, coefficients[0])
    assert found.shape == (VIEWS, M, V)
    np.testing.assert_array_equal(found[0], coefficients[0])
    first, (kernel, bias, out, last) = np.asarray(coefficients[0]), (np.asarray(leaf[1]) for leaf in networks)
    expected = first + np.maximum(first @ kernel + bias, 0) @ out + last
    np.testing.assert_allclose(found[2], expected, rtol=1e-4, atol=1e-4)


def test_networks_start_without_a_shift():
    first = normal(0, M, V)
    np.testing.assert_array_equal(approximate.apply(empty(), first), jnp.stack([first] * VIEWS))


@pytest.mark.parametrize(("views", "bases", "hidden"), [(1, 5, 4), (2, 3, 1), (4, 7, 16)])
def test_numbers_are_the_arrays_sizes(views, bases, hidden):
    networks = approximate.init(jax.random.key(0), views, bases, hidden)
    assert approximate.numbers(views, bases, hidden) == sum(leaf.size for leaf in networks)


def test_one_view_needs_no_network():
    networks = approximate.fit(jax.random.key(0), normal(0, 1, M, V))
    assert sum(leaf.size for leaf in networks) == 0
    assert approximate.apply(networks, normal(0, M, V)).shape == (1, M, V)


def test_same_key_same_bits():
    settings = SETTINGS._replace(steps=20)
    one, same, other = (fit(jax.random.key(k), shifted(), settings=settings).out_kernel for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_unexplained_by_hand():
    """A view that is predicted exactly loses nothing, one that is predicted as zero all of its energy."""
    first = normal(0, M, V)
    networks = empty()  # they predict the coefficients of the first view
    coefficients = jnp.stack([first, first, -first])
    lost = approximate.unexplained(networks, coefficients, normal(1, V, 7))
    np.testing.assert_allclose(lost, [0.0, 4.0], atol=1e-5)
