"""The command `seglab`: each command of scripts/ by its name, and `check`."""

import argparse
import os
import sys

from seglab.cli import analysis_commands, commands, data_commands

COMMANDS = {
    "check": (data_commands.check, "checks and draws a data set of any layout"),
    "prepare": (data_commands.prepare, "downloads or unpacks PH2"),
    "train": (commands.train, "trains a run, or with -m a sweep"),
    "predict": (commands.predict, "writes masks of images"),
    "evaluate": (commands.evaluate, "scores a run again, or an ensemble"),
    "score": (commands.score, "scores masks that any program wrote"),
    "calibrate": (commands.calibrate, "fits the Dice to expect, and a bound, from confidence"),
    "export": (commands.export, "writes a network as ONNX"),
    "compare": (analysis_commands.compare, "makes a table of runs"),
    "stress": (analysis_commands.stress, "scores runs on worse pictures"),
    "transfer": (analysis_commands.transfer, "tests networks on several data sets"),
    "report": (analysis_commands.report, "makes a page of runs"),
    "bundle": (analysis_commands.bundle, "packs runs, tables and a checklist for reviewers"),
    "reproduce": (commands.reproduce, "trains a run again and compares"),
}


def main() -> None:
    """Run the command that the first argument names, with the others as its command line."""
    if sys.argv[1:2] == ["-sc"]:  # Hydra's shell completion takes commands to have one word
        _, name, *words = os.environ.get("COMP_LINE", "seglab train ").split(" ", 2)
        if name != "train" or not words:
            return print(*() if words else COMMANDS)
        os.environ["COMP_LINE"] = f"seglab {words[0]}"
        sys.argv.insert(1, "train")
    parser = argparse.ArgumentParser(
        prog="seglab",
        usage="seglab COMMAND ...  (seglab COMMAND --help lists its options)",
        epilog="\n".join(f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of these:")
    function, _ = COMMANDS[parser.parse_args(sys.argv[1:2]).command]
    function()
