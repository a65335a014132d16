"""What several tests of data need: processes, and a small data set on disk."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

import seglab


@pytest.fixture
def start_python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `python -c CODE ARGS...` with this seglab; ends it with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *args: object, **variables: str) -> subprocess.Popen[str]:
        paths = [str(Path(seglab.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def write_pairs() -> Callable[..., Path]:
    """Writes `images/p00.png` with `masks/p00.png` and so on; pictures and sizes all differ."""

    def write(root: Path, n: int) -> Path:
        for subfolder in ("images", "masks"):
            (root / subfolder).mkdir(parents=True)
        for i in range(n):
            rng = np.random.default_rng(i)
            height, width = 20 + i % 5, 27 + i % 7
            noise = gaussian_filter(rng.normal(size=(height, width, 3)), (2, 2, 0))
            image = np.clip(128 + 60 * noise / noise.std(), 0, 255).astype(np.uint8)
            rows, columns = np.ogrid[:height, :width]
            mask = np.hypot(rows - height / 2, columns - 8 - i % 9) < 6
            Image.fromarray(image).save(root / "images" / f"p{i:02d}.png")
            Image.fromarray(mask).save(root / "masks" / f"p{i:02d}.png")
        return root

    return write


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Messages of the search for cases so far."""
    caplog.set_level(logging.INFO, "seglab.data.layouts")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture(scope="session")
def ph2() -> Path:
    """The real PH2, for tests that run where it is."""
    root = os.environ.get("SEGLAB_PH2")
    if not root:
        pytest.skip("set SEGLAB_PH2 to PH2's folder")
    return Path(root)
