"""Scores a run's checkpoint again: python scripts/evaluate.py RUN [--data ROOT] [--out DIR]."""

import argparse
import logging

from seglab.errors import one_line_errors


@one_line_errors
def main() -> None:
    """Parses and calls `seglab.evaluate.evaluate`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--data", metavar="ROOT", help="another data set; all cases are scored")
    parser.add_argument("--out", metavar="DIR", help="default: a new folder in RUN/evaluations")
    parser.add_argument(
        "--trust",
        metavar="MODULE",
        action="append",
        default=[],
        help="module outside seglab that the run's config may name",
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from seglab.evaluate import evaluate

    evaluate(args.run, args.data, args.out, tuple(args.trust))


if __name__ == "__main__":
    main()
