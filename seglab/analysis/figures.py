"""Pictures of cases, predictions and curves, as arrays and as PNG files."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps

from seglab.core.files import write_atomic
from seglab.data.classes import ONE_CLASS, Classes
from seglab.inference.calibration import Calibration

# Right lesion pixels white, false alarms red, misses blue: told apart by the colour-blind too.
HIT, FALSE_ALARM, MISS = (255, 255, 255), (230, 85, 60), (60, 125, 230)
GAP = 4  # pixels between the tiles of a grid
CELL = 270  # pixels of the longer edge of a picture in a figure of cases
MARGIN = 60  # pixels left of the pictures, for the names of cases
DPI = 110
LEGEND_COLUMNS = 5
ERROR_LEGEND = "white: found, red: false alarm or wrong class, blue: missed"


def error_map(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Colours hits, false alarms (also of a wrong class) and misses, uint8 (H, W, 3).

    Args:
        pred: Class numbers, uint8 (H, W).
        target: Class numbers, uint8 (H, W).
    """
    out = np.zeros((*pred.shape, 3), np.uint8)
    out[pred > 0], out[(pred == 0) & (target > 0)] = FALSE_ALARM, MISS
    out[(pred == target) & (target > 0)] = HIT
    return out


def colorize_mask(mask: np.ndarray, classes: Classes) -> np.ndarray:
    """Draws class numbers (H, W) in their colours, uint8 (H, W, 3); lesion is white if binary."""
    return classes.palette[mask]


def grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Tiles pictures of one size, uint8 (H, W, 3), each with a grey margin right and below."""
    margin = ((0, GAP), (0, GAP), (0, 0))
    padded = [[np.pad(tile, margin, constant_values=128) for tile in row] for row in rows]
    return np.concatenate([np.concatenate(row, axis=1) for row in padded])


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
        legend: Classes whose colours are named above, if there are several.
    """
    rows = list(zip(*columns.values(), strict=True))
    tallest = max(min(1, picture.shape[0] / picture.shape[1]) for row in rows for picture in row)
    cell = CELL, math.ceil(CELL * tallest)
    tiles = grid([[_make_cell(picture, cell) for picture in row] for row in rows])
    top = 26
    if legend.is_multiclass:
        top += 16 + 18 * math.ceil(len(legend.names) / LEGEND_COLUMNS)
    height, width = tiles.shape[0] + top + 30 * bool(note), tiles.shape[1] + MARGIN
    # The canvas rounds inches * dpi down; half a pixel more makes it what is meant.
    figure = Figure(figsize=((width + 0.5) / DPI, (height + 0.5) / DPI))
    for j, title in enumerate(columns):
        at = (MARGIN + j * (CELL + GAP) + CELL / 2) / width, 1 - (top - 6) / height
        figure.text(*at, title, ha="center", va="bottom", fontsize=9, parse_math=False)
    for i, name in enumerate(names):
        at = (MARGIN - 6) / width, 1 - (top + i * (cell[1] + GAP) + cell[1] / 2) / height
        text = figure.text(*at, name, ha="right", va="center", ma="center", rotation=90)
        text.set(fontsize=8, parse_math=False)
    add_legend(figure, legend)
    if note:
        figure.supxlabel(note, y=8 / height, fontsize=8, parse_math=False)
    save_figure(figure, path, tiles, (top, MARGIN))


