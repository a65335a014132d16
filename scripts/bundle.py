"""Packs runs for reviewers: python scripts/bundle.py DIR... [--out FILE.zip] [--versus A B]."""

from seglab.cli.analysis_commands import bundle

if __name__ == "__main__":
    bundle()
