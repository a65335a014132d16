"""A tiny PH2 on disk, and what tests share besides fixtures."""

from __future__ import annotations

import functools
import itertools
import os
import resource
import runpy
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

REPO = Path(__file__).resolve().parents[1]
HEADER = (
    "||   Name || Histological Diagnosis || Clinical Diagnosis || Asymmetry | Pigment Network | "
    "Dots/Globules | Streaks | Regression Areas | Blue-Whitish Veil ||           Colors ||"
)
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


class Ended(NamedTuple):
    """How a script ended."""

    code: int
    out: str
    err: str


class Blow(NamedTuple):
    """Where a process sends itself a signal: at the n-th event of this kind and name.

    Attributes:
        event: 'step' (name: 'EPOCH:BATCH', both from 0), 'open', 'os.rename', 'fsync', ...; empty
            for any operation on files below a run directory or a cache.
        name: Part of the file's path; empty for any.
        nth: From 1; 0 for never.
        signal: SIGKILL at an fsync leaves half of what was written.
    """

    event: str = ""
    name: str = ""
    nth: int = 1
    signal: int = signal.SIGKILL


def train_in_process(
    arguments: list[str],
    err: str,
    blow: Blow | None = None,
    folders: tuple[str, ...] = (),
    operations: str | None = None,
    largest_file: int | None = None,
) -> None:
    """Runs scripts/train.py: the target of a process that was forked for it.

    Args:
        arguments: Of the script.
        err: File that gets stdout and stderr.
        blow: When to send itself a signal.
        folders: The files below are counted for a blow at any operation.
        operations: File that gets a line for each such operation.
        largest_file: Bytes that a file may have, as a quota has it.
    """
    os.setsid()  # a process group of its own, like a job's
    descriptor = os.open(err, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    log = None if operations is None else os.open(operations, os.O_WRONLY | os.O_CREAT)
    if blow is not None or log is not None:
        _strike(blow or Blow(nth=0), folders, log)
    sys.argv = ["scripts/train.py", *arguments]
    runpy.run_path(str(REPO / "scripts" / "train.py"), run_name="__main__")


def _strike(blow: Blow, folders: tuple[str, ...], log: int | None) -> None:
    from seglab.recorder import RunRecorder

    numbers = itertools.count(1)
    prefixes = tuple(f"{folder}/" for folder in folders)

    def happened(event: str, name: str, descriptor: int = -1) -> None:
        if blow.event:
            counts = event == blow.event and blow.name in name
        else:
            counts = event != "step" and name.startswith(prefixes)
        if not counts:
            return
        number = next(numbers)
        if log is not None:
            os.write(log, f"{number} {event} {name}\n".encode())
        if number == blow.nth:
            if descriptor >= 0 and blow.signal == signal.SIGKILL:
                with suppress(OSError):  # a folder
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), blow.signal)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" or event.startswith(("os.", "shutil.")):
            # Of a renaming the new name.
            path = arguments[1] if event == "os.rename" else arguments[0] if arguments else None
            if isinstance(path, str | os.PathLike):
                happened(event, os.fspath(path))

    fsync, start = os.fsync, RunRecorder.on_train_batch_start

    @functools.wraps(fsync)
    def observed_fsync(descriptor: int) -> None:
        happened("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()), descriptor)
        fsync(descriptor)

    def observed_start(self: Any, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        happened("step", f"{trainer.current_epoch}:{batch_idx}")
        start(self, trainer, module, batch, batch_idx)

    os.fsync = observed_fsync
    RunRecorder.on_train_batch_start = observed_start  # type: ignore[method-assign]
    sys.addaudithook(hook)
