"""Makes one table of run directories: python scripts/compare.py DIR... [--out DIR]."""

import argparse
import shutil
import sys

from seglab.core.console import add_versus
from seglab.core.errors import one_line_errors


@one_line_errors
def main() -> None:
    """Parses and calls `seglab.analysis.compare.compare`."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="A failed or missing run is a cell of the table, no error: exit code 0.",
    )
    parser.add_argument("dirs", metavar="DIR", nargs="+", help="folder of runs, at any depth")
    parser.add_argument(
        "--metrics", metavar="A,B,C", help="columns, or 'all'; default: Dice, IoU and accuracy"
    )
    parser.add_argument("--by-diagnosis", action="store_true", help="rows for each diagnosis, too")
    add_versus(parser)
    parser.add_argument(
        "--metric",
        metavar="NAME",
        default="dice_per_image",
        help="of the paired tests (%(default)s)",
    )
    parser.add_argument("--out", metavar="DIR", help="also write tables (md, tex, csv) and figures")
    args = parser.parse_args()

    from seglab.analysis.compare import compare

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    versus = [tuple(pair) for pair in args.versus]
    print(compare(args.dirs, args.metrics, args.by_diagnosis, versus, args.metric, args.out, width))


if __name__ == "__main__":
    main()
