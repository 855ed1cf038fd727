"""Runtime services of a run: devices, files, memory, the run directory and the log of commands."""
