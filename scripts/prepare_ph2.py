"""Gets PH2 ready: python scripts/prepare_ph2.py [ARCHIVE or FOLDER] [--out DIR] [--url URL]."""

import argparse
import sys
from pathlib import Path

from seglab.data.prepare import URL, check_ph2, download, unpack_ph2
from seglab.errors import one_line_errors


@one_line_errors
def main() -> None:
    """Downloads or unpacks where needed, checks every case, says what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "source",
        metavar="ARCHIVE or FOLDER",
        nargs="?",
        help="PH2Dataset.rar, a zip or tar of it, or a folder that is only checked; "
        "without it, PH2 is downloaded",
    )
    parser.add_argument("--out", default="data/PH2Dataset", help="where to unpack (%(default)s)")
    parser.add_argument("--url", default=URL, help="where to download from (%(default)s)")
    args = parser.parse_args()

    root = Path(args.out)
    if args.source is not None and Path(args.source).is_dir():
        root = Path(args.source)
    elif args.source is not None:
        unpack_ph2(args.source, root)
    elif not root.exists():
        archive = root.with_name("PH2Dataset.rar")
        if not archive.exists():
            download(args.url, archive)
        unpack_ph2(archive, root)
    report = check_ph2(root)
    print(report)
    print(f"use it: python scripts/train.py data=ph2 data.root={root}")
    if report.problems or not report.cases:
        sys.exit(1)


if __name__ == "__main__":
    main()
