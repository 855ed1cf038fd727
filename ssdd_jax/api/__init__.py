"""The Python API on arrays in memory: `distill`, `train`, and the defaults chosen from data and hardware."""
