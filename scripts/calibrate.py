"""Fits Dice and a lower bound from the confidence of masks: python scripts/calibrate.py SWEEP."""

from seglab.cli.commands import calibrate

if __name__ == "__main__":
    calibrate()
