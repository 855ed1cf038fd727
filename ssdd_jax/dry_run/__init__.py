"""What a run will do, and what it will take on this machine, before it is started: `--dry_run`."""

from ssdd_jax.dry_run.predictions import Plan, Prediction, make
from ssdd_jax.dry_run.table import short, text
from ssdd_jax.dry_run.timing import Cost, nothing_kept

__all__ = ["Cost", "Plan", "Prediction", "make", "nothing_kept", "short", "text"]
