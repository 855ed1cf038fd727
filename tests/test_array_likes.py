"""Every public pure function takes NumPy arrays, and pytrees of them, with the result that it has on JAX arrays."""

import functools
from operator import methodcaller

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CHANNELS, CLASSES, DIM, SIZE, WIDTHS, normal, pairs, params

from ssdd_jax import approximate, augment, decoder, distilled, inner, krr, outer, pool, teacher
from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.evaluate.protocols import probes
from ssdd_jax.methods.mkdt import matching
from ssdd_jax.methods.scdd import inversion
from ssdd_jax.models import chunks, convnet, convolution, frozen, layers, norm, precision, starts, winograd
from ssdd_jax.models import network as networks
from ssdd_jax.models.resnet import ResNet
from ssdd_jax.teacher import augmentations
from ssdd_jax.teacher import network as teacher_network
from ssdd_jax.training import transforms

KEY = jax.random.key(0)
X, Y = pairs()
POOL = pool.Settings(size=3, steps=3, widths=WIDTHS)
APPROXIMATE = approximate.Settings(hidden=2, steps=3)
MATCHING = matching.Settings(unroll=3, batch_size=4)
INVERSION = inversion.Settings(steps=5, jitter=1)
LABELS = jnp.arange(24, dtype=jnp.int32) % CLASSES
SPLIT = normal(3, 24, 4), LABELS
SMALL = inner.init(KEY, (SIZE, SIZE, CHANNELS), DIM, widths=(4,))
MATCHED = inner.init(KEY, (SIZE, SIZE, CHANNELS), DIM, widths=(4,), norm="instance").variables["params"]
BACKBONE = teacher_network.initialize(KEY, ResNet(2, (1, 1)), (SIZE, SIZE, CHANNELS))
FROZEN = frozen.Frozen(BACKBONE, jnp.full((1, 1, 1, 3), 2.0), jnp.ones((1, 1, 1, 3)), ResNet(2, (1, 1)), size=6)
INVERTED = inversion.Network(BACKBONE, normal(9, 5, CLASSES))
RATE = jnp.float32(0.1)


@functools.cache
def pooled():
    """A pool of three models."""
    return pool.init(KEY, X, Y, settings=POOL)


def batch():
    """Two models and six real images."""
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), SMALL.variables, SMALL.variables)
    return outer.Batch(models, *pairs(3, 6))


def approximation():
    """Networks that predict a shift."""
    return approximate.Networks(normal(0, 1, 3, 2), normal(1, 1, 2), normal(2, 1, 2, 3), normal(3, 1, 3))


def stored():
    """Constants of a data set."""
    return Preprocessing(normal(0, CHANNELS), normal(1, CHANNELS), normal(2, DIM), RATE)


