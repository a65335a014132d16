"""What the wheel holds."""

import tomllib

from helpers.tiny import REPO

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
