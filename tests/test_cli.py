"""Commands: answers without torch, errors as one line, exit codes."""

import errno
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.tiny import REPO, Ended, refused, write_tiny_ph2
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException

from seglab.cli.errors import find_input_error, one_line_errors
from seglab.core.errors import SWEEP_JOB_VARIABLE, InputError, Terminated

RUN_WITHOUT_TORCH = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    assert "torch" not in sys.modules
"""


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        *(
            (f"{name}.py --help", 0, f"scripts/{name}.py [-h]")
            for name in (
                *("predict", "evaluate", "calibrate", "export", "compare", "stress", "report"),
                *("transfer", "reproduce", "bundle", "score"),
            )
        ),
        ("prepare_ph2.py --help", 0, "--check ROOT"),
        ("train.py --help", 0, "train is powered by Hydra"),
        ("train.py --cfg job", 0, "monitor_mode: max"),
        ("train.py data.sice=64", 1, "error: data.sice: unknown config key"),
        ("train.py seed=null hydra.run.dir=FOLDER", 1, "error: seed=None: expected an integer"),
        ("compare.py nowhere", 1, "nowhere: cannot be searched for runs"),
        ("prepare_ph2.py --check nowhere", 1, "nowhere is no folder (expected"),
        ("prepare_ph2.py --colours #000000", 2, "--colours are those of --classes"),
    ],
)
def test_answers_without_torch(command: str, code: int, words: str, tmp_path) -> None:
    script, *arguments = command.replace("FOLDER", str(tmp_path)).split()
    ended = subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT_TORCH, str(REPO / "scripts" / script), *arguments],
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == code, ended.stderr
    assert words in (ended.stderr if code else ended.stdout)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, "No space left on device", "runs/a/run.json")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("data.size=0: bad"), "data.size=0: bad"),
        (caused(InstantiationException("call"), InputError("model: bad")), "model: bad"),
        (FULL, "runs/a/run.json: No space left on device; make room, then start the same comm"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "x: Permission denied; choose a"),
        (caused(InstantiationException("a\n a"), ValueError("lr < 0")), "a; lr < 0"),
        (caused(InstantiationException("call"), KeyError("bug")), None),
        (ValueError("bug"), None),
        (OSError("no file"), None),
        (ModuleNotFoundError("No hydra", name="hydra"), "No hydra; install what seglab needs: "),
    ],
)
def test_errors_of_users_are_told_from_bugs(error: Exception, line: str | None) -> None:
    found = find_input_error(error)
    assert found is None if line is None else found is not None and found.startswith(line)


def test_a_batch_too_small_for_batchnorm_is_the_users() -> None:
    with pytest.raises(ValueError) as refused:
        torch.nn.BatchNorm2d(1)(torch.zeros(1, 1, 1, 1))
    found = find_input_error(refused.value)
    assert found is not None and found.startswith("data.batch_size: leaves one training case")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("one\n line"), 1, "error: one line\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Terminated("(to go on: ...)"), 143, "interrupted (to go on: ...)\n"),
    ],
)
def test_main_functions_end_with_one_line(
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @one_line_errors
    def main() -> None:
        raise error

    for in_sweep in (False, True):
        if in_sweep:
            monkeypatch.setenv(SWEEP_JOB_VARIABLE, "1")
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
        err = capsys.readouterr().err
        assert err.endswith(line)
        assert ("Traceback" in err) == (in_sweep and code == 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"task:\n\toptimizer:\n", ["own.yaml", "line 2", "indent by blanks"]),
        (b"# @package _global_\nname: [a\nseed: 1\n", ["own.yaml", "line 3"]),
        (b"# @package _global_\nname: M\xfcller\n", ["own.yaml, line 2: is no UTF-8"]),
        (b"# @package _global_\ndefaults: [own]\n", ["names itself in its defaults"]),
        (b"seed: 5\n", ["experiment=own: own.yaml does not begin with '# @package _global_'"]),
        ("\ufeff# @package _global_\nseed: 5\n".encode(), ["own.yaml does not begin", "no BOM"]),
    ],
)
def test_a_config_file_of_ones_own_is_named(
    content: bytes, words: list[str], script: Callable[..., Ended], tmp_path: Path
) -> None:
    file = tmp_path / "experiment" / "own.yaml"
    file.parent.mkdir()
    file.write_bytes(content)
    run = tmp_path / "run"
    ended = script("train", "--config-dir", tmp_path, "experiment=own", f"hydra.run.dir={run}")
    refused(ended, run, *words)


def test_bugs_keep_their_traceback() -> None:
    @one_line_errors
    def main() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        main()


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} {REPO}/scripts/compare.py --help"
    code = f"set -o pipefail; {command} | true; exit $?"
    ended = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert ended.stderr == ""
    assert ended.returncode in (0, 141)


@pytest.fixture
def seglab(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Runs the command `seglab` in this process, as its entry point does."""
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["seglab"].split(":")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["/bin/seglab", *map(str, arguments)])
        GlobalHydra.instance().clear()
        code = 0
        try:
            getattr(importlib.import_module(module), function)()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Ended(code, *capsys.readouterr())

    return run


