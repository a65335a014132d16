"""A tiny PH2 on disk, and what tests share besides fixtures."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

REPO = Path(__file__).resolve().parents[2]
HEADER = (
    "||   Name || Histological Diagnosis || Clinical Diagnosis || Asymmetry | Pigment Network | "
    "Dots/Globules | Streaks | Regression Areas | Blue-Whitish Veil ||           Colors ||"
)
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
# For processes: one thread each, and out of git's sight, which takes time.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "GIT_DIR": os.devnull}
# Flips, turns, zooms, shifts and light.
AUGMENT = "data.augment={_target_: seglab.data.augment.Augment}"
# Seconds, not minutes: a small network on small pictures.
TINY = ["model.width=4", "model.depth=2", "data.size=32", "trainer.max_epochs=2"]


def write_ph2_case(root: Path, id: str, image: np.ndarray, mask: np.ndarray) -> None:
    folder = root / "PH2 Dataset images" / id
    (folder / f"{id}_Dermoscopic_Image").mkdir(parents=True)
    (folder / f"{id}_lesion").mkdir()
    Image.fromarray(image).save(folder / f"{id}_Dermoscopic_Image" / f"{id}.bmp")
    Image.fromarray(mask).save(folder / f"{id}_lesion" / f"{id}_lesion.bmp")


def write_tiny_ph2(root: Path, n: int = 20) -> Path:
    """Writes n cases of dark discs on bright, noisy skin, in PH2's layout and formats."""
    random = np.random.default_rng(7)
    lines = [HEADER]
    for i in range(n):
        height, width = 45 + i % 3, 60 + i % 2
        y, x = np.mgrid[:height, :width]
        cy, cx, radius = random.uniform(15, 30), random.uniform(20, 40), random.uniform(8, 18)
        mask = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        skin = random.normal(190, 12, (height, width, 3)) + random.uniform(-15, 15, 3)
        image = np.where(mask[..., None], skin - 90, skin).clip(0, 255).astype(np.uint8)
        id = f"IMD{i:03}"
        write_ph2_case(root, id, image, mask)
        diagnosis = (0, 1, 0, 1, 2)[i % 5]
        lines.append(f"|| {id} ||  || {diagnosis} || 0 | T | A | A | A | A || 3  4 ||")
    lines += ["", "", "Legends for Clinical Diagnosis: "]
    (root / "PH2_dataset.txt").write_text("\r\n".join(lines))
    return root


def write_tiny_classes(root: Path, colours: Sequence[str] = (), n: int = 20) -> Path:
    """Writes n pairs of dark discs and red squares, classes 1 and 2, the square not always there.

    Masks are of class numbers with a palette, or of colours, if any.
    """
    random = np.random.default_rng(3)
    for subfolder in ("images", "masks"):
        (root / subfolder).mkdir(parents=True)
    for i in range(n):
        height, width = 45 + i % 3, 60 + i % 2
        y, x = np.mgrid[:height, :width]
        cy, cx, radius = random.uniform(15, 30), random.uniform(15, 25), random.uniform(8, 13)
        mask = ((y - cy) ** 2 + (x - cx) ** 2 < radius**2).astype(np.uint8)
        top = int(random.integers(2, 20))
        mask[top : top + 20 * (i % 4 > 0), 42:56] = 2
        skin = random.normal(190, 12, (height, width, 3)) + random.uniform(-15, 15, 3)
        shift = np.array([[0, 0, 0], [-90, -90, -90], [30, -110, -110]])
        image = (skin + shift[mask]).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"case{i:02}.png")
        if colours:
            rgb = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in colours], np.uint8)
            picture = Image.fromarray(rgb[mask])
        else:
            picture = Image.fromarray(mask)
            picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        picture.save(root / "masks" / f"case{i:02}.png")
    return root


def train_command(run: Path, tiny_ph2: Path, cache_dir: Path, *overrides: str) -> list[str]:
    """Returns the command that trains on the tiny PH2."""
    return [
        sys.executable,
        str(REPO / "scripts" / "train.py"),
        f"data.root={tiny_ph2}",
        f"data.cache_dir={cache_dir}",
        *TINY,
        *overrides,
        f"hydra.run.dir={run}",
    ]


# Draws from every generator, and has weights that are none.
MOODY = """
import random
import numpy as np
import torch
from torch import nn

class Moody(nn.Module):
    def __init__(self, **ignored):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 1, 1)
        self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x):
        x = self.drop(torch.relu(self.norm(self.first(x))))
        if self.training:
            x = x * (1 + 0.1 * random.random()) + 0.1 * np.random.normal()
        return self.last(x)
"""


def written(out: Path) -> dict[str, np.ndarray]:
    """Every PNG below a folder, by its path."""
    return {
        file.relative_to(out).as_posix(): np.asarray(Image.open(file))
        for file in sorted(out.rglob("*.png"))
    }


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def fill(disk: Path, room: int) -> Path:
    """Fills a file system but for `room` bytes; returns the file to remove."""
    state = os.statvfs(disk)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(state.f_bavail * state.f_frsize - room))
    return ballast


class Ended(NamedTuple):
    """How a script ended."""

    code: int
    out: str
    err: str


def files_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def refused(ended: Ended, run: Path | None, *words: str) -> None:
    """Checks for exactly one error line that holds all words; the run holds at most run.json."""
    assert ended.code == 1, ended.err
    assert "Traceback" not in ended.err
    (line,) = (line for line in ended.err.splitlines() if line.startswith("error: "))
    assert ended.err.splitlines()[-1] == line
    assert all(word in line for word in words), line
    if run is not None and run.exists():
        assert files_below(run) == {"run.json"}
        record = json.loads((run / "run.json").read_text())
        assert record["status"] == "failed"
        assert record["end"]
        assert all(word in record["error"] for word in words)


def end_of(process: subprocess.Popen) -> Ended:
    try:
        _, err = process.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return Ended(process.returncode, "", err)


def state_of(run: Path) -> str:
    """Reads what lies there, all of which must be whole; the state is shown with -rP."""
    from seglab.core.files import read_json
    from seglab.runs.checkpoints import read_checkpoint

    records = {file.name: read_json(file) for file in run.glob("*.json")}
    steps = [read_checkpoint(file)["global_step"] for file in run.glob("checkpoints/*.ckpt")]
    status = records.get("run.json", {}).get("status", "nothing yet")
    return f"{status}, step {max(steps, default=0)}"
