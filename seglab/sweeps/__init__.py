"""Launchers and sweepers that Hydra finds."""
