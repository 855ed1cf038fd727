"""The probes compiled, on features on the device or on tables of features that do not fit it.

Each is compiled once per shape and number of classes, and shared by all networks and targets that agree in these.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ssdd_jax.evaluate.protocols.probes import krr_st, mkdt, neighbours, regression, shots, standard, streamed
from ssdd_jax.evaluate.protocols.probes.krr_st import SgdSettings
from ssdd_jax.evaluate.protocols.probes.mkdt import LbfgsSettings
from ssdd_jax.evaluate.protocols.probes.pieces import Table
from ssdd_jax.evaluate.protocols.probes.regression import R2
from ssdd_jax.evaluate.protocols.probes.standard import LinearSettings

Array = jax.Array
Features = Array | Table
Labelled = tuple[Features, Array]

_CONSTANTS = ("classes", "settings")
_linear = jax.jit(standard.linear, static_argnames=_CONSTANTS)
_linear_streamed = jax.jit(streamed.linear, static_argnames=_CONSTANTS)
_linear_krr_st = jax.jit(krr_st.linear_krr_st, static_argnames=_CONSTANTS)
_fit_linear_krr_st = jax.jit(krr_st.fit_linear_krr_st, static_argnames=_CONSTANTS)
_lbfgs = jax.jit(mkdt.lbfgs, static_argnames=_CONSTANTS)
_lbfgs_streamed = jax.jit(streamed.lbfgs, static_argnames=_CONSTANTS)
_few_labels = jax.jit(mkdt.few_labels, static_argnames=_CONSTANTS)
_few_shot = jax.jit(shots.few_shot, static_argnames="classes")
_knn = jax.jit(neighbours.knn, static_argnames=("classes", "neighbours"))
_knn_streamed = jax.jit(streamed.knn, static_argnames=("classes", "neighbours"))
_feature_r2 = jax.jit(regression.feature_r2)
_feature_r2_streamed = jax.jit(streamed.feature_r2)


def linear(train: Labelled, test: Labelled, *, classes: int, settings: LinearSettings = LinearSettings()) -> Array:
    """Run `probes.linear`."""
    call: Any = _linear_streamed if isinstance(train[0], Table) else _linear
    return call(train, test, classes=classes, settings=settings)


def linear_krr_st(key: Array, train: Labelled, test: Labelled, *, classes: int, settings: SgdSettings) -> Array:
    """Run `probes.linear_krr_st`."""
    call: Any = streamed.linear_krr_st if isinstance(train[0], Table) else _linear_krr_st
    return call(key, train, test, classes=classes, settings=settings)


def fit_linear_krr_st(key: Array, train: Labelled, *, classes: int, settings: SgdSettings) -> Array:
    """Run `probes.fit_linear_krr_st`."""
    call: Any = streamed.fit_linear_krr_st if isinstance(train[0], Table) else _fit_linear_krr_st
    return call(key, train, classes=classes, settings=settings)


def lbfgs(train: Labelled, test: Labelled, *, classes: int, settings: LbfgsSettings = LbfgsSettings()) -> Array:
    """Run `probes.lbfgs`."""
    call: Any = _lbfgs_streamed if isinstance(train[0], Table) else _lbfgs
    return call(train, test, classes=classes, settings=settings)


def few_labels(
    train: Labelled, test: Labelled, rows: np.ndarray, *, classes: int, settings: LbfgsSettings = LbfgsSettings()
) -> Array:
    """Run `probes.few_labels`."""
    features, labels = train
    if isinstance(features, Table):
        return lbfgs((features.take(rows), labels[rows]), test, classes=classes, settings=settings)
    return _few_labels(train, test, rows, classes=classes, settings=settings)


def few_shot(train: Labelled, test: Labelled, shots_: np.ndarray, *, classes: int) -> Array:
    """Run `probes.few_shot`."""
    call: Any = streamed.few_shot if isinstance(train[0], Table) else _few_shot
    return call(train, test, shots_, classes=classes)


def knn(train: Labelled, test: Labelled, *, classes: int, neighbours: int = 20) -> Array:
    """Run `probes.knn`."""
    call: Any = _knn_streamed if isinstance(train[0], Table) else _knn
    return call(train, test, classes=classes, neighbours=neighbours)


def feature_r2(train: tuple[Any, Any], test: tuple[Any, Any]) -> R2:
    """Run `probes.feature_r2`; the features and the teacher's are all on the device, or all tables."""
    return (_feature_r2_streamed if isinstance(train[0], Table) else _feature_r2)(train, test)