def _make_cell(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fits a picture of any kind into a cell, width and height, uint8 (H, W, 3)."""
    pixels = picture if picture.ndim == 3 else np.rint(255 * picture.astype(np.float32))
    image = Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
    return np.asarray(ImageOps.pad(image, size, Image.Resampling.BOX, "gray"))


def add_legend(figure: Figure, classes: Classes) -> None:
    """Names the colours of several classes above a figure."""
    if not classes.is_multiclass:
        return
    colours = [tuple(colour) for colour in (classes.palette / 255).tolist()]
    figure.legend(
        handles=[
            Patch(facecolor=colour, edgecolor="black", label=name)
            for name, colour in zip(classes.names, colours, strict=True)
        ],
        loc="outside upper center" if figure.get_layout_engine() else "upper center",
        ncols=min(len(colours), LEGEND_COLUMNS),
        fontsize=8,
    )


def save_curves(path: str | Path, rows: Sequence[Mapping[str, Any]], monitor: str) -> None:
    """Draws losses and the monitored metric over epochs, from the rows of metrics.csv."""
    known = {name for row in rows for name in row}
    metric = monitor.split("/")[-1]
    scores = [name for name in (f"train/{metric}", f"val/{metric}") if name in known]
    panels: dict[str, list[str]] = {
        "loss": [name for name in ("train/loss", "val/loss", "test/loss") if name in known]
    }
    if scores and metric != "loss":
        panels[metric] = scores
    figure = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            axis.plot(*zip(*points, strict=True), label=name, marker=".")
        axis.set_xlabel("epoch")
        axis.set_ylabel(title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(figure, path)


def save_boxes(path: str | Path, values: Mapping[str, Sequence[float]], metric: str) -> None:
    """Draws a box for the cases of each row, whose values in [0, 1] are given by its label.

    A box has quartiles and median; its whiskers are Tukey's.
    """
    figure = Figure(figsize=(7.5, 0.9 + 0.42 * len(values)), layout="constrained")
    axis = figure.subplots()
    axis.boxplot(
        [list(cases) for cases in values.values()],
        # A dollar would start a formula.
        tick_labels=[label.replace("$", r"\$") for label in values],
        orientation="horizontal",
        widths=0.6,
        flierprops={"marker": ".", "alpha": 0.5},
    )
    axis.invert_yaxis()
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel(metric)
    axis.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def save_calibration(path: str | Path, calibration: Calibration, level: float) -> None:
    """Draws Dice over confidence of the calibration cases, the expected Dice and a lower bound."""
    _, confidence, dice = zip(*calibration.cases, strict=True)
    x = np.linspace(min(confidence), 1, 200)
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.scatter(confidence, dice, s=12, alpha=0.6, label=f"{len(dice)} cases")
    axis.plot(x, calibration.expected_dice(x), label="expected Dice")
    bound = calibration.lower_bound(x, level)
    axis.plot(x, bound, linestyle="--", label=f"bound, held for {level:.0%} of such cases")
    axis.set_xlabel("confidence")
    axis.set_ylabel("Dice")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    save_figure(figure, path)


def save_stress_curves(path: str | Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draws lines of stress.csv: Dice over severity, a panel for each corruption."""
    curves = _group_by(records, "corruption")
    columns = min(5, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(2.2 * columns + 1, 2.2 * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, (name, panel) in zip(axes, curves.items(), strict=False):
        for i, (label, curve) in enumerate(_group_by(panel, "label").items()):
            style: dict[str, Any] = {
                "color": f"C{i}",
                "marker": ".",
                "label": label.replace("$", r"\$"),
            }
            _draw_band(axis, curve, "severity", "dice_per_image", **style)
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.grid(alpha=0.3)
    figure.supxlabel("severity", fontsize=9)
    figure.supylabel("Dice per image", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", fontsize=8)
    save_figure(figure, path)


def save_learning_curves(path: str | Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draws lines of learning_curve.csv: measured Dice and fit over training cases."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for i, (label, curve) in enumerate(_group_by(records, "label").items()):
        measured = [record for record in curve if "dice_per_image" in record]
        names = ("train_cases", "dice_per_image", "dice_low", "dice_high")
        x, mean, low, high = np.array([[record[name] for name in names] for record in measured]).T
        style: dict[str, Any] = {"color": f"C{i}", "label": label.replace("$", r"\$")}
        axis.errorbar(x, mean, [mean - low, high - mean], fmt="o", ms=4, capsize=3, **style)
        if "fitted" in curve[0]:
            _draw_band(axis, measured, "train_cases", "fitted", color=f"C{i}")
            _draw_band(axis, curve[-2:], "train_cases", "fitted", color=f"C{i}", linestyle="--")
    axis.set_xscale("log")
    ticks = [record["train_cases"] for record in curve]
    axis.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.set_xlabel("training cases (dashed: extrapolated)")
    axis.set_ylabel("Dice per image")
    axis.legend(loc="lower right")
    save_figure(figure, path)


def _group_by(
    records: Sequence[Mapping[str, Any]], name: str
) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(record[name], []).append(record)
    return groups


def _draw_band(
    axis: Axes, records: Sequence[Mapping[str, Any]], x: str, y: str, color: str, **style: Any
) -> None:
    """Draws a column of records over another as a line, with its interval as a band."""
    at, mean, low, high = (
        [record[name] for record in records] for name in (x, y, f"{y}_low", f"{y}_high")
    )
    axis.plot(at, mean, color=color, **style)
    axis.fill_between(at, low, high, color=color, alpha=0.2, linewidth=0)


def save_heat_map(
    path: str | Path, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Draws scores in [0, 1], float64 (R, C), as coloured cells with numbers; NaN stays white."""
    figure = Figure(figsize=(2.2 + 1.5 * len(columns), 1 + 0.6 * len(rows)), layout="constrained")
    axis = figure.subplots()
    low = min(0.5, np.nanmin(values, initial=1))
    axis.imshow(values, cmap="viridis", vmin=low, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if value < low + 0.6 * (1 - low) else "black"
        text = "-" if np.isnan(value) else f"{value:.3f}"
        axis.text(j, i, text, ha="center", va="center", color=colour)
    for set_ticks, texts in ((axis.set_xticks, columns), (axis.set_yticks, rows)):
        set_ticks(range(len(texts)), [textwrap.fill(t, 20).replace("$", r"\$") for t in texts])
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    save_figure(figure, path)


def save_figure(
    figure: Figure,
    path: str | Path,
    tiles: np.ndarray | None = None,
    corner: tuple[int, int] = (0, 0),
) -> None:
    """Writes a figure as PNG.

    Tiles, uint8 (H, W, 3), are copied into the picture unscaled, where matplotlib would take five
    times as long; `corner` is the row and column of their top left pixel.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.array(canvas.buffer_rgba())[..., :3]
    if tiles is not None:
        top, left = corner
        pixels[top : top + tiles.shape[0], left : left + tiles.shape[1]] = tiles
    data = io.BytesIO()
    # Level 3 writes 8 % more in half the time. No date inside: equal runs leave equal files.
    Image.fromarray(pixels).save(data, "PNG", compress_level=3, dpi=(DPI, DPI))
    write_atomic(path, data.getvalue())
