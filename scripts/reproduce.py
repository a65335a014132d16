"""Trains a run again and compares, value by value: python scripts/reproduce.py RUN [--check]."""

from seglab.cli.commands import reproduce

if __name__ == "__main__":
    reproduce()
