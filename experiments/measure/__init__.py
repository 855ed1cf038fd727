"""Utilities shared by the measurements: time, memory, operation counts, the machine and tables."""
