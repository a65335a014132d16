"""Runs a run again and compares, value by value: python scripts/reproduce.py RUN [--check]."""

import argparse
import logging
import sys

from seglab.core.console import add_trust
from seglab.core.errors import one_line_errors


@one_line_errors
def main() -> None:
    """Parses and calls `seglab.training.reproduce.reproduce`; its verdict is the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="exit code: 0 identical, 3 within tolerance (with --check: the data is the same, "
        "code, versions or machine are not), 4 different, 1 bad input",
    )
    parser.add_argument("run", metavar="RUN", help="directory of a finished run")
    parser.add_argument("--check", action="store_true", help="compare what it needs, train nothing")
    parser.add_argument("--data", metavar="ROOT", help="where its data lies, if that has changed")
    parser.add_argument("--out", metavar="DIR", help="default: a new folder in RUN/reproductions")
    parser.add_argument(
        "--tolerance",
        metavar="X",
        type=float,
        default=0.01,
        help="greatest difference of a score on other hardware or versions (%(default)s)",
    )
    add_trust(parser)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from seglab.training.reproduce import reproduce

    trust = tuple(args.trust)
    sys.exit(reproduce(args.run, args.data, args.out, args.check, args.tolerance, trust))


if __name__ == "__main__":
    main()