def test_seglab_runs_the_commands_of_scripts(seglab: Callable[..., Ended]) -> None:
    config = seglab("train", "--cfg", "job", "data.size=77")
    assert config.code == 0 and "\n  size: 77\n" in config.out
    assert sys.argv[1] == "train"  # as typed: Lightning starts further processes with it
    listed = seglab("--help").out
    for file in (REPO / "scripts").glob("*.py"):
        if re.search(r"seglab\.cli\.(analysis_)?commands import", file.read_text()):
            assert f"  {file.stem}" in listed
            assert re.match(
                rf"usage: seglab {file.stem} |train is powered", seglab(file.stem, "--help").out
            )
    for wrong in ((), ("nothing",), ("check",), ("check", "data", "--show", "many")):
        assert seglab(*wrong).code == 2
    assert (
        "--show=201: expected an integer from 0 to 200" in seglab("check", "x", "--show", 201).err
    )


COMPLETE = """
eval "$(seglab train -sc install=bash)"
for COMP_LINE in "seglab train data.size=9 model=se" "seglab co" "seglab predict "; do
  words=($COMP_LINE)
  COMP_POINT=${#COMP_LINE} COMP_CWORD=$((${#words[@]} - 1)) hydra_bash_completion
  echo "${COMPREPLY[@]}"
done
"""


def test_bash_completes_commands_and_overrides(tmp_path: Path) -> None:
    entry = tmp_path / "seglab"
    entry.write_text(f"#!{sys.executable}\nfrom seglab.cli.main import main\nmain()\n")
    entry.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", COMPLETE],
        env=os.environ | {"PATH": path, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert ended.stderr == ""
    assert ended.stdout == "model=segnet\ncompare\n\n"


@pytest.mark.parametrize("command", ["import seglab", "runpy.run_path(SCRIPT, {}, '__main__')"])
def test_windows_is_refused_in_one_line(command: str) -> None:
    setting = f"import runpy, sys; sys.platform = 'win32'; SCRIPT = '{REPO}/scripts/train.py'"
    ended = subprocess.run(
        [sys.executable, "-c", f"{setting}; {command}"],
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and "WSL2" in ended.stderr


def test_seglab_check_is_the_check_of_prepare(
    seglab: Callable[..., Ended], script: Callable[..., Ended], tmp_path: Path
) -> None:
    root, figure = write_tiny_ph2(tmp_path / "data", 3), tmp_path / "check.png"
    ended = seglab("check", root, "--show", 2, "--figure", figure, "--size", 64)
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{root}: 3 good cases of layout ph2\n")
    assert f"look at {figure}: 2 pairs" in ended.out and figure.exists()
    assert ended.out.endswith(f"use it: seglab train data=ph2 data.root={root} data.size=64\n")
    options = ("--show", 2, "--figure", figure, "--size", 64)
    prepared = script("prepare_ph2", "--check", root, *options).out
    assert prepared == ended.out.replace("seglab train", "python scripts/train.py")
