"""Parameterized distilled set: images and targets decoded from low-dimensional bases (Boost-SSDD, section 3.1).

`X = upsample(Cx Bx + mean_x)` with image bases at a low resolution, `Y_v = Cy_v By + mean_y` with one matrix of
coefficients per view. Bases and coefficients are learned; the means are fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax import augment

Array = jax.Array


@flax.struct.dataclass
class Params:
    """Parameters of a set of M images under a list of views.

    Attributes:
        image_bases: `(U,h,w,C)`, at the low resolution.
        image_coefficients: `(M,U)`.
        image_mean: `(h,w,C)`, fixed.
        feature_bases: `(V,D)`.
        feature_coefficients: `(views,M,V)`.
        feature_mean: `(D,)`, fixed.
        image_size: `(H,W)` of the decoded images; static.
        views: Names of the views, as `augment.table` takes them; static.
    """

    image_bases: Array
    image_coefficients: Array
    image_mean: Array
    feature_bases: Array
    feature_coefficients: Array
    feature_mean: Array
    image_size: tuple[int, int] = flax.struct.field(pytree_node=False)
    views: tuple[str, ...] = flax.struct.field(pytree_node=False)

    def pairs(self) -> tuple[Array, Array]:
        """Decode images `(views*M,H,W,C)` and targets `(views*M,D)`: see `decode_pairs`."""
        return decode_pairs(self)


def upsample(images: Array, size: tuple[int, int]) -> Array:
    """Resize images `(M,h,w,C)` to `(M,*size,C)`: bilinear, with half-pixel centres."""
    shape = (images.shape[0], *size, images.shape[-1])
    return jax.image.resize(images, shape, "bilinear", precision=jax.lax.Precision.HIGHEST)


def downsample(images: Array, size: tuple[int, int]) -> Array:
    """Resize images `(M,H,W,C)` to `(M,*size,C)`: bilinear, with antialiasing."""
    return upsample(images, size)  # jax.image.resize antialiases by default whenever it shrinks


def decode_images(params: Params) -> Array:
    """Decode the images `(M,H,W,C)`, in the network's input space."""
    mean = jax.lax.stop_gradient(params.image_mean)
    low = jnp.einsum(
        "mu,uhwc->mhwc", params.image_coefficients, params.image_bases, precision=jax.lax.Precision.HIGHEST
    )
    return upsample(low + mean[None], params.image_size)


def decode_targets(params: Params) -> Array:
    """Decode the targets `(views,M,D)`, in the space that the networks regress."""
    mean = jax.lax.stop_gradient(params.feature_mean)
    targets = jnp.einsum(
        "vmk,kd->vmd", params.feature_coefficients, params.feature_bases, precision=jax.lax.Precision.HIGHEST
    )
    return targets + mean.reshape(1, 1, -1)


def decode_pairs(params: Params) -> tuple[Array, Array]:
    """Decode the training pairs `(view_v(X_i), Y_v,i)`.

    Args:
        params: The parameters.

    Returns:
        Images `(views*M,H,W,C)` and targets `(views*M,D)`, ordered by view.
    """
    images, targets = decode_images(params), decode_targets(params)
    views = augment.apply(augment.table(params.views, *params.image_size), images)
    return views.reshape(-1, *images.shape[1:]), targets.reshape(-1, targets.shape[-1])


def learned(params: Params) -> Params:
    """Return a mask shaped like `params`: True for bases and coefficients, False for the means."""
    mask = jax.tree.map(lambda _: True, params)
    return mask.replace(image_mean=False, feature_mean=False)


def init(
    key: Array,
    images: Array,
    features: Array,
    view_features: Array,
    *,
    image_bases: int,
    feature_bases: int,
    base_size: tuple[int, int],
    samples: Array | None = None,
    views: tuple[str, ...] = ("rot0", "rot90", "rot180", "rot270"),
    start: str = "pca",
) -> Params:
    """Initialize the parameters from a data set.

    Args:
        key: PRNG key.
        images: Images `(n,H,W,C)`, in the network's input space.
        features: The teacher's features of the images `(n,D)`, in the space to be regressed.
        view_features: The teacher's features of the views of the M sampled images `(views,M,D)`.
        image_bases: Number of image bases U.
        feature_bases: Number of feature bases V.
        base_size: Low resolution `(h,w)`.
        samples: Indices of the sampled images, int `(M,)`; the first M by default.
        views: Names of the views.
        start: Initialization: `pca` (principal components and the projections on them), `samples` (bases are images
            and features drawn from the data, coefficients their least-squares fit to the samples) or `random`
            (Gaussian, with the data's mean and variance).

    Returns:
        Parameters whose coefficients have about unit variance; the scale is in the bases.

    Raises:
        ValueError: If the initialization is unknown, or there are more bases than the data can span.
    """
    images, features, view_features = jnp.asarray(images), jnp.asarray(features), jnp.asarray(view_features)
    chex.assert_rank([images, features, view_features], [4, 2, 3])
    chex.assert_equal_shape_prefix([images, features], 1)
    chex.assert_shape(view_features, (len(views), None, features.shape[-1]))
    if start not in STARTS:
        raise ValueError(f"unknown start {start!r}: known are {', '.join(STARTS)}")
    # The samples are the images whose decoded form is trained; all images together determine the bases.
    size, channels, count = images.shape[1:3], images.shape[-1], view_features.shape[1]
    if samples is None:
        samples = jnp.arange(count)
    # Images and features are initialized alike: flat vectors, and the samples to be represented among them.
    low = downsample(images, base_size).reshape(len(images), -1)
    key_images, key_features = jax.random.split(key)
    initializer = STARTS[start]
    equal = jnp.full(len(low), 1 / len(low), low.dtype)
    mean_x, bases_x, coefficients_x = initializer(key_images, low, equal, low[samples], image_bases)
    # All views share the feature bases, and their targets are represented together.
    targets = view_features.reshape(-1, features.shape[-1])
    vectors, weights = weighted_features(features, view_features)
    mean_y, bases_y, coefficients_y = initializer(key_features, vectors, weights, targets, feature_bases)
    return Params(
        image_bases=bases_x.reshape(image_bases, *base_size, channels),
        image_coefficients=coefficients_x,
        image_mean=mean_x.reshape(*base_size, channels),
        feature_bases=bases_y,
        feature_coefficients=coefficients_y.reshape(len(views), count, feature_bases),
        feature_mean=mean_y,
        image_size=(int(size[0]), int(size[1])),
        views=tuple(views),
    )


