"""Small builders that several tests share."""

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax import config, decoder, inner, methods, preprocess

WIDTHS = (4, 8)
SIZE, CHANNELS, DIM = 8, 3, 6


def jit(function, **options):
    """`jax.jit` without the costly part of compiling, which is most of the tests' time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def relative(found, expected):
    """Distance over the expected norm, in float64."""
    found, expected = (np.asarray(value, np.float64) for value in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def normal(seed, *shape):
    """Gaussian float32."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def pairs(seed=0, count=8):
    """Images `(count,8,8,3)` and targets `(count,6)`."""
    return normal(seed, count, SIZE, SIZE, CHANNELS), normal(seed + 1, count, DIM)


def network(seed):
    """A fresh inner model of the pairs' shapes."""
    return _init(jax.random.key(seed))


_init = jit(lambda key: inner.init(key, (SIZE, SIZE, CHANNELS), DIM, widths=WIDTHS))


def params(*, M=5, U=4, V=3, views=("rot0", "rot90"), base=4, size=SIZE, channels=CHANNELS, dim=DIM, seed=0):
    """Decoder parameters with random numbers in every place."""
    return decoder.Params(
        image_bases=normal(seed, U, base, base, channels),
        image_coefficients=normal(seed + 1, M, U),
        image_mean=normal(seed + 2, base, base, channels),
        feature_bases=normal(seed + 3, V, dim),
        feature_coefficients=normal(seed + 4, len(views), M, V),
        feature_mean=normal(seed + 5, dim),
        image_size=(size, size),
        views=views,
    )


def bytes_and_features(count=40, seed=0, size=SIZE, channels=CHANNELS, dim=DIM):
    """uint8 images and float32 features that depend on them."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    mixing = generator.normal(size=(size * size * channels, dim)) / 50
    features = np.tanh((images.reshape(count, -1) / 255.0 - 0.5) @ mixing) + 0.5
    return images, features.astype(np.float32)


def small_config(method="boost"):
    """A config that runs in a moment on 8x8 images."""
    chosen = config.default()
    chosen.method = method
    chosen.storage.N = 6
    chosen.storage.base_size = 4
    chosen.storage.hidden = 2
    chosen.views = ("rot0", "rot90")
    chosen.student.widths = WIDTHS
    chosen.pool.size = 2
    chosen.pool.steps = 4
    chosen.distill.steps = 3
    chosen.distill.batch_size = 8
    chosen.distill.weight_decay = 0.1
    chosen.approximate.steps = 20
    return chosen


def problem(count=40):
    """The problem of `bytes_and_features`."""
    return methods.Problem((SIZE, SIZE, CHANNELS), DIM, count)


def source(method, count=40):
    """The data of `bytes_and_features` as a method wants them; features of a view are those of the image plus noise."""
    images, features = bytes_and_features(count)
    constants = preprocess.fit(images, features)
    targets = constants.targets(jnp.asarray(features))
    samples = np.random.default_rng(1).permutation(count)[: method.samples]
    noise = 0.1 * normal(2, len(method.views), len(samples), DIM)
    return methods.Source(
        images=jnp.asarray(images),
        targets=targets,
        samples=jnp.asarray(samples, jnp.int32),
        view_targets=targets[samples][None] + noise.at[0].set(0.0),
        preprocessing=constants,
    )
