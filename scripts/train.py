"""Trains one run, or with -m a sweep: python scripts/train.py model=unet data=synthetic."""

from seglab.cli.commands import train

if __name__ == "__main__":
    train()
