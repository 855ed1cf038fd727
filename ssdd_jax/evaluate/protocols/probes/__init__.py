"""Evaluate frozen features: linear probes on all or few labels, k-NN, and regression of the teacher's features.

`linear`, `few_shot` and `feature_r2` do not depend on the scale of the features; `linear_krr_st` and MKDT's `lbfgs` and
`few_labels` do, as published. No hyperparameter is chosen on the test split.
"""

from ssdd_jax.evaluate.protocols.probes.common import logits
from ssdd_jax.evaluate.protocols.probes.krr_st import SgdSettings, fit_linear_krr_st, linear_krr_st
from ssdd_jax.evaluate.protocols.probes.mkdt import (
    FRACTIONS,
    LbfgsSettings,
    draw_fraction,
    few_labels,
    fit_lbfgs,
    lbfgs,
)
from ssdd_jax.evaluate.protocols.probes.neighbours import knn
from ssdd_jax.evaluate.protocols.probes.regression import R2, feature_r2
from ssdd_jax.evaluate.protocols.probes.shots import DRAWS, RIDGES, SHOTS, draw_shots, few_shot, too_few
from ssdd_jax.evaluate.protocols.probes.standard import LinearSettings, fit_linear, linear

__all__ = [
    "DRAWS",
    "FRACTIONS",
    "R2",
    "RIDGES",
    "SHOTS",
    "LbfgsSettings",
    "LinearSettings",
    "SgdSettings",
    "draw_fraction",
    "draw_shots",
    "feature_r2",
    "few_labels",
    "few_shot",
    "fit_lbfgs",
    "fit_linear",
    "fit_linear_krr_st",
    "knn",
    "lbfgs",
    "linear",
    "linear_krr_st",
    "logits",
    "too_few",
]
