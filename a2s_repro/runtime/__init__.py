"""Where a net runs: devices and their memory, precision, processes, compilation."""
