"""Scores a run's checkpoint again, or the mean of several: python scripts/evaluate.py RUN..."""

from seglab.cli.commands import evaluate

if __name__ == "__main__":
    evaluate()
