"""The JAX side of the benchmarks."""
