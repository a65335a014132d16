"""Gets PH2 ready, or checks any data set.

python scripts/prepare_ph2.py [ARCHIVE or FOLDER] [--out DIR] [--url URL] [--json FILE]
python scripts/prepare_ph2.py --check ROOT [--classes A,B,C [--colours '#..,#..']] [--json FILE]
"""

import argparse
import sys
from pathlib import Path

from seglab.core.errors import one_line_errors
from seglab.core.files import write_json
from seglab.data.checker import check_data
from seglab.data.classes import ONE_CLASS, make_classes
from seglab.data.download import URL, download, unpack_ph2


@one_line_errors
def main() -> None:
    """Downloads or unpacks where needed, checks every case, says what was found.

    The exit code is 1 where anything is bad.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "source",
        metavar="ARCHIVE or FOLDER",
        nargs="?",
        help="PH2Dataset.rar, a zip or tar of it, or a folder that is only checked; "
        "without it, PH2 is downloaded",
    )
    what.add_argument(
        "--check", metavar="ROOT", help="only check a data set of any supported layout"
    )
    parser.add_argument(
        "--classes", metavar="A,B,C", help="with --check: names, where masks hold several classes"
    )
    parser.add_argument(
        "--colours", metavar="'#..,#..'", help="of each in masks; without, they hold class numbers"
    )
    parser.add_argument("--out", default="data/PH2Dataset", help="where to unpack (%(default)s)")
    parser.add_argument("--url", default=URL, help="where to download from (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="where to leave what was found as JSON")
    args = parser.parse_args()

    if args.colours is not None and args.classes is None:
        parser.error("--colours are those of --classes, which is missing")
    classes, options = ONE_CLASS, ""
    if args.classes is not None:
        names, colours = (text and text.split(",") for text in (args.classes, args.colours))
        classes = make_classes(names, colours, "--")
        options = (
            f" 'data.classes=[{args.classes}]'" + " experiment=classes" * classes.is_multiclass
        )
        if classes.colours is not None:
            options += f' "data.colours={[*classes.colours]}"'
    root = Path(args.out if args.check is None else args.check)
    if args.source is not None and Path(args.source).is_dir():
        root = Path(args.source)
    elif args.source is not None:
        unpack_ph2(args.source, root)
    elif args.check is None and not root.exists():
        archive = root.with_name("PH2Dataset.rar")
        if not archive.exists():
            download(args.url, archive)
        unpack_ph2(archive, root)
    report = check_data(root, classes)
    print(report)
    if args.json is not None:
        write_json(args.json, report.to_json())
    if report.errors:
        sys.exit(1)
    print(f"use it: python scripts/train.py data={report.layout} data.root={root}{options}")


if __name__ == "__main__":
    main()
