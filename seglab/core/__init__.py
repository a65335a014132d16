"""Errors, files, console and signals, without torch and Hydra."""
