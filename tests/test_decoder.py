"""The parameterized set: its starts, its upsampling, its pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIM, normal, params, relative

from ssdd_jax import augment, decoder

VIEWS = ("rot0", "rot90")


upsample = jax.jit(decoder.upsample, static_argnums=1)
downsample = jax.jit(decoder.downsample, static_argnums=1)
decode_images, decode_targets = jax.jit(decoder.decode_images), jax.jit(decoder.decode_targets)


def start(name="pca", *, U, V, count=30, rank=None, samples=None, M=7, seed=0):
    """A start on 8x8 images that are upsampled 4x4 ones, and low-rank features if a rank is given."""
    generator = np.random.default_rng(seed)
    low, features = (
        generator.normal(size=(count, n))
        if rank is None
        else generator.normal(size=(count, rank)) @ generator.normal(size=(rank, n))
        for n in (16, DIM)
    )
    images = (low.reshape(count, 4, 4, 1).repeat(2, 1).repeat(2, 2) + 1.5).astype(np.float32)
    features = features.astype(np.float32)
    chosen = np.arange(M) if samples is None else np.array(samples)
    view_features = np.stack([features[chosen], features[::-1][chosen]])
    made = init(jax.random.key(seed), images, features, view_features, U, V, name, samples)
    return made, images, chosen, view_features


@functools.partial(jax.jit, static_argnames=("U", "V", "name", "samples"))
def init(key, images, features, view_features, U, V, name, samples):
    return decoder.init(
        key,
        images,
        features,
        view_features,
        image_bases=U,
        feature_bases=V,
        base_size=(4, 4),
        samples=None if samples is None else np.array(samples),
        views=VIEWS,
        start=name,
    )


@pytest.mark.medium
@pytest.mark.parametrize("samples", [None, (20, 3, 11, 5)])
@pytest.mark.parametrize("name", ["pca", "samples"])
def test_bases_that_span_the_data_reconstruct_it(name, samples):
    """Rank 3 in both spaces and 3 bases; the view's targets are inside the same space."""
    M = 7 if samples is None else len(samples)
    made, images, chosen, view_features = start(name, U=3, V=3, rank=3, samples=samples, M=M)
    expected = upsample(downsample(images[chosen], (4, 4)), (8, 8))
    assert relative(decode_images(made), expected) < 1e-3
    assert relative(decode_targets(made), view_features) < 1e-3


def test_pca_is_that_of_numpy():
    """Spaces spanned, the variance in the bases' norms, and coefficients of unit variance over the data."""
    made, images, _, view_features = start(U=4, V=2, M=30)
    low = np.asarray(downsample(images, (4, 4)), np.float64).reshape(30, -1)
    features = np.asarray(view_features[0], np.float64)
    for data, bases, coefficients in (
        (low, made.image_bases.reshape(4, -1), made.image_coefficients),
        (features, made.feature_bases, made.feature_coefficients[0]),
    ):
        _, values, directions = np.linalg.svd(data - data.mean(0), full_matrices=False)
        count = len(bases)
        np.testing.assert_allclose(np.linalg.norm(bases, axis=1), values[:count] / len(data) ** 0.5, rtol=1e-3)
        overlap = np.abs(np.asarray(bases) @ directions[:count].T) / np.linalg.norm(bases, axis=1)[:, None]
        np.testing.assert_allclose(overlap, np.eye(count), atol=1e-2)
        np.testing.assert_allclose(np.asarray(coefficients).std(0), 1.0, rtol=1e-3)


def test_every_view_has_the_same_weight_in_the_feature_bases():
    """However few samples it is known on: the first base is the largest component of the weighted covariance."""
    features, view_features = normal(5, 300, 6), normal(6, 2, 4, 6)
    view_features = view_features.at[1, :, 2].multiply(30.0)  # what only the second view varies in
    vectors, weights = decoder.weighted_features(features, view_features)
    assert vectors.shape == (304, 6)
    np.testing.assert_allclose([weights.sum(), weights[:300].sum(), weights[300:].sum()], [1, 0.5, 0.5], rtol=1e-5)
    made = decoder.init(
        jax.random.key(0), normal(7, 300, 8, 8, 3), features, view_features,
        image_bases=2, feature_bases=2, base_size=(4, 4), views=("rot0", "rot90"),
    )  # fmt: skip
    covariance = np.cov(vectors.T, aweights=weights, bias=True)
    largest = np.linalg.eigh(covariance)[1][:, -1]
    first = np.asarray(made.feature_bases[0])
    np.testing.assert_allclose(abs(first @ largest), np.linalg.norm(first), rtol=1e-4)
    np.testing.assert_allclose(made.feature_mean, np.average(vectors, axis=0, weights=weights), atol=1e-5)


