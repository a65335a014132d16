"""Errors, files, console, signals: what needs neither torch nor Hydra."""
