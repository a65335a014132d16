"""Names of the files in a run directory; no other package knows one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunPaths:
    """Paths of the files and folders in a run directory, whether they exist or not.

    TensorBoard's folder is not among them: `logger.save_dir` and `logger.name` of the config
    place it.

    Args:
        folder: The run directory.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """The resolved config, the last file that is written before the first step."""
        return self.folder / "config.yaml"

    @property
    def record(self) -> Path:
        """Status, command, seed, times, git commit, versions and machine."""
        return self.folder / "run.json"

    @property
    def split(self) -> Path:
        """Ids of train, val and test, with the hash of each case."""
        return self.folder / "splits.json"

    @property
    def data(self) -> Path:
        """SHA-256 of every file that was read as data."""
        return self.folder / "data.json"

    @property
    def code_diff(self) -> Path:
        """Uncommitted code, if there was any."""
        return self.folder / "code.diff"

    @property
    def log(self) -> Path:
        """Messages of training, with times."""
        return self.folder / "train.log"

    @property
    def job_log(self) -> Path:
        """Output of the process that a sweep started for this run."""
        return self.folder / "job.log"

    @property
    def best_checkpoint(self) -> Path:
        """Weights of the best epoch, or of the last one where nothing is monitored."""
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        """State at the end of the last epoch, from which an interrupted run continues."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def metrics(self) -> Path:
        """One row per epoch."""
        return self.folder / "metrics.csv"

    @property
    def test_cases(self) -> Path:
        """One row per test case and class."""
        return self.folder / "test_cases.csv"

    @property
    def baseline_cases(self) -> Path:
        """One row per baseline, test case and class."""
        return self.folder / "baseline_cases.csv"

    @property
    def summary(self) -> Path:
        """Scores of val, test and baselines; the last table that is written."""
        return self.folder / "summary.json"

    @property
    def model_card(self) -> Path:
        """Description of the network for its users."""
        return self.folder / "MODEL_CARD.md"

    @property
    def figures(self) -> Path:
        """Folder of figures."""
        return self.folder / "figures"

    @property
    def evaluations(self) -> Path:
        """Folder of later evaluations, each with its own summary and table of cases."""
        return self.folder / "evaluations"

    @property
    def reproductions(self) -> Path:
        """Folder of repetitions, each a run directory."""
        return self.folder / "reproductions"

    @property
    def reproduction(self) -> Path:
        """In a repetition: how it differs from the run that it repeats."""
        return self.folder / "reproduction.json"
