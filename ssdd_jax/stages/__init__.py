"""Stages of a run, one module each; `ssdd_jax.pipeline` runs them in order."""
