"""RunPaths names the files that architecture and README promise."""

from __future__ import annotations

from pathlib import Path

from seglab.runs.paths import RunPaths


def test_every_file_has_the_documented_name(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    properties = [name for name, value in vars(RunPaths).items() if isinstance(value, property)]
    names = {getattr(paths, name).relative_to(tmp_path).as_posix() for name in properties}
    assert names == {
        *("config.yaml", "run.json", "splits.json", "data.json", "code.diff"),
        *("checkpoints/best.ckpt", "checkpoints/last.ckpt", "train.log", "job.log"),
        *("metrics.csv", "test_cases.csv", "baseline_cases.csv", "summary.json"),
        *("MODEL_CARD.md", "figures", "evaluations", "reproductions", "reproduction.json"),
    }
