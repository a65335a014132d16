"""Parts of the parsers of several commands."""

import argparse
import sys

from seglab.core.commands import program_name

MOVED_TO = "the folder of the run's own data, if it was moved"


def make_parser(description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser that leaves out options that are not given."""
    return argparse.ArgumentParser(
        program_name(),
        description=description,
        epilog=epilog,
        argument_default=argparse.SUPPRESS,
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option of commands that open runs of other people."""
    text = "_target_ outside seglab that the run's config may name, such as my_networks.MyNet"

    def trust(name: str) -> str:
        sys.path.append("")  # its module may lie in the working directory; last, to hide no other
        return name

    parser.add_argument("--trust", metavar="NAME", action="append", type=trust, help=text)
