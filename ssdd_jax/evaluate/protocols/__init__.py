"""The protocols that evaluate trained networks: a table of them, and a module for each kind."""

from ssdd_jax.evaluate.protocols.table import PROTOCOLS, Settings

__all__ = ["PROTOCOLS", "Settings"]
