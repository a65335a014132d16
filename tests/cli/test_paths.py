"""Paths as people have them: with blanks, quotes, signs of Hydra, other letters; and with ~."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import TINY, Ended, files_below
from hydra.core.override_parser.overrides_parser import OverridesParser

from seglab.analysis.compare import compare
from seglab.analysis.report import report
from seglab.inference.evaluate import evaluate
from seglab.inference.export import export
from seglab.inference.predict import predict
from seglab.runs.loading import read_config
from seglab.runs.overrides import quote_value

NAME = "it's a [test], n=1 ü"
PARSER = OverridesParser.create()


def read_overrides(words: list[str]) -> dict[str, Any]:
    """What Hydra reads of a printed command."""
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    return {o.key_or_group: o.value() for o in PARSER.parse_overrides(overrides)}


def test_every_printed_command_can_be_pasted(
    script: Callable[..., Ended], tiny_ph2: Path, cache_dir: Path, tmp_path: Path
) -> None:
    root, run = tmp_path / NAME / "data", tmp_path / "runs" / NAME
    shutil.copytree(tiny_ph2, root)
    checked = script("prepare_ph2", "--check", root)
    (use_it,) = re.findall("^use it: (.*)$", checked.out, re.M)
    python, train, *overrides = shlex.split(use_it)
    assert (python, train) == ("python", "scripts/train.py")
    assert read_overrides(overrides) == {"data": "ph2", "data.root": str(root)}

    more = [*TINY, "trainer.max_epochs=1", "callbacks.pictures=null", f"data.cache_dir={cache_dir}"]
    ended = script("train", *overrides, *more, f"hydra.run.dir={quote_value(run)}")
    assert ended.code == 0, ended.err
    config = read_config(run / "config.yaml")
    assert (config["data"]["root"], config["run_dir"]) == (str(root), str(run))
    commands = re.findall("^(?:look at it|predict|score again) +(.*)$", ended.err, re.M)
    look, predict, score = map(shlex.split, commands)
    assert look == ["tensorboard", "--logdir", str(run)]
    assert predict[1:3] == ["scripts/predict.py", str(run)]
    assert score == ["python", "scripts/evaluate.py", str(run)]
    assert script("evaluate", *score[2:]).code == 0

    # The commands of the model card, given where the run directory lies.
    (block,) = re.findall("```bash\n(.*?)```", (run / "MODEL_CARD.md").read_text("utf-8"), re.S)
    shown = f"python() {{ printf '%s\\n' \"$2\"; }}\n{block}"
    shell = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True)
    assert shell.stdout.splitlines() == [NAME] * 4

    # A split is named by the path of its file, as it is.
    again = script(
        "train",
        *(
            *overrides,
            *more,
            f"data.split.file={quote_value(run / 'splits.json')}",
            "trainer=debug",
        ),
        *("seed=x", f"hydra.run.dir={tmp_path / 'other'}"),
    )
    assert "seed='x'" in again.err


def test_a_home_is_expanded_wherever_python_is_given_a_path(
    predicting_runs: tuple[Path, Path],
    tiny_ph2: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home / "pictures", elsewhere):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    (home / "run").symlink_to(predicting_runs[1])
    (home / "data").symlink_to(tiny_ph2)
    shutil.copy(next(tiny_ph2.rglob("IMD003.bmp")), home / "pictures")
    predict(["~/run"], ["~/pictures"], "~/predicted")
    evaluate("~/run", "~/data", "~/scored")
    compare(["~/run"], out="~/tables")
    report(["~/run"], out="~/report.html", cases=0)
    export("~/run", "~/network.onnx", images=["~/pictures"])
    assert files_below(home) >= {
        *("predicted/masks/IMD003.png", "scored/summary.json", "tables/table.csv"),
        *("report.html", "network.onnx"),
    }
    assert not files_below(elsewhere) and not (elsewhere / "~").exists()
