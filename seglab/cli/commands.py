"""Main functions of scripts/ for single runs: each parses its command line and calls a function.

Options have the names of that function's arguments, whose defaults count if they are not given.
Heavy imports are inside the functions, so that `--help` and bad options answer at once.
"""

import argparse
import gc
import logging
import os
import sys

from seglab.cli.errors import one_line_errors
from seglab.cli.parsers import MOVED_TO, add_trust, make_parser
from seglab.core.commands import current_arguments
from seglab.core.errors import InputError


@one_line_errors
def train() -> None:
    """Train a run, or a sweep of runs with -m. Hydra parses the command line."""
    from hydra import version
    from hydra._internal.utils import _run_hydra, get_args_parser
    from omegaconf import DictConfig

    from seglab.cli.arguments import prepare_arguments
    from seglab.composition import CONF
    from seglab.core.signals import stop_with_launcher
    from seglab.sweeps.forks import fork_jobs, is_fork_server
    from seglab.sweeps.plugins import register

    # Errors of a run end here, before Hydra prints about them; Hydra's own end further out.
    @one_line_errors
    def train_run(cfg: DictConfig) -> None:
        from seglab.runs.directory import refuse_early

        refuse_early(cfg)
        _import_training()
        from seglab.training.train import train

        train(cfg)

    sys.path.append("")  # for modules beside the user's conf/; last, to hide no other
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    register()
    if is_fork_server():
        _import_training()
        fork_jobs()  # returns in the process of each job
    stop_with_launcher()
    version.setbase("1.3")
    parser = get_args_parser()
    args = parser.parse_args(prepare_arguments(current_arguments()))
    # hydra.main() would take them from sys.argv, with which Lightning starts further processes.
    _run_hydra(args, parser, train_run, str(CONF), "train")


@one_line_errors
def predict() -> None:
    """Run `seglab.inference.predict.predict`."""
    parser = make_parser("Writes a lesion mask for each image.")
    add = parser.add_argument
    add("run", metavar="RUN", help="run directory, sweep, checkpoint, or .onnx of seglab export")
    add("images", metavar="IMAGES", nargs="+", help="files or folders")
    add("--out", metavar="DIR", required=True, help="masks go to DIR/masks")
    text = "one more network: the mean probability of all"
    add("--with", metavar="RUN", dest="others", action="append", default=[], help=text)
    for kind, text in (
        ("probabilities", "16 bits, 65535 for 1"),
        ("overlays", "images with the mask's outline"),
        ("instances", "each connected lesion its number, and a CSV that measures them"),
        ("cutouts", "images within the mask, transparent elsewhere"),
        ("quality", "quality.csv: confidence, expected Dice, and which masks to review"),
    ):
        add(
            f"--{kind}", dest="extras", action="append_const", const=kind, help=f"also write {text}"
        )
    add("--background", metavar="FILE", help="an image to put behind cut-outs")
    text = "of --quality: review masks whose Dice may be lower; default: 0.8"
    add("--review-below", metavar="DICE", type=float, help=text)
    text = "of --quality: share of images for which the lower bound of Dice holds; default: 0.9"
    add("--level", metavar="SHARE", type=float, help=text)
    add("--overwrite", action="store_true", help="replace existing files")
    _add_inference(parser)
    add_trust(parser)
    args = vars(parser.parse_args(current_arguments()))
    if args.keys() & {"review_below", "level"}:
        args["extras"] = [*args.get("extras", []), "quality"]

    from seglab.core.logs import log_to_console
    from seglab.inference.predict import predict

    log = logging.getLogger("seglab")
    with log_to_console(log):
        counts = predict([args.pop("run"), *args.pop("others")], **args)
        done = f"{counts['predicted']} predicted, {counts['there']} there already"
        if counts["skipped"]:
            raise InputError(f"{counts['skipped']} skipped, see above; {done}")
        log.info("%s: %s", args["out"], done)


@one_line_errors
def evaluate() -> None:
    """Run `seglab.inference.evaluate.evaluate`."""
    parser = make_parser("Scores a run's checkpoint again, or the mean of several.")
    add = parser.add_argument
    text = "run directory or sweep; of several the mean probability"
    add("paths", metavar="RUN", nargs="+", help=text)
    data = parser.add_mutually_exclusive_group()
    text = "another data set; all cases are scored"
    data.add_argument("--data", metavar="ROOT", dest="data_root", help=text)
    data.add_argument("--moved-to", metavar="ROOT", help=MOVED_TO)
    text = "what names of masks in ROOT end with; default: usual ones"
    add("--mask-suffix", metavar="TEXT", help=text)
    add("--out", metavar="DIR", help="default: a new folder in RUN/evaluations")
    _add_inference(parser)
    add_trust(parser)
    args = vars(parser.parse_args(current_arguments()))

    from seglab.core.logs import log_once
    from seglab.inference.evaluate import evaluate

    log_once()
    evaluate(**args)


