"""Writes a page of runs, one HTML file: python scripts/report.py RUN|SWEEP... [--out FILE]."""

from seglab.cli.analysis_commands import report

if __name__ == "__main__":
    report()
