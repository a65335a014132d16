"""The run directory: writing, reading and checking it."""
