"""Writes a lesion mask for each image: python scripts/predict.py RUN IMAGES... --out DIR."""

from seglab.cli.commands import predict

if __name__ == "__main__":
    predict()
