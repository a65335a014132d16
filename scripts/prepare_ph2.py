"""Gets PH2 ready, or checks any data set: python scripts/prepare_ph2.py --help."""

from seglab.cli.data_commands import prepare

if __name__ == "__main__":
    prepare()