def test_unexplained_is_the_error_on_what_was_held_out():
    """By NumPy in float64, and zero once the components span everything."""
    data, held_out = np.asarray(normal(8, 60, 5) * jnp.arange(1.0, 6)[None]), np.arange(60) % 4 == 0
    found = decoder.unexplained(jnp.asarray(data), jnp.full(60, 1 / 60), held_out, 5)
    fitted, rest = data[~held_out].astype(np.float64), data[held_out].astype(np.float64)
    directions = np.linalg.svd(fitted - fitted.mean(0))[2]
    centred = rest - fitted.mean(0)
    expected = [
        np.square(centred - centred @ directions[:k].T @ directions[:k]).sum() / np.square(centred).sum()
        for k in range(6)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[0] == 1 and abs(found[5]) < 1e-5


def test_samples_start_has_bases_from_the_data():
    """Each basis is a multiple of a centred image of the data, and coefficients have unit variance."""
    made, images, *_ = start("samples", U=4, V=2, M=12)
    low = np.asarray(downsample(images, (4, 4))).reshape(30, -1)
    centred = low - low.mean(0)
    bases = np.asarray(made.image_bases).reshape(4, -1)
    cosines = bases @ centred.T / np.linalg.norm(bases, axis=1)[:, None] / np.linalg.norm(centred, axis=1)[None]
    np.testing.assert_allclose(np.abs(cosines).max(1), 1.0, rtol=1e-4)
    np.testing.assert_allclose(np.asarray(made.image_coefficients).std(0), 1.0, rtol=1e-3)


@pytest.mark.medium
def test_random_start_has_the_datas_moments():
    made, images, *_ = start("random", U=50, V=50, samples=(*range(30),) * 6)
    low = downsample(images, (4, 4))
    pixels = np.asarray(made.image_coefficients) @ np.asarray(made.image_bases).reshape(50, -1)
    np.testing.assert_allclose(made.image_mean, low.mean(0), rtol=1e-5)
    np.testing.assert_allclose(pixels.std(), low.std(), rtol=0.25)
    np.testing.assert_allclose(made.image_coefficients.std(), 1.0, rtol=0.1)
    other, *_ = start("random", U=50, V=50, samples=(*range(30),) * 6, seed=1)
    assert not np.array_equal(made.image_bases, other.image_bases)


@pytest.mark.parametrize(
    ("name", "U", "V", "message"),
    [
        ("pca", 17, 2, "17 bases from 30 examples of 16 values: at most 16"),
        ("samples", 2, 7, "7 bases from 37 examples of 6 values: at most 6"),
        ("zeros", 2, 2, "unknown start 'zeros': known are pca"),
    ],
)
def test_refusals(name, U, V, message):
    with pytest.raises(ValueError, match=message):
        start(name, U=U, V=V)


def test_upsample_by_hand():
    """Half-pixel centres: 0 and 4, two pixels to four, are 0, 1, 3, 4."""
    row = upsample(jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1), (1, 4))
    np.testing.assert_allclose(row.ravel(), [0.0, 1.0, 3.0, 4.0])


@pytest.mark.parametrize(("low", "high"), [((4, 4), (8, 8)), ((4, 6), (12, 9)), ((5, 5), (5, 5))])
def test_upsample_equals_torch(low, high):
    torch = pytest.importorskip("torch")
    images = normal(0, 2, *low, 3)
    channels_first = torch.tensor(np.asarray(images).transpose(0, 3, 1, 2))
    expected = torch.nn.functional.interpolate(channels_first, high, mode="bilinear", align_corners=False)
    found = upsample(images, high)
    np.testing.assert_allclose(found, expected.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


def test_decoding_is_the_formula():
    made = params(M=5, U=4, V=3, views=VIEWS)
    low = np.einsum("mu,uhwc->mhwc", made.image_coefficients, made.image_bases) + np.asarray(made.image_mean)
    expected = upsample(jnp.asarray(low), (8, 8))
    np.testing.assert_allclose(decode_images(made), expected, rtol=1e-5, atol=1e-5)
    targets = np.asarray(made.feature_coefficients) @ np.asarray(made.feature_bases) + np.asarray(made.feature_mean)
    np.testing.assert_allclose(decode_targets(made), targets, rtol=1e-5, atol=1e-5)


def test_pairs_come_view_by_view():
    made = params(M=5, views=("rot0", "flip", "rot270"))
    images, targets = jax.jit(decoder.decode_pairs)(made)
    assert images.shape == (15, 8, 8, 3) and targets.shape == (15, DIM)
    plain = np.asarray(decode_images(made))
    views = [plain, plain[:, :, ::-1], np.rot90(plain, 3, axes=(1, 2))]
    np.testing.assert_allclose(images, np.concatenate(views), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(targets, decode_targets(made).reshape(15, DIM), rtol=1e-5, atol=1e-6)


def test_means_get_no_gradient():
    made = params()

    @jax.jit
    def gradient(made):
        return jax.grad(lambda made: sum(jnp.sum(jnp.square(part)) for part in decoder.decode_pairs(made)))(made)

    found, learned = gradient(made), decoder.learned(made)
    for name in ("image_bases", "image_coefficients", "feature_bases", "feature_coefficients"):
        assert np.all(getattr(found, name) != 0) and getattr(learned, name)
    for name in ("image_mean", "feature_mean"):
        assert not np.any(getattr(found, name)) and not getattr(learned, name)


def test_view_names_are_checked():
    with pytest.raises(ValueError, match="unknown view"):
        decoder.decode_pairs(params(views=("rot0", "rot30")))
    assert set(VIEWS) < set(augment.VIEWS)
