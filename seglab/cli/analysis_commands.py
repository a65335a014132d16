"""Main functions of scripts/ that make tables and pages of runs, as those in commands.py."""

import argparse
import logging
import shutil
import sys

from seglab.cli.errors import one_line_errors
from seglab.cli.parsers import MOVED_TO, add_trust, make_parser
from seglab.core.commands import current_arguments


@one_line_errors
def compare() -> None:
    """Run `seglab.analysis.compare.compare`."""
    parser = make_parser(
        "Makes one table of run directories.",
        "A failed or missing run is a cell of the table, no error: exit code 0.",
    )
    add = parser.add_argument
    add("dirs", metavar="DIR", nargs="+", help="folder of runs, at any depth")
    add("--metrics", metavar="A,B,C", help="columns, or 'all'; default: Dice, IoU and accuracy")
    add("--by-diagnosis", action="store_true", help="rows for each diagnosis, too")
    _add_versus(parser)
    text = "also which differences the pairs' cases could show, and how many cases an interval of "
    text += "this width needs (0.01)"
    add("--power", metavar="WIDTH", type=float, nargs="?", const=0.01, help=text)
    add("--slices", action="store_true", help="also a table by attributes of the cases")
    text = "also Dice over training cases, and what twice as many would bring"
    add("--learning-curve", action="store_true", help=text)
    text = "score these test cases alone: ids, one a line, or a CSV file with the column id first"
    add("--only-cases", metavar="FILE", help=text)
    add("--metric", metavar="NAME", help="of paired tests and slices (dice_per_image)")
    add("--out", metavar="DIR", help="also write tables (md, tex, csv) and figures")
    args = vars(parser.parse_args(current_arguments()))

    from seglab.analysis.compare import compare

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(compare(width=width, **args))


@one_line_errors
def stress() -> None:
    """Run `seglab.analysis.stress.stress`."""
    parser = make_parser("Scores runs on worse pictures: their test cases, corrupted.")
    add = parser.add_argument
    add("dirs", metavar="RUN", nargs="+", help="run directory or sweep, at any depth")
    add("--only", metavar="A,B,C", help="corruptions, such as blur,jpeg; default: all nine")
    add("--out", metavar="DIR", help="also write tables (md, tex, csv) and figures")
    add("--moved-to", metavar="ROOT", help=MOVED_TO)
    add_trust(parser)
    args = vars(parser.parse_args(current_arguments()))

    from seglab.analysis.stress import stress
    from seglab.core.logs import log_once

    log_once()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(stress(width=width, **args))


@one_line_errors
def transfer() -> None:
    """Run `seglab.analysis.transfer.transfer`."""
    parser = make_parser("Tests networks on several data sets: one table of Dice.")
    add = parser.add_argument
    text = "a row: run, or sweep over seed and fold, [NAME=]PATH; default name: its experiment"
    add("paths", metavar="RUN", nargs="+", help=text)
    text = "columns: data sets of any layout; a ROOT alone is named after its folder"
    add("--on", metavar="NAME=ROOT", nargs="+", action="extend", required=True, help=text)
    add("--limit", metavar="N", type=int, help="at most N cases of each data set")
    add("--out", metavar="DIR", help="also write table (md, tex, csv), cases and heat map")
    add_trust(parser)
    args = vars(parser.parse_args(current_arguments()))

    from seglab.analysis.transfer import transfer
    from seglab.core.logs import log_once

    log_once()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(transfer(width=width, **args))


@one_line_errors
def report() -> None:
    """Run `seglab.analysis.report.report`."""
    parser = make_parser("Writes a page of runs and sweeps, one HTML file.")
    add = parser.add_argument
    add("dirs", metavar="DIR", nargs="+", help="folder of runs, at any depth")
    add("--out", metavar="FILE", help="default: report.html in the folder")
    add("--data", "--moved-to", metavar="ROOT", dest="data_root", help=MOVED_TO)
    text = "show N test cases with the lowest Dice, and N with the lowest confidence (24)"
    add("--cases", metavar="N", type=int, help=text)
    add("--transfer", metavar="DIR", help="also show the table in this --out of seglab transfer")
    _add_versus(parser)
    add_trust(parser)
    args = vars(parser.parse_args(current_arguments()))

    from seglab.analysis.report import report
    from seglab.core.logs import log_once

    log_once()
    file = report(**args)
    logging.getLogger("seglab").info("%s: %.2g MB", file, file.stat().st_size / 1e6)


@one_line_errors
def bundle() -> None:
    """Run `seglab.analysis.bundle.bundle`."""
    parser = make_parser(
        "Packs runs for reviewers: tables, report, records and a filled reporting checklist.",
        "Weights and data stay outside; seglab compare on the opened archive gives the same bytes.",
    )
    add = parser.add_argument
    add("dirs", metavar="DIR", nargs="+", help="folder of runs, at any depth")
    add("--out", metavar="FILE", help="a new .zip; default: DIR.zip beside the folder")
    add("--moved-to", metavar="ROOT", dest="data_root", help=MOVED_TO)
    _add_versus(parser)
    add_trust(parser)
    args = vars(parser.parse_args(current_arguments()))

    from seglab.analysis.bundle import bundle
    from seglab.core.logs import log_once

    log_once()
    file = bundle(**args)
    logging.getLogger("seglab").info("%s: %.2g MB", file, file.stat().st_size / 1e6)


def _add_versus(parser: argparse.ArgumentParser) -> None:
    """Add the option for paired tests."""
    text = "paired test of two rows, named by their labels or how these begin; repeatable"
    parser.add_argument("--versus", metavar=("A", "B"), nargs=2, action="append", help=text)
