"""Scores a run's checkpoint again, or the mean of several: python scripts/evaluate.py RUN..."""

import argparse
import logging

from seglab.core.console import add_inference, add_trust
from seglab.core.errors import one_line_errors


@one_line_errors
def main() -> None:
    """Parses and calls `seglab.inference.evaluate.evaluate`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="run directory; of several the mean probability"
    )
    parser.add_argument("--data", metavar="ROOT", help="another data set; all cases are scored")
    parser.add_argument("--out", metavar="DIR", help="default: a new folder in RUN/evaluations")
    add_inference(parser)
    add_trust(parser)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from seglab.inference.evaluate import evaluate

    evaluate(
        *(args.runs, args.data, args.out, tuple(args.trust)),
        tta=args.tta,
        largest_component=args.largest_component,
        fill_holes=args.fill_holes,
    )


if __name__ == "__main__":
    main()
