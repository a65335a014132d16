"""Pictures of cases, predictions and curves, as arrays and as PNG files."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)

from seglab.core.files import write_atomic
from seglab.data.classes import ONE_CLASS, Classes

# Right lesion pixels white, false alarms red, misses blue: told apart by the colour-blind too.
HIT, FALSE_ALARM, MISS = (255, 255, 255), (230, 85, 60), (60, 125, 230)
ERROR_LEGEND = "white: lesion found, red: false alarm, blue: missed"
ERROR_LEGEND_OF_CLASSES = "white: found, red: false alarm or of another class, blue: missed"


def error_map(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Colours hits, false alarms, what is taken for another class among them, and misses.

    Args:
        pred: Class numbers, uint8 (H, W).
        target: The same.

    Returns:
        uint8 (H, W, 3).
    """
    out = np.zeros((*pred.shape, 3), np.uint8)
    out[pred > 0], out[(pred == 0) & (target > 0)] = FALSE_ALARM, MISS
    out[(pred == target) & (target > 0)] = HIT
    return out


def colorize_mask(mask: np.ndarray, classes: Classes) -> np.ndarray:
    """Draws class numbers (H, W) in their colours, uint8 (H, W, 3); lesion is white if binary."""
    return classes.palette[mask]


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
    legend: Classes = ONE_CLASS,
) -> None:
    """Draws cases below each other, a column for each kind of picture.

    Args:
        path: PNG to write.
        columns: Pictures by the column's title: bool (H, W), float (H, W) in [0, 1] or uint8
            (H, W, 3).
        names: Of the cases, of up to three lines.
        note: A line below.
        legend: Of several classes their colours are named below.
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
    if legend.is_multiclass:
        colours = [tuple(colour) for colour in (legend.palette / 255).tolist()]
        figure.legend(
            handles=[
                Patch(facecolor=colour, edgecolor="black", label=name)
                for name, colour in zip(legend.names, colours, strict=True)
            ],
            loc="outside upper center",
            ncols=min(len(colours), 5),
            fontsize=8,
        )
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
    write_atomic(path, data.getvalue())


def save_boxes(path: str | Path, values: Mapping[str, Sequence[float]], metric: str) -> None:
    """Draws a box for each row of a table, with its cases as points.

    Boxes are quartiles and median, whiskers reach the last case within 1.5 times the box (Tukey).

    Args:
        path: PNG to write.
        values: Of each case, in [0, 1], by the row's label.
        metric: What they are.
    """
    height = min(0.9 + 0.42 * max(len(values), 1), 200)
    figure = Figure(figsize=(7.5, height), layout="constrained")
    axis = figure.subplots()
    for i, own in enumerate(values.values()):
        # Spread like the golden ratio's multiples, evenly and always alike.
        spread = (np.arange(len(own)) * 0.618034 % 1 - 0.5) * 0.5
        axis.plot(own, i + spread, "o", color=_COLOURS[0], alpha=0.35, markersize=3, mew=0)
    if values:
        axis.boxplot(
            [list(own) for own in values.values()],
            positions=range(len(values)),
            orientation="horizontal",
            widths=0.6,
            showfliers=False,
            medianprops={"color": _COLOURS[1], "linewidth": 1.8},
        )
    axis.set_yticks(range(len(values)), [_plain(label) for label in values])
    axis.invert_yaxis()
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel(metric)
    axis.grid(axis="x", alpha=0.3)
    note = "box: quartiles and median; whiskers: within 1.5 boxes of it; a point: a test case"
    figure.suptitle(note, fontsize=8)
    _save(figure, path)


def save_val_curves(
    path: str | Path, curves: Mapping[str, tuple[str, Sequence[Mapping[int, float]]]]
) -> None:
    """Draws the monitored metric over epochs: the mean of each row's runs, and how far they reach.

    Args:
        path: PNG to write.
        curves: By the row's label its metric, and the values by epoch of each run, if any.
    """
    metrics = sorted({metric for metric, runs in curves.values() if any(runs)}) or [""]
    size = (6 * len(metrics), 4.2 + _legend_height(curves))
    figure = Figure(figsize=size, layout="constrained")
    axes = dict(zip(metrics, figure.subplots(1, len(metrics), squeeze=False)[0], strict=True))
    handles: dict[str, Any] = {}
    for i, (label, (metric, runs)) in enumerate(curves.items()):
        epochs = sorted({epoch for run in runs for epoch in run})
        if epochs:
            reached = [[run[epoch] for run in runs if epoch in run] for epoch in epochs]
            colour, line, marker = _style(i)
            mean = [sum(values) / len(values) for values in reached]
            (handles[label],) = axes[metric].plot(
                epochs, mean, color=colour, linestyle=line, marker=marker if len(mean) < 3 else ""
            )
            axes[metric].fill_between(
                epochs, list(map(min, reached)), list(map(max, reached)), color=colour, alpha=0.15
            )
    for metric, axis in axes.items():
        axis.set_xlabel("epoch")
        axis.set_ylabel(metric)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    figure.suptitle("line: mean of a row's runs; band: from the least to the largest", fontsize=8)
    _legend(figure, handles)
    _save(figure, path)


def save_costs(
    path: str | Path,
    points: Mapping[str, tuple[Sequence[Any], Mapping[str, float]]],
    metric: str,
) -> None:
    """Draws a score against what it costs: multiply-adds, and seconds to train.

    Args:
        path: PNG to write.
        points: By the row's label its score (value, standard deviation, ends of the interval),
            and its costs by name (`multiply_adds`, `training_seconds`) as far as they are known.
        metric: What the score is.
    """
    titles = {"multiply_adds": "multiply-adds of one image", "training_seconds": "seconds to train"}
    costs = [cost for cost in titles if any(cost in known for _, known in points.values())]
    costs = costs or list(titles)
    size = (4.8 * len(costs), 3.8 + _legend_height(points))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axis, cost in zip(axes, costs, strict=True):
        spent = [known[cost] for _, known in points.values() if known.get(cost, 0) > 0]
        for i, (label, ((value, _, low, high), known)) in enumerate(points.items()):
            if known.get(cost, 0) > 0:
                colour, _, marker = _style(i)
                # BCa may leave the value outside.
                ends = [[max(value - low, 0)], [max(high - value, 0)]]
                handles[label] = axis.errorbar(
                    known[cost], value, ends, color=colour, marker=marker, capsize=2, linestyle=""
                )
        # Within a decade a logarithmic axis would have a tick or two.
        if spent and max(spent) >= 10 * min(spent):
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        else:
            axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        # Thousandths of a second would read as minutes.
        form = EngFormatter(sep="") if cost == "multiply_adds" else StrMethodFormatter("{x:g}")
        axis.xaxis.set_major_formatter(form)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(titles[cost])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"{metric} [95 %]")
    _legend(figure, handles)
    _save(figure, path)


# Okabe and Ito 2008, told apart by the colour-blind; without their yellow, pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _style(i: int) -> tuple[str, str, str]:
    """Colour, line and marker of the i-th row."""
    lines, markers = ("-", "--", ":", "-."), ("o", "s", "^", "D", "v", "P", "X")
    turn = i // len(_COLOURS)
    return _COLOURS[i % len(_COLOURS)], lines[turn % 4], markers[(i + turn) % 7]


def _legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    if handles:
        figure.legend(
            list(handles.values()),
            [_plain(label) for label in handles],
            loc="outside lower center",
            ncols=_legend_columns(handles),
            fontsize=8,
        )


def _legend_columns(labels: Collection[str]) -> int:
    return 2 if max(map(len, labels), default=0) <= 30 else 1


def _legend_height(labels: Collection[str]) -> float:
    """Inches."""
    return min(0.18 * math.ceil(len(labels) / _legend_columns(labels)) + 0.1, 100)


def _plain(label: str) -> str:
    """Dollars would start a formula."""
    return label.replace("$", r"\$")
