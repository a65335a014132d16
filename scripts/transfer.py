"""Tests networks on several data sets: python scripts/transfer.py SWEEP --on NAME=ROOT."""

from seglab.cli.analysis_commands import transfer

if __name__ == "__main__":
    transfer()
