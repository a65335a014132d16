"""Printed commands and those of further processes name what the user has started."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny import REPO

from seglab.core.commands import current_arguments, current_command, format_command, make_command

SCRIPT = str(REPO / "scripts" / "predict.py")


@pytest.mark.parametrize(
    ("argv", "printed", "own"),
    [
        ([SCRIPT, "a"], "python scripts/{}", f"python {SCRIPT}"),
        (["/bin/seglab", "predict", "a"], "seglab {}", "seglab predict"),
        ([str(REPO / "seglab" / "__main__.py"), "predict", "a"], "seglab {}", "seglab predict"),
        (["/elsewhere/scripts/predict.py", "predict", "a"], "seglab {}", "seglab predict"),
    ],
)
def test_commands_name_what_was_started(
    argv: list[str], printed: str, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    names = {
        "predict": "predict.py",
        "prepare": "prepare_ph2.py",
        "check": "prepare_ph2.py --check",
    }
    for name, script in names.items():
        word = script if "scripts" in printed else name
        assert format_command(name, "my run") == f'{printed.format(word)} "my run"'
    assert current_arguments() == ["a"]
    assert " ".join(current_command()) == f"{own} a"


def test_a_script_is_known_from_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO / "scripts")
    monkeypatch.setattr(sys, "argv", ["train.py", "-m"])
    assert format_command("compare") == "python scripts/compare.py"
    assert make_command(["seed=0"]) == [sys.executable, f"{REPO}/scripts/train.py", "seed=0"]


def test_a_job_of_seglab_prefers_no_module_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "statistics.py").write_text("raise SystemExit('imported')")
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setattr(sys, "argv", ["/bin/seglab", "compare", "runs"])
    command = make_command(["--help"])
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout.startswith("usage: seglab compare ") and not ended.stderr
    # Who starts `python -m seglab` may have no other way to seglab than the working directory.
    monkeypatch.setattr(sys, "argv", [str(REPO / "seglab" / "__main__.py"), "compare", "runs"])
    assert make_command(["--help"]) == [sys.executable, "-m", "seglab", "compare", "--help"]
