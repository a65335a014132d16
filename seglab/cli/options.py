"""Command-line options that several commands have."""

import argparse

INFERENCE_OPTIONS = {
    "tta": "mean probability of the 8 flips and quarter turns",
    "largest_component": "keep the largest lesion alone",
    "fill_holes": "fill holes in a lesion",
}


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option of commands that open runs of other people."""
    text = "_target_ outside seglab that the run's config may name, such as my_networks.MyNet"
    parser.add_argument("--trust", metavar="NAME", action="append", default=[], help=text)


def add_inference(parser: argparse.ArgumentParser) -> None:
    """Add options that replace the run's config section `inference`; None if not given."""
    for name, text in INFERENCE_OPTIONS.items():
        option, text = f"--{name.replace('_', '-')}", f"{text}; default: as in the run"
        parser.add_argument(option, action=argparse.BooleanOptionalAction, help=text)


def inference_options(args: argparse.Namespace) -> dict[str, bool | None]:
    """Return the values of the options of `add_inference`, by key of section `inference`."""
    return {name: getattr(args, name) for name in INFERENCE_OPTIONS}


def add_versus(parser: argparse.ArgumentParser) -> None:
    """Add the option for paired tests."""
    text = "paired test of two rows, named by their labels or how these begin; repeatable"
    parser.add_argument(
        "--versus", metavar=("A", "B"), nargs=2, action="append", default=[], help=text
    )
