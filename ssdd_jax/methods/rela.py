"""ReLA (Sun, Jiang and Lin, "Efficiency for Free: Ideal Data Are Transportable Representations", NeurIPS 2024): a
subset of the images whose targets come from a prior model without optimisation.

The targets are the teacher's features, here the prior model's, in the coordinates of their principal components, each
with unit variance over the training images (published code: `_pca_reduce`). The images are a random subset.

Differences: the published code keeps at most as many components as the student has features, which students here
exceed, so that all are kept; it divides by the smallest deviations too, which are rounding where features are linearly
dependent, and are left out here. Its student takes the targets by cosine similarity under flips, crops and colours,
then goes on with BYOL on all images; students here train on the pairs alone, like those of every other method.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssdd_jax import distilled
from ssdd_jax.data import preprocess
from ssdd_jax.methods import subset
from ssdd_jax.methods.base import Definition, Method, Problem, Run, Source, StandIns

Array = jax.Array

TITLE = "ReLA"
# Components whose variance is below this share of the largest are rounding of float32 features.
LEAST_SHARE = 1e-6


class Whitening(NamedTuple):
    """Map from regression targets to whitened ones: `y @ projection`.

    Attributes:
        projection: `(D,D)`: a column for each principal component, the largest first, over its standard deviation; 0
            where there is no variance.
    """

    projection: Array


def whitening(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Compute the projection that whitens targets.

    Args:
        blocks: Targets in parts `(k,D)`, at least one; the mean of all should be zero.

    Returns:
        Float32 `(D,D)`, of which each column has its largest entry positive; see `Whitening`.
    """
    total, count = np.zeros(()), 0
    for block in blocks:
        total = total + block.T.astype(np.float64) @ block
        count += len(block)
    variances, components = np.linalg.eigh(total / count)
    variances, components = variances[::-1], components[:, ::-1]
    # An eigenvector's sign is arbitrary: fixed, so that libraries agree.
    largest = np.take_along_axis(components, np.abs(components).argmax(0)[None], axis=0)
    used = variances > LEAST_SHARE * max(variances[0], 0.0)
    scales = np.where(used, 1 / np.sqrt(np.where(used, variances, 1.0)), 0.0)
    return (components * np.sign(largest) * scales[None]).astype(np.float32)


def make(config: ConfigDict, problem: Problem) -> Method:
    """Build ReLA: N images of the data set and the prior model's whitened features.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.

    Returns:
        The method.
    """

    def load(run: Run) -> Whitening:
        pairs = run.pairs()
        mean, scale = (np.asarray(value) for value in pairs.preprocessing[2:])
        blocks = ((pairs.features[part] - mean[None]) / scale for part in preprocess.parts(len(pairs.features)))
        return Whitening(jnp.asarray(whitening(blocks)))

    def example(stand: StandIns) -> Whitening:
        return Whitening(jnp.eye(problem.dim))

    chosen = subset.make(config, problem)

    def export(key: Array, state: Any, source: Source) -> distilled.DistilledSet:
        pairs = chosen.export(key, state, source).arrays
        with jax.default_matmul_precision("highest"):
            targets = pairs["targets"] @ source.prepared.projection
        # Whitened targets have a mean of zero and are not scaled: nothing is left to undo.
        constants = source.preprocessing._replace(
            target_mean=jnp.zeros_like(source.preprocessing.target_mean),
            target_scale=jnp.ones_like(source.preprocessing.target_scale),
        )
        return distilled.from_pairs(pairs["images"], targets, constants)

    return chosen._replace(export=export, title=TITLE, load=load, example=example)


DEFINITION = Definition(make, titles={"rela": TITLE}, editions={"rela": {"method": "rela"}}, coded=True)
