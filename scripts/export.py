"""Writes a trained network as ONNX, checked on images: python scripts/export.py RUN."""

from seglab.cli.commands import export

if __name__ == "__main__":
    export()
