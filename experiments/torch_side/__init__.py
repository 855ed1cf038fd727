"""PyTorch side of the benchmarks."""
