"""The protocols that evaluate trained networks."""
