"""Command-line options that several commands have."""

from __future__ import annotations

import argparse


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option of commands that open runs of other people."""
    parser.add_argument(
        "--trust",
        metavar="MODULE",
        action="append",
        default=[],
        help="module outside seglab that the run's config may name",
    )


def add_inference(parser: argparse.ArgumentParser) -> None:
    """Add options that replace the run's config section `inference`; None if not given."""
    for option, what in (
        ("--tta", "mean probability of the 8 flips and quarter turns"),
        ("--largest-component", "keep the largest lesion alone"),
        ("--fill-holes", "fill holes in a lesion"),
    ):
        parser.add_argument(
            option, action=argparse.BooleanOptionalAction, help=f"{what}; default: as in the run"
        )


def add_versus(parser: argparse.ArgumentParser) -> None:
    """Add the option for paired tests."""
    parser.add_argument(
        "--versus",
        metavar=("A", "B"),
        nargs=2,
        action="append",
        default=[],
        help="paired test of two rows, named by their labels or how these begin; repeatable",
    )
