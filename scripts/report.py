"""Writes a page of runs, one HTML file: python scripts/report.py RUN|SWEEP... [--out FILE]."""

import argparse
import logging

from seglab.core.console import add_trust, add_versus
from seglab.core.errors import one_line_errors


@one_line_errors
def main() -> None:
    """Parses and calls `seglab.analysis.report.report`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dirs", metavar="DIR", nargs="+", help="folder of runs, at any depth")
    parser.add_argument("--out", metavar="FILE", help="default: report.html in the folder")
    parser.add_argument("--data", metavar="ROOT", help="where the data lies, if that has changed")
    parser.add_argument(
        "--cases",
        metavar="N",
        type=int,
        default=24,
        help="show the N test cases with the lowest Dice (%(default)s)",
    )
    add_versus(parser)
    add_trust(parser)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from seglab.analysis.report import report

    versus = [tuple(pair) for pair in args.versus]
    report(args.dirs, args.out, tuple(args.trust), versus, args.data, args.cases)


if __name__ == "__main__":
    main()
