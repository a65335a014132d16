"""Writes a lesion mask for each picture: python scripts/predict.py RUN IMAGES... --out DIR."""

import argparse
import logging

from seglab.core.console import add_inference, add_trust, log_to_console
from seglab.core.errors import InputError, one_line_errors


@one_line_errors
def main() -> None:
    """Parses and calls `seglab.inference.predict.predict`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "run", metavar="RUN", help="run directory, checkpoint, or .onnx of export.py"
    )
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+", help="files, folders, or patterns in quotes"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="masks go to DIR/masks")
    parser.add_argument(
        "--with",
        metavar="RUN",
        dest="others",
        action="append",
        default=[],
        help="one more network: the mean probability of all",
    )
    for option, what in (
        ("--probabilities", "16 bits, 65535 for 1"),
        ("--overlays", "pictures with the mask's outline"),
        ("--instances", "each connected lesion its number, and a CSV that measures them"),
        ("--cutouts", "pictures within the mask, transparent elsewhere"),
    ):
        parser.add_argument(option, action="store_true", help=f"also write {what}")
    parser.add_argument("--background", metavar="FILE", help="a picture to put behind cut-outs")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    add_inference(parser)
    add_trust(parser)
    args = parser.parse_args()

    from seglab.inference.predict import EXTRAS, predict

    log = logging.getLogger("seglab")
    with log_to_console(log):
        counts = predict(
            [args.run, *args.others],
            args.images,
            args.out,
            [kind for kind in EXTRAS if getattr(args, kind)],
            args.background,
            args.overwrite,
            tuple(args.trust),
            tta=args.tta,
            largest_component=args.largest_component,
            fill_holes=args.fill_holes,
        )
        done = f"{counts['predicted']} predicted, {counts['there']} there already"
        if counts["skipped"]:
            raise InputError(f"{counts['skipped']} skipped, see above; {done}")
        log.info("%s: %s", args.out, done)


if __name__ == "__main__":
    main()
