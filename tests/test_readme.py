"""README's page on sweeps: its commands, as they stand, on smaller data."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ONE_THREAD, REPO, TINY, Ended

from seglab.files import read_csv


def commands() -> list[str]:
    page = (REPO / "README.md").read_text().partition("\n## Sweeps\n")[2].partition("\n## ")[0]
    return [
        line.partition("#")[0].strip()
        for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
    ]


# What makes each command of the page small, and nothing else.
SMALLER = {
    "-m model=segnet,unet seed=0,1,2": ["model=unet", "seed=0,1", "data.split.fold=0"],
    "sweep=folds hydra.sweep.dir": ["data.split.fold=0"],
    "-m sweep=folds seed=42,0": ["data.split.fold=0"],
    "sweep=tpe hydra.sweep.dir": ["hydra.sweeper.n_trials=1"],
    "-m sweep=tpe 'model.depth": ["hydra.sweeper.n_trials=1", "model.depth=choice(1,2)"],
    "sweep=models hydra/launcher": [],
}


@pytest.mark.slow
def test_commands_of_the_page_on_sweeps_do_what_it_says(
    tiny_ph2: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, body in {
        "srun": "exit 0",
        "squeue": "exit 0",
        "sbatch": f"cat $1 > {tmp_path / 'batch'}; echo Submitted batch job 7",
    }.items():
        (bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (bin / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(bin), prepend=os.pathsep)

    def run(command: str, *more: str) -> Ended:
        python, script, *arguments = shlex.split(command)
        assert python == "python"
        done = subprocess.run(
            [sys.executable, str(REPO / script), *arguments, *more],
            cwd=tmp_path,
            env=os.environ | ONE_THREAD,
            capture_output=True,
            text=True,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    tiny = [f"data.root={tiny_ph2}", f"data.cache_dir={cache_dir}", *TINY]
    left = dict(SMALLER)
    for command in commands():
        key = next((key for key in left if f"train.py {key}" in command), None)
        if "compare.py" in command:
            ended = run(command)
            assert ended.code == 0, ended.err
            assert "paired" in ended.out or "p (Holm)" in ended.out
            assert (tmp_path / "runs" / "folds-table" / "table.tex").exists()
            continue
        assert key is not None, f"not tried by this test: {command}"
        ended = run(command, *tiny, *left.pop(key))
        if "slurm" in command:  # there is none: its jobs are gone at once
            assert ended.code == 1
            batch = (tmp_path / "batch").read_text()
            assert "--partition=gpu" in batch
            assert "--array=0-5" in batch
            continue
        assert ended.code == 0, ended.err
        if "seed=42,0" in command:
            assert "4 finished (2 of them before)" in ended.err
    assert not left
    (grid,) = (tmp_path / "runs" / "baseline").iterdir()
    assert [row["job"] for row in read_csv(grid / "jobs.csv")] == ["seed=0", "seed=1"]
    assert (tmp_path / "runs" / "tpe" / "study.journal").exists()
