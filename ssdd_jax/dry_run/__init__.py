"""Plan of a run for `--dry_run`: its stages, and the predicted time and memory on this machine."""

from ssdd_jax.dry_run.predictions import Plan, Prediction, make
from ssdd_jax.dry_run.preflight import Shortage, shortages
from ssdd_jax.dry_run.table import short, text
from ssdd_jax.dry_run.timing import Cost, nothing_kept

__all__ = ["Cost", "Plan", "Prediction", "Shortage", "make", "nothing_kept", "short", "shortages", "text"]