# By name, a function and its arguments: arrays and pytrees of arrays by position, everything else bound beforehand.
CASES = {
    "augment.apply": lambda: (augment.apply, jnp.asarray(augment.table(("rot90", "flip"), SIZE, SIZE)), X),
    "decoder.Params.pairs": lambda: (methodcaller("pairs"), params()),
    "decoder.upsample": lambda: (lambda x: decoder.upsample(x, (12, 12)), X),
    "decoder.downsample": lambda: (lambda x: decoder.downsample(x, (4, 4)), X),
    "decoder.decode_images": lambda: (decoder.decode_images, params()),
    "decoder.decode_targets": lambda: (decoder.decode_targets, params()),
    "decoder.decode_pairs": lambda: (decoder.decode_pairs, params()),
    **{
        f"decoder.init {start}": functools.partial(lambda start: decoder_start(start), start)
        for start in decoder.STARTS
    },
    "krr.predict": lambda: (krr.predict, normal(0, 5, 7), normal(1, 5, 3), normal(2, 4, 7)),
    "inner.features": lambda: (inner.features, SMALL.variables, X),
    "inner.features bfloat16": lambda: (
        functools.partial(inner.features, precision="bfloat16"),
        SMALL.variables,
        X,
    ),
    "inner.predict": lambda: (inner.predict, SMALL.variables, X),
    "inner.loss": lambda: (inner.loss, SMALL.variables["params"], SMALL.variables["batch_stats"], X, Y),
    "inner.step": lambda: (inner.step, SMALL, X, Y),
    "inner.train": lambda: (functools.partial(inner.train, steps=2), SMALL, X, Y),
    "approximate.apply": lambda: (approximate.apply, approximation(), normal(4, 5, 3)),
    "approximate.error": lambda: (approximate.error, approximation(), normal(4, 2, 5, 3), normal(5, 3, DIM)),
    "approximate.fit": lambda: (functools.partial(approximate.fit, KEY, settings=APPROXIMATE), normal(4, 2, 5, 3)),
    "approximate.fit with bases": lambda: (
        lambda coefficients, bases: approximate.fit(KEY, coefficients, bases=bases, settings=APPROXIMATE),
        normal(4, 2, 5, 3),
        normal(5, 3, DIM),
    ),
    "pool.init": lambda: (functools.partial(pool.init, KEY, settings=POOL), X, Y),
    "pool.drawn": lambda: (pool.drawn, SMALL.variables["params"]["conv0"], jnp.array([2, 0])),
    "pool.step": lambda: (functools.partial(pool.step, settings=POOL), pooled(), jnp.array([2, 0]), X, Y),
    "outer.init": lambda: (outer.init, params()),
    "outer.loss": lambda: (outer.loss, params(), SMALL.variables, X, Y),
    "outer.step": lambda: (outer.step, outer.init(params()), batch()),
    "distilled.from_pairs": lambda: (distilled_pairs, X, Y, stored()),
    "distilled.from_params": lambda: (distilled_params, params(V=3), approximation(), stored()),
    "models.conv": lambda: (convolution.conv, X, normal(4, 3, 3, 3, 4)),
    "models.conv winograd": lambda: (convolution.conv, normal(3, 2, 6, 6, 8), normal(4, 3, 3, 8, 8)),
    "models.conv strided": lambda: (functools.partial(convolution.conv, stride=2), X, normal(4, 3, 3, 3, 4)),
    "models.convolution.depthwise": lambda: (convolution.depthwise, X, normal(4, 3, 3, 1, 3)),
    "models.winograd.conv": lambda: (winograd.conv, X, normal(4, 3, 3, 3, 4)),
    "models.chunks.mapped": lambda: (lambda x: chunks.mapped(jnp.sin, x, 3), X),
    "models.chunks.through": lambda: (lambda x: chunks.through(jnp.sin, x, 3), X),
    "models.chunks.summed": lambda: (lambda x, y: chunks.summed(lambda a, b: a.T @ b, x, y, 3), Y, Y),
    "models.layers.average_pool": lambda: (layers.average_pool, X),
    "models.layers.max_pool": lambda: (layers.max_pool, X),
    "models.norm.moments": lambda: (norm.moments, X),
    "models.norm.standardize": lambda: (norm.standardize, X, *norm.moments(X), normal(4, 3)),
    "models.norm.normalize": lambda: (norm.normalize, X, normal(4, 3), normal(5, 3)),
    "models.precision.network_input": lambda: (lambda x: precision.network_input(x, "float32"), X),
    "models.precision.at_least_float32": lambda: (precision.at_least_float32, X),
    "models.starts.Start.of": lambda: (starts.normal(1.0).of, normal(4, 5) / 10),
    "models.features": lambda: (
        functools.partial(networks.features, convnet.ConvNet((4,), DIM)),
        SMALL.variables,
        X,
    ),
    "models.ConvNet.apply": lambda: (
        lambda variables, x: convnet.ConvNet((4,), DIM).apply(variables, x, train=True, mutable=["batch_stats"]),
        SMALL.variables,
        X,
    ),
    "models.ResNet.apply": lambda: (
        lambda variables, x: ResNet(2, (1, 1)).apply(variables, x, train=False),
        BACKBONE,
        X,
    ),
    "models.frozen.resized": lambda: (lambda x: frozen.resized(x, 6), X),
    "models.frozen.resized not": lambda: (lambda x: frozen.resized(x, 0), X),
    "models.frozen.of.apply": lambda: (lambda variables, x: frozen.of(variables).apply(x), BACKBONE, X),
    "models.frozen.Frozen.apply": lambda: (lambda network, x: network.apply(x), FROZEN, X),
    "probes.linear": lambda: (functools.partial(probes.linear, classes=CLASSES, settings=QUICK), SPLIT, SPLIT),
    "probes.fit_linear": lambda: (functools.partial(probes.fit_linear, classes=CLASSES, settings=QUICK), SPLIT),
    "probes.linear_krr_st": lambda: (
        functools.partial(probes.linear_krr_st, KEY, classes=CLASSES, settings=probes.SgdSettings(6, 8)),
        SPLIT,
        SPLIT,
    ),
    "probes.fit_linear_krr_st": lambda: (
        functools.partial(probes.fit_linear_krr_st, KEY, classes=CLASSES, settings=probes.SgdSettings(6, 8)),
        SPLIT,
    ),
    "probes.lbfgs": lambda: (functools.partial(probes.lbfgs, classes=CLASSES, settings=FEW), SPLIT, SPLIT),
    "probes.fit_lbfgs": lambda: (functools.partial(probes.fit_lbfgs, classes=CLASSES, settings=FEW), SPLIT),
    "probes.few_labels": lambda: (
        functools.partial(probes.few_labels, classes=CLASSES, settings=FEW),
        SPLIT,
        SPLIT,
        jnp.arange(12),
    ),
    "probes.knn": lambda: (functools.partial(probes.knn, classes=CLASSES), SPLIT, SPLIT),
    "probes.logits": lambda: (probes.logits, normal(4, 5, CLASSES), SPLIT[0]),
    "probes.few_shot": lambda: (
        functools.partial(probes.few_shot, classes=CLASSES),
        SPLIT,
        SPLIT,
        jnp.arange(24).reshape(2, 12),
    ),
    "probes.feature_r2": lambda: (probes.feature_r2, (SPLIT[0], normal(5, 24, 2)), (SPLIT[0], normal(6, 24, 2))),
    "transforms.random_crop": lambda: (
        lambda x, low: transforms.random_crop(KEY, x, low, padding=1),
        X,
        normal(4, CHANNELS),
    ),
    "transforms.random_flip": lambda: (functools.partial(transforms.random_flip, KEY), X),
    "transforms.mixup": lambda: (functools.partial(transforms.mixup, KEY), X),
    "teacher.loss": lambda: (teacher.loss, normal(4, 8, 5), normal(5, 8, 5)),
    "teacher.features": lambda: (
        lambda variables, x: teacher.features(variables, x, mean=(0.5,) * 3, std=(0.5,) * 3, batch_size=5),
        {name: {"backbone": tree} for name, tree in BACKBONE.items()},
        (X * 50).astype(jnp.uint8),
    ),
    "teacher.features_of_inputs": lambda: (teacher.features_of_inputs, BACKBONE, X),
    "teacher.network.normalize": lambda: (teacher_network.normalize, X, normal(4, CHANNELS), normal(5, CHANNELS)),
    "teacher.random_views": lambda: (functools.partial(teacher.random_views, KEY), jax.nn.sigmoid(X)),
    "teacher.augmentations.resized_crop": lambda: (
        augmentations.resized_crop,
        jax.nn.sigmoid(X[0]),
        jnp.array([1, 2, 5, 4]),
    ),
    "teacher.lars": lambda: (lars_step, SMALL.variables["params"], SMALL.variables["params"]),
    "matching.loss": lambda: (matching.loss, *matching_task()),
    "matching.init": lambda: (lambda params: matching.init(params, settings=MATCHING), matching.Params(X, Y, RATE)),
    "matching.step": lambda: (
        functools.partial(matching.step, settings=MATCHING),
        matching.init(matching.Params(X, Y, RATE), settings=MATCHING),
        *matching_task()[2:],
    ),
    "inversion.logits": lambda: (inversion.logits, INVERTED, X),
    "inversion.statistics_loss": lambda: (inversion.statistics_loss, INVERTED, X),
    "inversion.loss": lambda: (
        functools.partial(inversion.loss, settings=INVERSION),
        X,
        LABELS[:8],
        INVERTED,
        jnp.array([1, 0]),
    ),
    "inversion.step": lambda: (
        lambda state, labels, network, low, high: inversion.step(
            KEY, state, labels, network, low=low, high=high, settings=INVERSION
        ),
        inversion.init(KEY, (2, 4, SIZE, SIZE, CHANNELS), settings=INVERSION),
        LABELS[:8].reshape(2, 4),
        INVERTED,
        -jnp.ones(CHANNELS),
        jnp.ones(CHANNELS),
    ),
}
FEW = probes.LbfgsSettings(steps=3)
QUICK = probes.LinearSettings(penalties=(0.1, 0.01), steps=3)


