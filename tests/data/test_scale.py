"""Many cases take time and disk, but hardly more memory than few."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZE, FEW, MANY = 64, 100, 10_000
LIMIT = 300  # MiB

# Anonymous memory, for mapped files count as long as nobody else wants the space.
EPOCH_OF_TRAINING = f"""
import sys, threading
from pathlib import Path
from seglab.data.layouts import find_cases
from seglab.data.datamodule import SegmentationDataModule

ended, peak = threading.Event(), 0

def watch():
    global peak
    while not ended.wait(0.005):
        status = dict(line.split(":") for line in Path("/proc/self/status").open())
        peak = max(peak, int(status["RssAnon"].split()[0]))

watching = threading.Thread(target=watch, daemon=True)
watching.start()
data = SegmentationDataModule(
    find_cases, sys.argv[1], {SIZE}, 32, 32, sys.argv[2],
    dict(val=0.1, test=0.1, seed=0, fold=None, folds=5, file=None), None, 0, 0,
)
data.setup()
loaded = sum(len(data.to_network_input(batch)["id"]) for batch in data.train_dataloader())
ended.set()
watching.join()
print(len(data.cases), loaded, len(set(data.cache.groups)), peak / 1024)
"""


@pytest.mark.long
def test_memory_hardly_grows_with_the_number_of_cases(
    tmp_path: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    rng = np.random.default_rng(0)
    peaks = []
    for n in (FEW, MANY):
        for subfolder, shape in (("images", (SIZE, SIZE, 3)), ("masks", (SIZE, SIZE))):
            folder = tmp_path / str(n) / subfolder
            folder.mkdir(parents=True)
            for i in range(n):
                # Noise of 8 px, so that thumbnails keep it.
                pixels = rng.integers(0, 256, (8, 8, *shape[2:]), np.uint8).repeat(8, 0)
                pixels = pixels.repeat(8, 1) if subfolder == "images" else pixels.repeat(8, 1) > 127
                Image.fromarray(pixels).save(folder / f"{i:05}.png", compress_level=1)
        process = start_python(EPOCH_OF_TRAINING, tmp_path / str(n), tmp_path / "cache")
        said = process.communicate(timeout=500)[0].split()
        assert process.returncode == 0
        # All of train, and no two taken for the same picture.
        assert said[:3] == [str(n), str(round(0.81 * n)), str(n)]
        peaks.append(float(said[3]))
    print(f"\n{FEW} pairs {peaks[0]:.0f} MiB, {MANY} pairs {peaks[1]:.0f} MiB")
    assert peaks[1] - peaks[0] < LIMIT
