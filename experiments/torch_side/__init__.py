"""The PyTorch side of the benchmarks."""
