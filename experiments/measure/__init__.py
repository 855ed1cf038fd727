"""What the measurements have in common: time, memory, counts of operations, the machine and tables."""
