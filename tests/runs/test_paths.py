"""RunPaths names the files that the README of seglab/runs promises."""

from pathlib import Path

from seglab.runs.paths import RunPaths


def test_every_file_has_the_documented_name(tmp_path: Path) -> None:
    paths = vars(RunPaths(tmp_path))
    assert paths.pop("folder") == tmp_path
    names = {path.relative_to(tmp_path).as_posix() for path in paths.values()}
    assert names == {
        *("config.yaml", "run.json", "splits.json", "data.json", "code.diff"),
        *("checkpoints/best.ckpt", "checkpoints/last.ckpt", "train.log", "job.log"),
        *("metrics.csv", "test_cases.csv", "baseline_cases.csv", "summary.json"),
        *("MODEL_CARD.md", "figures", "evaluations", "reproductions", "reproduction.json"),
    }