def decoder_start(start):
    def function(images, features, view_features, samples):
        options = {"image_bases": 4, "feature_bases": 3, "base_size": (4, 4), "views": ("rot0", "rot90")}
        return decoder.init(KEY, images, features, view_features, samples=samples, start=start, **options)

    return function, X, Y, normal(7, 2, 5, DIM), jnp.array([0, 2, 3, 5, 6])


def distilled_pairs(images, targets, preprocessing):
    made = distilled.from_pairs(images, targets, preprocessing)
    return made.pairs(), made.images()


def distilled_params(params, networks, preprocessing):
    made = distilled.from_params(params, networks, preprocessing)
    return made.pairs(), made.images(), distilled.params_of(made)


def lars_step(gradient, params):
    optimizer = teacher.lars(0.1)
    return optimizer.update(gradient, optimizer.init(params), params)


def matching_task():
    target = jax.tree.map(lambda leaf: leaf + 0.1, MATCHED)
    rows = matching.draw_rows(KEY, len(X), settings=MATCHING)
    return (X, Y), RATE, MATCHED, target, rows


def numpy_of(leaf):
    """The array in NumPy, read-only; PRNG keys stay as they are."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    array = np.array(leaf)
    array.flags.writeable = False
    return array


def raw(leaf):
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


# These hand their results to the host, which nothing can do while it is compiled.
ON_HOST = {"teacher.features"}


def call(name, function, arguments):
    """The function's results, compiled as a whole: the arguments are constants, of the type that they have."""

    def results():
        values = function(*arguments)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(values)), jax.tree.map(type, values)
        return values

    return function(*arguments) if name in ON_HOST else jax.jit(results)()


# Compiling these takes seconds each.
SLOW = (
    *("decoder.init", "pool.init", "pool.step", "outer.step", "probes.lbfgs", "probes.few_labels"),
    *("matching.loss", "matching.step", "inversion.step"),
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.medium) for name in CASES]
)
def test_numpy_arrays_give_what_jax_arrays_give(name):
    function, *arguments = CASES[name]()
    expected = call(name, function, arguments)
    result = call(name, function, jax.tree.map(numpy_of, arguments))
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    for leaf, like in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == like.dtype
        # Up to rounding: what NumPy computes before the program is compiled, XLA computes in another order.
        close = (
            np.testing.assert_allclose if jnp.issubdtype(leaf.dtype, jnp.floating) else np.testing.assert_array_equal
        )
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if close is np.testing.assert_allclose else {}
        close(raw(leaf), raw(like), **tolerance)
