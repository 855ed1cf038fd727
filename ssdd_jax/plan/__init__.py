"""What a run will do, and what it will take on this machine, before it is started: `--dry_run`."""

from ssdd_jax.plan.measure import Cost, nothing_kept
from ssdd_jax.plan.predictions import Plan, Prediction, make
from ssdd_jax.plan.table import short, text

__all__ = ["Cost", "Plan", "Prediction", "make", "nothing_kept", "short", "text"]
