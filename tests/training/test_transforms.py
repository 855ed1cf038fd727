"""Random crop, flip and mixup."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import normal

from ssdd_jax.training import transforms

LOW = jnp.array([-2.0, -3.0, -4.0])


def test_crop_is_a_window_into_the_padded_image():
    images = normal(0, 60, 5, 5, 3)
    padded = np.stack([np.pad(images[..., c], ((0, 0), (2, 2), (2, 2)), constant_values=LOW[c]) for c in range(3)], -1)
    cropped = jax.jit(transforms.random_crop, static_argnames="padding")(jax.random.key(0), images, LOW, padding=2)
    assert cropped.shape == images.shape
    corners = []
    for one, image in zip(padded, np.asarray(cropped), strict=True):
        places = [(i, j) for i in range(5) for j in range(5) if np.array_equal(one[i : i + 5, j : j + 5], image)]
        corners += places[:1]
    assert len(corners) == 60
    assert set(np.array(corners)[:, 0]) == set(range(5)) == set(np.array(corners)[:, 1])
    assert len(set(corners)) > 15
    same = transforms.random_crop(jax.random.key(0), images, LOW, padding=0)
    np.testing.assert_array_equal(same, images)


def test_flip_mirrors_some_images_left_to_right():
    images = normal(0, 200, 3, 4, 1)
    found = np.asarray(transforms.random_flip(jax.random.key(0), images, probability=0.25))
    kept = (found == images).all((1, 2, 3))
    np.testing.assert_array_equal(found[~kept], np.asarray(images)[~kept][:, :, ::-1])
    assert 0.15 < np.mean(~kept) < 0.35


def test_mixup_has_one_share_and_a_permutation():
    """Images that are unit vectors: every row of the result holds the share once and its complement once."""
    images = jnp.eye(12).reshape(12, 2, 2, 3)
    mix = jax.jit(transforms.mixup)
    shares = []
    for seed in range(200):
        found = np.asarray(mix(jax.random.key(seed), images)).reshape(12, 12)
        np.testing.assert_allclose(found.sum(0), 1.0, rtol=1e-5)
        np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-5)
        assert len(np.unique(found.round(5))) <= 4  # 0, the share, its complement, and 1 where an image meets itself
        mixed = np.diag(found)[np.diag(found) < 1 - 1e-6]
        shares.append(mixed.mean())
    # Beta(0.8, 0.8): mean 1/2, variance 1 / (4 (2 * 0.8 + 1)).
    np.testing.assert_allclose(np.mean(shares), 0.5, atol=0.08)
    np.testing.assert_allclose(np.var(shares), 1 / 10.4, atol=0.02)
