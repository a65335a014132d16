"""The benchmark's figures are right, and it leaves nothing behind."""

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.tiny import REPO, Ended, wait_until

SCRIPT = REPO / "scripts" / "benchmark.py"


@pytest.fixture
def benchmark() -> Any:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_figures_by_hand(benchmark: Any) -> None:
    assert benchmark.compare([4, 9, 6], [2, 3, 3], "fp32_") == {
        "fp32_ratio": 2,  # median of 2, 3 and 2, paired by round
        "fp32_ratio_range": [2, 3],
        "recipe_fp32_per_second": 1 / 6,
        "fp32_per_second": 1 / 3,
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--size", "40"], "--size=40"),
        (["--rounds", "0"], "--rounds=0"),
        (["--json", "nowhere/benchmark.json"], "--json nowhere/benchmark.json"),
        (["--batch-size", "6"], "--batch-size 6: a turn needs 3 batches"),
    ],
)
def test_bad_input_is_one_line(
    script: Callable[..., Ended], tiny_ph2: Path, arguments: list[str], words: str
) -> None:
    code, out, err = script("benchmark", "--data", tiny_ph2, *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert words in err and err.startswith("error: ")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")
def test_ctrl_c_ends_the_contenders_too(tiny_ph2: Path) -> None:
    command = [sys.executable, SCRIPT, "train", "--data", tiny_ph2, "--size", "32"]
    process = subprocess.Popen(
        [*command, "--batch-size", "5"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )

    def is_contender(pid: int) -> bool:
        with suppress(OSError):
            return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        return False

    def contenders() -> list[int]:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        return [*filter(is_contender, map(int, children.split()))]

    try:
        wait_until(lambda: bool(contenders()))
        pids = contenders()
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    # A contender whose interpreter is only starting may print something about the signal first.
    assert err.endswith("interrupted\n")
    wait_until(lambda: not any(map(is_contender, pids)))


@pytest.mark.slow
def test_measures_everything(script: Callable[..., Ended], tiny_ph2: Path, tmp_path: Path) -> None:
    file = tmp_path / "benchmark.json"
    options = ["--size", 32, "--batch-size", 2, "--rounds", 1, "--model", "segnet"]
    code, out, err = script("benchmark", *options, "--data", tiny_ph2, "--json", file)
    assert (code, err) == (0, "")
    report = json.loads(file.read_text())
    assert set(report) == {"machine", "settings", "train", "predict", "load"}
    assert report["settings"] | {"size": 32, "batch_size": 2, "rounds": 1} == report["settings"]
    train = report["train"]["segnet"]
    # With one round the ratio of medians is the median of ratios.
    pairs = [(train, "fp32_"), (report["predict"]["segnet"], ""), (report["load"], "")]
    for figures, prefix in pairs + [(train, "bf16_")] * report["machine"]["bf16"]:
        ratio = figures[f"{prefix}per_second"] / figures[f"recipe_{prefix}per_second"]
        assert figures[f"{prefix}ratio"] == pytest.approx(ratio)
        assert figures[f"{prefix}ratio_range"] == pytest.approx([ratio] * 2)
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    figures = f"{train['fp32_per_second']:.4g}   {train['fp32_ratio']:6.2f} ("
    assert any(line.startswith("train segnet, 32-true") and figures in line for line in lines)


@pytest.mark.slow
def test_measures_whole_jobs(script: Callable[..., Ended], tiny_ph2: Path, tmp_path: Path) -> None:
    file = tmp_path / "jobs.json"
    options = ["--rounds", 1, "--model", "segnet", "--busy", "--against", REPO, "--json", file]
    options += ["--override", "trainer.max_epochs=1", "--override", "data.size=32"]
    code, out, err = script("benchmark", "jobs", *options, "--data", tiny_ph2)
    assert (code, err) == (0, "")
    (seconds,) = json.loads(file.read_text())["jobs"]["fast segnet"].values()  # one checkout
    parts = sum(seconds[part] for part in ("start", "steps", "rest_of_fit", "score"))
    assert parts == pytest.approx(seconds["run"])
    assert all(value > 0 for value in seconds.values())
    assert f"{seconds['run']:.1f}" in out.splitlines()[-1]
