"""Protocols that evaluate trained networks: `table` registers them, the other modules implement them."""

from ssdd_jax.evaluate.protocols.table import PROTOCOLS, Settings

__all__ = ["PROTOCOLS", "Settings"]
