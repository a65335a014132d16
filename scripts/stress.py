"""Scores runs on worse versions of their test cases: python scripts/stress.py RUN_OR_SWEEP...."""

from seglab.cli.analysis_commands import stress

if __name__ == "__main__":
    stress()
