"""Names of the files in a run directory, the number of their format, and errors in them."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from seglab.core.errors import InputError, printable
from seglab.core.files import expand_user, read_json

# In run.json and in checkpoints. It changes when files of earlier versions can no longer be read.
FORMAT = 3
MAX_RECORD_BYTES = 2**26  # data.json of 100,000 files has 20 MB
# What a value raises that is not of the expected kind.
_DAMAGE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)


class RunPaths:
    """Paths of the files and folders in a run directory, whether they exist or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Written before the first step, config.yaml last.
        self.record = folder / "run.json"  # status, command, seed, times, versions, machine
        self.split = folder / "splits.json"  # ids of train, val and test, hash of each case
        self.thumbnails = folder / "thumbnails.npy"  # small pictures of train and val
        self.data = folder / "data.json"  # SHA-256 of every file that was read as data
        self.code_diff = folder / "code.diff"  # uncommitted code, if there is any
        self.config = folder / "config.yaml"  # the resolved config
        # Written while the run lasts.
        self.log = folder / "train.log"  # messages of training, with times
        self.job_log = folder / "job.log"  # output of the process that a sweep started
        self.best_checkpoint = folder / "checkpoints" / "best.ckpt"  # weights of the best epoch
        self.last_checkpoint = folder / "checkpoints" / "last.ckpt"  # where a run is resumed
        self.metrics = folder / "metrics.csv"  # one row per epoch
        self.tensorboard = folder / "tensorboard"  # these three: as conf/logger has them
        self.csv = folder / "csv"
        self.wandb = folder / "wandb"
        # Written when it is scored.
        self.val_cases = folder / "val_cases.csv"  # one row per case of val and class
        self.test_cases = folder / "test_cases.csv"  # the same of test
        self.baseline_cases = folder / "baseline_cases.csv"  # the same of test by each baseline
        self.case_attributes = folder / "case_attributes.csv"  # one row per test case
        self.figures = folder / "figures"
        self.summary = folder / "summary.json"  # scores of val, test and baselines
        self.model_card = folder / "MODEL_CARD.md"
        self.masks = folder / "masks"  # of a run with the status 'imported', at native size
        # Written by later commands.
        self.evaluations = folder / "evaluations"  # with summary.json, tables of cases
        self.stress = self.evaluations / "stress"  # Dice on worse pictures, by corruption
        self.calibration = folder / "calibration.json"  # in the folder of a run or of a sweep
        self.reproductions = folder / "reproductions"  # each a run directory with:
        self.reproduction = folder / "reproduction.json"  # how it differs from the original


def checkpoint_file(path: str | Path) -> Path:
    """Returns best.ckpt of a run directory; another path as it is."""
    return RunPaths(Path(path)).best_checkpoint if Path(path).is_dir() else Path(path)


def refuse_run_files(out: str | Path, replaced_status: str | None = None) -> None:
    """Refuses a file or folder as --out if writing there would overwrite or mix with a run's files.

    Raises an InputError if it is a run directory, or in one and named as something of a run, such
    as `checkpoints`. Free are other names, folders in `evaluations` and `reproductions`, and a
    folder whose run.json has the status `replaced_status`.
    """
    target = expand_user(out).resolve()
    for folder in (target, *target.parents):
        paths = RunPaths(folder)
        if not (paths.record.exists() or any(paths.best_checkpoint.parent.glob("*.ckpt"))):
            continue
        if folder == target and replaced_status and paths.record.exists():
            with refuse_damaged(paths.record) as file:
                if read_json(file)["status"] == replaced_status:
                    continue
        place = target.relative_to(folder).parts
        names = {path.relative_to(folder).parts[:1] for path in vars(paths).values()}
        has_free_folders = place[:1] in ((paths.evaluations.name,), (paths.reproductions.name,))
        if place[:1] in names and not (has_free_folders and place[1:]):
            raise InputError(
                f"{out}: belongs to the run {folder}, whose files stay as they are; name another "
                "place"
            )


def check_format(stored: dict[str, Any], file: str | Path) -> None:
    """Raises an InputError if what a file holds was written by another version of seglab."""
    if stored.get("format") != FORMAT:
        raise InputError(
            f"{file}: written by another version of seglab (format {stored.get('format')}, this "
            f"one reads {FORMAT}); read it with that version, or train again with this one"
        )


@contextmanager
def refuse_damaged(file: Path, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Path]:
    """Turns whatever a missing or damaged file raises in the body into a one-line InputError."""
    try:
        status = file.stat()
        # Reading a pipe may never end.
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            raise InputError(
                f"{file}: expected a regular file of at most {max_bytes:,} bytes; restore it, or "
                "move its run elsewhere"
            )
        yield file
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; restore it, or move its run elsewhere") from None
    except InputError:
        raise
    except (*_DAMAGE, OSError, yaml.YAMLError) as error:
        reason = printable(" ".join(str(error).split()), 100)
        raise InputError(
            f"{file}: damaged ({reason}); restore it, or move its run elsewhere"
        ) from error
