"""What a run stands on: devices, files, memory, the run directory and the log of commands."""
