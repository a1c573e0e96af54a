"""Runtime: devices and memory, precision, distributed processes, compilation."""
