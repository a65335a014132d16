"""Makes one table of run directories: python scripts/compare.py DIR... [--out DIR]."""

from seglab.cli.analysis_commands import compare

if __name__ == "__main__":
    compare()
