"""What the wheel holds, and that it needs nothing else."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from helpers.tiny import ONE_THREAD, REPO, TINY

SETUPTOOLS = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]


def test_every_package_and_file_is_in_the_wheel() -> None:
    folders = {init.parent for init in (REPO / "seglab").rglob("__init__.py")}
    names = [".".join(folder.relative_to(REPO).parts) for folder in folders]
    assert SETUPTOOLS["packages"] == sorted([*names, "seglab.conf"])
    others = {
        file
        for folder in ("seglab", "conf")
        for file in (REPO / folder).rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc") and file.name != "README.md"
    }
    held = {
        file
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for file in (REPO / package.replace("seglab.conf", "conf").replace(".", "/")).glob(pattern)
    }
    assert others <= held


# Python runs it at its start: whatever opens a file of the checkout ends.
WATCH = """
import os, sys

def end(event, arguments):
    path = str(arguments[0]) if event == "open" else ""
    # The environment may lie in the checkout.
    if path.startswith({}) and not path.startswith(sys.prefix):
        os.write(2, f"the checkout is read: {{path}}\\n".encode())
        os._exit(99)

sys.addaudithook(end)
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The unpacked wheel, for PYTHONPATH."""
    source, folder = tmp_path / "source", tmp_path / "wheel"
    for name in ("seglab", "conf"):
        shutil.copytree(REPO / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    shutil.rmtree(source)
    (file,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(file).extractall(folder)
    (folder / "sitecustomize.py").write_text(WATCH.format(repr(f"{REPO}/")))
    return folder


@pytest.mark.slow
def test_the_wheel_alone_trains_a_sweep_predicts_and_compares(
    wheel: Path, tiny_ph2: Path, cache_dir: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()

    def run(*words: object) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "seglab", *map(str, words)],
            cwd=work,
            env=os.environ | ONE_THREAD | {"PYTHONPATH": str(wheel)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    data = [f"data.root={tiny_ph2}", f"data.cache_dir={cache_dir}", *TINY, "logger=none"]
    sweep = ["seed=0", "hydra.sweep.dir=runs"]
    assert f"compare      seglab compare {work}/runs\n" in run("train", "-m", *data, *sweep)
    card = (work / "runs" / "0" / "MODEL_CARD.md").read_text("utf-8")
    assert '\nseglab predict "$RUN" images' in card and "scripts/" not in card
    pictures = sorted(tiny_ph2.rglob("*_Dermoscopic_Image/*.bmp"))[:5]
    assert "5 predicted" in run("predict", "runs/0", *pictures, "--out", "masks")
    assert len([*(work / "masks" / "masks").iterdir()]) == 5
    assert "UNet" in run("compare", "runs")
    run("report", "runs")
    assert (work / "runs" / "report.html").exists()
