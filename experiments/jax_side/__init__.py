"""JAX side of the benchmarks."""
