"""The order of dependency between packages, read from the import statements."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.tiny import REPO

# Lowest first: a package imports from packages before it.
ORDER = (
    *("core", "metrics", "networks", "losses", "data", "schema", "config", "composition", "runs"),
    *("inference", "analysis", "training", "sweeps", "cli", "__main__"),
)
# Libraries that a package does not import.
FORBIDDEN = {
    "core": ("torch", "lightning", "hydra", "omegaconf"),
    "networks": ("hydra", "omegaconf"),
}


def imports(package: Path) -> Iterator[tuple[str, str]]:
    """Yields (importing module, imported module) of each import inside `package`.

    Imports inside functions count too, those for annotations alone included.
    """
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        module = ".".join(parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((module, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: expected an absolute import"
                yield from ((module, f"{node.module}.{alias.name}") for alias in node.names)


def wrong_imports(package: Path) -> list[str]:
    """Lists imports of libraries that are forbidden, and of packages that do not come before."""
    wrong = []
    for module, imported in imports(package):
        library = imported.split(".")[0]
        if library != package.name:
            if library in FORBIDDEN.get(".".join(module.split(".")[1:2]), ()):
                wrong.append(f"{module} imports {imported}")
            continue
        above, below = module.split(".")[1:2], imported.split(".")[1]
        if not above or below not in ORDER:  # seglab/__init__.py, and names that it defines
            continue
        if above[0] != below and ORDER.index(below) >= ORDER.index(above[0]):
            wrong.append(f"{module} imports {imported}")
    return wrong


def test_packages_import_only_from_lower_ones() -> None:
    assert wrong_imports(REPO / "seglab") == []


def test_every_package_has_its_place_in_the_order() -> None:
    entries = [p for p in (REPO / "seglab").iterdir() if p.is_dir() or p.suffix == ".py"]
    names = {p.stem for p in entries} - {"__init__", "__pycache__", "py"}
    assert names == set(ORDER)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("data/cases.py", "def lazily():\n    from seglab.runs import records"),
        ("losses.py", "from seglab import config"),
        ("core/files.py", "import torch"),
        ("networks/unet.py", "from hydra.utils import instantiate"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, line: str) -> None:
    shutil.copytree(REPO / "seglab", tmp_path / "seglab")
    planted = tmp_path / "seglab" / file
    planted.write_text(f"{planted.read_text('utf-8')}\n{line}\n", "utf-8")
    assert len(wrong_imports(tmp_path / "seglab")) == 1
