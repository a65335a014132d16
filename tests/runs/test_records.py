"""Opening a finished run: damaged, foreign and changed files are refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path

from helpers.tiny import Ended, refused


def test_a_split_that_tests_on_train_is_refused(run: Path, script: Callable[..., Ended]) -> None:
    file = run / "splits.json"
    split = json.loads(file.read_text())
    file.write_text(json.dumps(split | {"test": split["train"]}))
    refused(script("evaluate", run), None, str(file))


def test_what_is_no_run_is_refused(script: Callable[..., Ended], tmp_path: Path) -> None:
    refused(script("evaluate", tmp_path / "nowhere"), None, str(tmp_path / "nowhere"))
    refused(script("evaluate", tmp_path), None, str(tmp_path), "run.json")
    (tmp_path / "run.json").write_text("[1]")
    refused(script("evaluate", tmp_path), None, str(tmp_path))
