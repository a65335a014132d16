"""What the files around the code name is there: workflow, hooks, forms, citation, changelog."""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.tiny import REPO

import seglab

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]
CI = (REPO / ".ci" / "run").read_text("utf-8")
FORMS = sorted((REPO / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def load(path: str | Path) -> Any:
    return yaml.safe_load((REPO / path).read_text("utf-8"))


def test_the_workflow_calls_what_every_submission_must_pass() -> None:
    (job,) = load(".github/workflows/ci.yml")["jobs"].values()
    (command,) = [step["run"] for step in job["steps"] if "run" in step]
    assert os.access(REPO / command, os.X_OK)
    pythons = job["strategy"]["matrix"]["python"]
    assert pythons[0] == PROJECT["requires-python"].removeprefix(">=")
    for python in pythons:
        assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


def test_hooks_run_the_tools_of_ci() -> None:
    (repository,) = load(".pre-commit-config.yaml")["repos"]
    dev = {re.split(r"[>=\[]", line)[0] for line in PROJECT["optional-dependencies"]["dev"]}
    for hook in repository["hooks"]:
        assert re.search(rf"^{hook['entry']}\b", CI, re.MULTILINE)
        assert hook["entry"].split()[0] in dev


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_forms_ask_for_command_and_record(form: Path) -> None:
    content = load(form)
    assert {"name", "description", "body"} <= content.keys()
    ids = [field["id"] for field in content["body"]]
    assert len({*ids}) == len(ids)
    text = form.read_text("utf-8")
    assert "command" in text and "run.json" in text


def test_version_is_one() -> None:
    assert load("CITATION.cff")["version"] == seglab.__version__
    changelog = (REPO / ".github" / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## (.+)$", changelog, re.MULTILINE)[:2] == [
        "Unreleased",
        seglab.__version__,
    ]


@pytest.mark.skipif(not (REPO / ".git").exists(), reason="no git checkout")
def test_git_sees_them_all() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True).stdout
    hidden = (".ci", ".github", ".pre-commit-config.yaml", "CITATION.cff")
    files = [file for name in hidden for file in [REPO / name, *(REPO / name).rglob("*")]]
    for file in files:
        if file.is_file():
            assert file.relative_to(REPO).as_posix() in listed.splitlines()
