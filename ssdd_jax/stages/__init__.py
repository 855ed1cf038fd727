"""The stages of a run, a module each; `ssdd_jax.pipeline` puts them in order."""
