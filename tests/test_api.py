"""What `import seglab` offers: nothing heavy is imported before it is used; READMEs' Python."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import REPO, TINY
from PIL import Image

import seglab


def test_importing_seglab_imports_none_of_the_libraries() -> None:
    code = """
        import sys
        known = {*sys.modules}
        import seglab
        assert {*seglab.__all__} <= {*dir(seglab)}
        assert not hasattr(seglab, "trane")
        print(*{name.partition(".")[0] for name in {*sys.modules} - known})
    """
    done = subprocess.run(
        [sys.executable, "-c", "if True:" + code], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {*done.stdout.split()} - {*sys.stdlib_module_names} == {"seglab"}


def test_no_module_hides_a_function() -> None:
    # `import seglab.train` would make the module the package's attribute.
    modules = {path.stem for path in (REPO / "seglab").iterdir()}
    assert not modules & {*seglab.__all__}
    for name in seglab.__all__:
        assert callable(getattr(seglab, name)) and getattr(seglab, name).__name__ == name


# What makes the Python of a README small.
QUICK = [*TINY, "data.cases.n=10", "data.batch_size=4", "logger=none"]


def test_python_of_the_readmes_runs_as_it_stands(
    tiny_ph2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_python(page: str) -> dict[str, Any]:
        (code,) = re.findall(r"```python\n(.*?)```", (REPO / page).read_text(), re.DOTALL)
        found: dict[str, Any] = {}
        exec(code.replace('"run_dir=', f'*{QUICK}, "run_dir='), found)
        return found

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGLAB_CACHE", str(tmp_path / "cache"))
    (image,) = tiny_ph2.rglob("IMD003.bmp")
    size = Image.open(image).size
    Image.open(image).save("picture.jpg")
    Path("pictures").symlink_to(image.parent)
    assert run_python("README.md")["mask"].shape == size[::-1]
    found = run_python("seglab/training/README.md")
    assert found["scores"]["val/dice_per_image"] >= 0
    assert (Path(found["cfg"].run_dir) / "summary.json").is_file()
    found = run_python("seglab/inference/README.md")
    assert found["mask"].shape == found["prob"].shape[1:] == size[::-1]
    pytest.importorskip("pandas")
    found = run_python("seglab/analysis/README.md")
    assert [Path(run).name for run in found["runs"]["directory"]] == ["mine", "notebook"]