@one_line_errors
def score() -> None:
    """Run `seglab.inference.score.score`."""
    parser = make_parser("Scores masks that any program wrote, for compare and report.")
    add = parser.add_argument
    add("masks", metavar="MASKS", help="folder of masks, called as the cases are")
    add("--data", metavar="ROOT", dest="data_root", required=True, help="data set of any layout")
    add("--name", required=True, help="what tables call the program, such as nnU-Net")
    add("--out", metavar="DIR", required=True, help="folder to write, new or empty")
    text = "folder of probabilities: grey pictures of 8 or 16 bits, .npy or .npz"
    add("--probabilities", metavar="DIR", help=text)
    text = "JSON with lists of ids: 'test' is scored, 'train' and 'val' are what it was trained on"
    add("--split", metavar="FILE", help=text)
    text = "how masks are called, without suffix, such as pred_{id}; default: {id}, or usual ends"
    add("--pattern", metavar="NAME", help=text)
    text = "resize masks to their pictures, where they differ; tables say so"
    add("--resize", action="store_true", help=text)
    text = "what names of masks in ROOT end with; default: usual ones"
    add("--mask-suffix", metavar="TEXT", help=text)
    text = "several classes, background first, as numbered in all masks"
    add("--classes", metavar="A,B,C", type=lambda text: text.split(","), help=text)
    args = vars(parser.parse_args(current_arguments()))

    from seglab.core.logs import log_once
    from seglab.data.classes import make_classes
    from seglab.inference.score import score

    log_once()
    if "classes" in args:
        args["classes"] = make_classes(args["classes"], where="--")
    score(**args)


@one_line_errors
def calibrate() -> None:
    """Run `seglab.analysis.calibrate.calibrate`."""
    parser = make_parser("Fits the Dice to expect of a mask, and a bound, from its confidence.")
    text = "sweep of all folds, whose test cases count, or run directory, whose val cases do"
    parser.add_argument("path", metavar="SWEEP", help=text)
    parser.add_argument("--moved-to", metavar="ROOT", help=MOVED_TO)
    add_trust(parser)
    args = vars(parser.parse_args(current_arguments()))

    from seglab.analysis.calibrate import calibrate
    from seglab.core.logs import log_once

    log_once()
    calibrate(**args)


@one_line_errors
def export() -> None:
    """Run `seglab.inference.export.export`."""
    parser = make_parser("Writes a trained network as ONNX, checked on images.")
    add = parser.add_argument
    add("path", metavar="RUN", help="run directory, or checkpoint")
    add("--out", metavar="FILE", help="default: network.onnx in RUN")
    text = "images to compare on; default: 20 of the run's test cases"
    add("--images", metavar="IMAGES", nargs="+", help=text)
    add("--moved-to", metavar="ROOT", help=MOVED_TO)
    add("--overwrite", action="store_true", help="replace an existing file")
    add_trust(parser)
    args = vars(parser.parse_args(current_arguments()))

    from seglab.core.logs import log_to_console
    from seglab.inference.export import export

    with log_to_console(logging.getLogger("seglab")):
        export(**args)


@one_line_errors
def reproduce() -> None:
    """Run `seglab.training.reproduce.reproduce`; its verdict is the exit code."""
    parser = make_parser(
        "Trains a run again and compares, value by value.",
        "exit code: 0 identical, 3 within tolerance (with --check: the data is the same, "
        "code, versions or machine are not), 4 different, 1 bad input",
    )
    add = parser.add_argument
    add("path", metavar="RUN", help="directory of a finished run")
    add("--check", action="store_true", help="compare what it needs, train nothing")
    add("--data", "--moved-to", metavar="ROOT", dest="data_root", help=MOVED_TO)
    add("--out", metavar="DIR", help="default: a new folder in RUN/reproductions")
    text = "greatest difference of a score on other hardware or versions (0.01)"
    add("--tolerance", metavar="X", type=float, help=text)
    add_trust(parser)
    args = vars(parser.parse_args(current_arguments()))

    from seglab.core.logs import log_once
    from seglab.training.reproduce import reproduce

    log_once()
    sys.exit(reproduce(**args))


def _import_training() -> None:
    """Import what training needs, and leave it out of the search for garbage.

    Imports make a million objects that stay: looking for garbage among them takes seconds.
    """
    gc.disable()
    import seglab.training.train  # noqa: F401

    if not gc.get_freeze_count():  # once, where a process trains several runs
        gc.freeze()
    gc.enable()


def _add_inference(parser: argparse.ArgumentParser) -> None:
    """Add options that replace the run's config section `inference`."""
    for name, text in (
        ("tta", "mean probability of the 8 flips and quarter turns"),
        ("largest-component", "keep the largest lesion alone"),
        ("fill-holes", "fill holes in a lesion"),
    ):
        text = f"{text}; default: as in the run"
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=text)