def unexplained(data: Array, weights: Array, held_out: np.ndarray, most: int) -> Array:
    """Compute the error of principal components on examples that they were not fitted to.

    Args:
        data: Flat vectors `(n,d)`.
        weights: Their weights `(n,)`, with sum 1.
        held_out: Boolean `(n,)`: the examples to measure, out of `data`; the components are fitted to the others.
        most: Largest number of components.

    Returns:
        `(most+1,)`: the share of the held-out examples' variance about the mean of the others that 0, 1, ... `most`
        components leave.
    """
    with jax.default_matmul_precision("highest"):
        fitted, rest = (jnp.where(jnp.asarray(part), weights, 0.0) for part in (~held_out, held_out))
        fitted = fitted / fitted.sum()
        centred = data - (fitted @ data)[None]
        _, vectors = jnp.linalg.eigh((centred * fitted[:, None]).T @ centred)
        projected = rest @ jnp.square(centred @ vectors[:, ::-1])
    explained = jnp.cumsum(projected)[:most] / jnp.sum(projected)
    return jnp.concatenate([jnp.ones(1, data.dtype), 1 - explained])


def weighted_features(features: Array, view_features: Array) -> tuple[Array, Array]:
    """Collect the features that the feature bases are fitted to, in which every view has the same weight.

    Args:
        features: The teacher's features of all images `(n,D)`, for the first view.
        view_features: Its features of the views of M samples `(views,M,D)`.

    Returns:
        Features `(n+(views-1)*M,D)` and their weights, with sum 1.
    """
    views, count, dim = view_features.shape
    others = view_features[1:].reshape(-1, dim)
    weights = np.concatenate([np.full(len(features), 1 / len(features)), np.full(len(others), 1 / count)]) / views
    return jnp.concatenate([features, others]), jnp.asarray(weights, features.dtype)


def _pca(key: Array, data: Array, weights: Array, samples: Array, count: int) -> tuple[Array, Array, Array]:
    """Mean `(d,)`, bases `(count,d)` scaled by their deviations, and whitened coefficients `(M,count)`."""
    del key
    _check_enough(data, count)
    with jax.default_matmul_precision("highest"):
        mean = weights @ data
        centred = data - mean[None]
        # `eigh` sorts the eigenvalues in ascending order: the leading components are at the end.
        values, vectors = jnp.linalg.eigh((centred * weights[:, None]).T @ centred)
        bases = vectors[:, ::-1][:, :count].T
        deviation = jnp.sqrt(jnp.maximum(values[::-1][:count], 0.0))
        # Directions without variance get a small scale instead of zero, so that they can still be learned.
        deviation = jnp.maximum(deviation, 1e-3 * deviation[0])[:, None]
        coefficients = (samples - mean[None]) @ (bases / deviation).T
    return mean, bases * deviation, coefficients


def _samples(key: Array, data: Array, weights: Array, samples: Array, count: int) -> tuple[Array, Array, Array]:
    """Mean `(d,)`, bases `(count,d)` drawn from the data, and least-squares coefficients `(M,count)`."""
    _check_enough(data, count)
    with jax.default_matmul_precision("highest"):
        mean = weights @ data
    bases = data[jax.random.choice(key, len(data), (count,), replace=False, p=weights)] - mean[None]
    coefficients = jnp.linalg.lstsq(bases.T, (samples - mean[None]).T)[0].T
    # The scale goes to the bases: coefficients have unit variance.
    scale = jnp.maximum(coefficients.std(0), 1e-6)
    return mean, bases * scale[:, None], coefficients / scale[None]


def _random(key: Array, data: Array, weights: Array, samples: Array, count: int) -> tuple[Array, Array, Array]:
    """Mean `(d,)`, Gaussian bases `(count,d)` and coefficients `(M,count)`; their product has the data's variance."""
    key_bases, key_coefficients = jax.random.split(key)
    with jax.default_matmul_precision("highest"):
        mean = weights @ data
        deviation = jnp.sqrt(weights @ jnp.square(data - mean[None]))
    bases = jax.random.normal(key_bases, (count, data.shape[1]), data.dtype) * deviation[None] / count**0.5
    return mean, bases, jax.random.normal(key_coefficients, (len(samples), count), data.dtype)


def _check_enough(data: Array, count: int) -> None:
    limit = min(len(data) - 1, data.shape[1])  # the rank of centred data
    if count > limit:
        raise ValueError(f"{count} bases from {len(data)} examples of {data.shape[1]} values: at most {limit}")


STARTS: dict[str, Callable[[Array, Array, Array, Array, int], tuple[Any, Any, Any]]] = {
    "pca": _pca,
    "samples": _samples,
    "random": _random,
}
"""Initializers by name: `(key, data (n,d), weights (n,), samples (M,d), count)` to the mean, bases and coefficients."""
