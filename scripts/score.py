"""Scores masks that any program wrote: python scripts/score.py MASKS --data ROOT --name NAME."""

from seglab.cli.commands import score

if __name__ == "__main__":
    score()
