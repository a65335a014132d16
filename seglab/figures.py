"""Pictures of cases, predictions and curves, as arrays and as PNG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from seglab.files import write_whole

# Right lesion pixels white, false alarms red, misses blue: told apart by the colour-blind too.
HIT, FALSE_ALARM, MISS = (255, 255, 255), (230, 85, 60), (60, 125, 230)
ERROR_LEGEND = "white: lesion found, red: false alarm, blue: missed"


def error_map(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Colours hits, false alarms and misses.

    Args:
        pred: bool (H, W).
        target: bool (H, W).

    Returns:
        uint8 (H, W, 3).
    """
    out = np.zeros((*pred.shape, 3), np.uint8)
    out[pred & target], out[pred & ~target], out[~pred & target] = HIT, FALSE_ALARM, MISS
    return out


def grid(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Tiles pictures of one size: masks bool (H, W) and images uint8 (H, W, 3) to one uint8."""
    height, width = rows[0][0].shape[:2]
    shape = (len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap, 3)
    out = np.full(shape, 128, np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            if tile.ndim == 2:
                tile = np.repeat(tile[..., None] * np.uint8(255), 3, axis=2)
            y, x = i * (height + gap), j * (width + gap)
            out[y : y + height, x : x + width] = tile
    return out


def save_cases(
    path: str | Path,
    columns: Mapping[str, Sequence[np.ndarray]],
    names: Sequence[str],
    note: str = "",
) -> None:
    """Draws cases below each other, a column for each kind of picture.

    Args:
        path: PNG to write.
        columns: Pictures by the column's title: bool (H, W) or uint8 (H, W, 3).
        names: Of the cases.
        note: A line below.
    """
    rows, width = len(names), len(columns)
    figure = Figure(figsize=(2.4 * width, 1.9 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, width, squeeze=False)
    for j, (title, pictures) in enumerate(columns.items()):
        axes[0, j].set_title(title, fontsize=9)
        for i, picture in enumerate(pictures):
            axes[i, j].imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.ndim == 2 else None)
            axes[i, j].set_xticks([])
            axes[i, j].set_yticks([])
            if j == 0:
                axes[i, j].set_ylabel(names[i], fontsize=8)
    if note:
        figure.supxlabel(note, fontsize=8)
    _save(figure, path)


def save_curves(path: str | Path, rows: Sequence[Mapping[str, Any]], monitor: str) -> None:
    """Draws losses and the monitored metric over epochs.

    Args:
        path: PNG to write.
        rows: Of metrics.csv.
        monitor: Name of the metric.
    """
    losses = [k for k in ("train/loss", "val/loss", "test/loss") if any(k in row for row in rows)]
    metric = monitor.split("/")[-1]
    scores = [f"{s}/{metric}" for s in ("train", "val") if any(f"{s}/{metric}" in r for r in rows)]
    panels = [losses, scores] if scores and not set(scores) <= set(losses) else [losses]
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    for axis, names in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            marker = "o" if len(points) < 3 else ""
            axis.plot(*zip(*points, strict=True), label=name, marker=marker)
        axis.set_xlabel("epoch")
        axis.set_ylabel("loss" if names is losses else metric)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    # No date or version inside: equal runs leave equal files.
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    write_whole(path, data.getvalue())
