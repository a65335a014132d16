"""Commands that check a data set; `prepare` gets PH2 first."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seglab.cli.errors import one_line_errors
from seglab.cli.parsers import add_trust
from seglab.core.commands import current_arguments, format_command, program_name
from seglab.core.errors import InputError, check_number
from seglab.core.files import expand_user

if TYPE_CHECKING:
    from seglab.data.scan import Scan

SIZE = 256  # as in conf/data/default.yaml


@one_line_errors
def check() -> None:
    """Check every case of a data set. The exit code is 1 if any case is bad."""
    parser = argparse.ArgumentParser(
        program_name(),
        description="Lists what is wrong with a data set, and what is odd, and draws what is read.",
    )
    parser.add_argument("root", metavar="ROOT", help="folder of a data set of any layout")
    args = _parse(parser)
    _check(expand_user(args.root), args)


@one_line_errors
def prepare() -> None:
    """Download or unpack PH2 if it is missing, and check it as `check` does."""
    from seglab.data.download import URL

    parser = argparse.ArgumentParser(
        program_name(),
        description="Gets PH2 ready and checks it, or checks any data set (--check).",
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group()
    text = "PH2Dataset.rar, or a folder that is only checked; without it, PH2 is downloaded"
    source.add_argument("source", metavar="ARCHIVE or FOLDER", nargs="?", help=text)
    source.add_argument("--check", metavar="ROOT", help="only check a data set of any layout")
    add("--out", default="data/PH2Dataset", help="where to unpack (%(default)s)")
    add("--url", default=URL, help="where to download from (%(default)s)")
    args = _parse(parser)
    _check(_get_data(args.source, args.check, Path(args.out), args.url), args)


def _parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, with the options of a check."""
    add = parser.add_argument
    add("--show", metavar="N", type=int, default=0, help="draw N pairs, odd ones first")
    add("--figure", metavar="FILE", default="check.png", help="of --show (%(default)s)")
    text = "data.size of the training, at which small lesions may vanish (%(default)s)"
    add("--size", metavar="N", type=int, default=SIZE, help=text)
    add("--classes", metavar="A,B,C", help="class names, background first; default: lesion")
    add("--colours", metavar="'#..,#..'", help="of the classes in masks; default: class numbers")
    text = "as data.mask_suffix: what names of masks end with; default: usual ones"
    add("--mask-suffix", metavar="TEXT", help=text)
    text = "as data.find_duplicates=false: do not look for nearly equal pictures"
    add("--no-duplicates", action="store_true", help=text)
    text = "values in masks that are lesion, or nonzero; default: what is bright"
    add("--lesion-values", metavar="2,3", help=text)
    add("--json", metavar="FILE", help="also write the result to a JSON file")
    text = "rank annotations by how much the runs in DIR doubt them; --show N draws the first N"
    add("--runs", metavar="DIR", help=text)
    add_trust(parser)
    args = parser.parse_args(current_arguments())
    if args.colours is not None and args.classes is None:
        parser.error("--colours are those of --classes, which is missing")
    check_number("--show", args.show, int, 0, 200)  # rows of a picture that viewers still open
    check_number("--size", args.size, int, 1)
    return args


def _check(root: Path, args: argparse.Namespace) -> None:
    """Print what is wrong with a data set, and how to train on it."""
    from seglab.core.files import write_json
    from seglab.data.checker import check_data
    from seglab.data.classes import ONE_CLASS, make_classes
    from seglab.runs.overrides import quote_value

    _check_outputs(root, args)
    names, colours, values = (
        text and text.split(",") for text in (args.classes, args.colours, args.lesion_values)
    )
    if values is not None:
        is_list = all(map(str.isdecimal, values))
        values = [*map(int, values)] if is_list else args.lesion_values
    classes = make_classes(names or ONE_CLASS.names, colours, values, "--")
    scan = check_data(
        root,
        classes,
        args.size,
        find_duplicates=not args.no_duplicates,
        mask_suffix=args.mask_suffix,
    )
    print(scan)
    content = scan.to_json()
    if args.runs is not None:
        content["annotations"] = _check_annotations(scan, args)
    elif args.show:
        from seglab.analysis.check_figure import draw_check

        n = draw_check(args.figure, scan, args.show)
        print(f"look at {args.figure}: {n} pairs, outlined as read" if n else "none to draw")
    if args.json is not None:
        write_json(args.json, content)
    if scan.errors:
        sys.exit(1)
    options = [f"data={scan.layout}", f"data.root={quote_value(root)}"]
    if args.classes is not None:
        options.append(f"data.classes=[{args.classes}]")
        options += ["experiment=classes"] if classes.is_multiclass else []
        if classes.colours is not None:
            options.append(f"data.colours={[*classes.colours]}")
    if values is not None:
        options.append(f"data.lesion_values={values}".replace(" ", ""))
    if args.no_duplicates:
        options.append("data.find_duplicates=false")
    if args.mask_suffix is not None:
        options.append(f"data.mask_suffix={quote_value(args.mask_suffix)}")
    if args.size != SIZE:
        options.append(f"data.size={args.size}")
    print(f"use it: {format_command('train', *options)}")


def _check_annotations(scan: "Scan", args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print and draw the annotations that runs doubt most, and return all for --json."""
    from seglab.analysis.check_figure import draw_annotations
    from seglab.analysis.doubtful import make_doubt_table, rank_current_annotations
    from seglab.analysis.tables import format_plain
    from seglab.core.logs import log_once
    from seglab.runs.records import find_runs

    log_once()
    runs = find_runs([args.runs])
    ranked, notes = rank_current_annotations(scan, runs)
    table = make_doubt_table(ranked)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(format_plain(table._replace(notes=[*table.notes, *notes]), width))
    if args.show:
        first = ranked[: args.show]
        draw_annotations(args.figure, first, runs, tuple(args.trust or ()), scan.root)
        print(f"look at {args.figure}: {len(first)} annotations (dashed) and predictions")
    return [found.to_json() for found in ranked]


def _check_outputs(root: Path, args: argparse.Namespace) -> None:
    """Refuse to write over files of runs, or a figure among the pictures."""
    from seglab.runs.paths import refuse_run_files

    for file in filter(None, (args.json, args.figure)):
        refuse_run_files(file)
    figure = Path(args.figure)
    if args.show and (figure.suffix != ".png" or root.resolve() in figure.resolve().parents):
        raise InputError(
            f"--figure {figure}: expected a .png file outside the data, such as ../check.png"
        )


def _get_data(source: str | None, check: str | None, out: Path, url: str) -> Path:
    """Return the folder of a data set; PH2 is downloaded and unpacked to `out` if necessary."""
    from seglab.data.download import download, is_web_page, unpack_ph2

    if check is not None:
        return expand_user(check)
    if source is not None and Path(source).is_dir():
        return Path(source)
    if source is not None:
        unpack_ph2(source, out)
    elif not out.exists():
        archive = out.with_name("PH2Dataset.rar")
        if not archive.exists() or is_web_page(archive):
            download(url, archive)
        unpack_ph2(archive, out)
    return out
