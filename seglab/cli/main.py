"""The command `seglab`: each command of scripts/ by its name, and `check`."""

import argparse
import sys
from pathlib import Path

from seglab.cli import commands, data_commands

SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMANDS = {
    "check": (data_commands.check, "seglab check", "checks and draws a data set of any layout"),
    "prepare": (data_commands.prepare, "prepare_ph2.py", "downloads or unpacks PH2"),
    "train": (commands.train, "train.py", "trains a run, or with -m a sweep"),
    "predict": (commands.predict, "predict.py", "writes masks of images"),
    "evaluate": (commands.evaluate, "evaluate.py", "scores a run again, or an ensemble"),
    "export": (commands.export, "export.py", "writes a network as ONNX"),
    "compare": (commands.compare, "compare.py", "makes a table of runs"),
    "report": (commands.report, "report.py", "makes a page of runs"),
    "reproduce": (commands.reproduce, "reproduce.py", "trains a run again and compares"),
}


def main() -> None:
    """Run the command that the first argument names, with the others as its command line."""
    parser = argparse.ArgumentParser(
        prog="seglab",
        usage="seglab COMMAND ...  (seglab COMMAND --help lists its options)",
        epilog="\n".join(f"  {name:10}{text}" for name, (_, _, text) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of these:")
    function, script, _ = COMMANDS[parser.parse_args(sys.argv[1:2]).command]
    # A sweep or a run on several devices starts this file again.
    sys.argv[:2] = [str(SCRIPTS / script) if script.endswith(".py") else script]
    function()
