"""Figure of pairs as they are read, to look at before training."""

import math
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from seglab.analysis.doubtful import RankedAnnotation
from seglab.analysis.figures import add_legend, save_figure
from seglab.analysis.gallery import predict_tested
from seglab.data.cases import Case, read_pair
from seglab.data.classes import ONE_CLASS, Classes
from seglab.data.scan import Scan
from seglab.inference.drawing import draw_contours
from seglab.runs.records import Run

ANNOTATION = "#ffd21f"  # beside the outline of a prediction, as in report.html
TILE = 400  # pixels of the longer edge of a picture with outlines, at most


def draw_check(path: str | Path, scan: Scan, n: int) -> int:
    """Draws up to n of the good cases of a checked data set, and returns their number.

    Odd cases come first, in turns of what is odd about them; the others are evenly picked.
    """
    cases = choose_cases(scan.cases, scan.oddities, n)
    if cases:
        pictures = [read_pair(case) for case in cases]
        names = [case.id for case in cases]
        # Without what to do about it.
        oddities = [
            "; ".join(o.rpartition("; ")[0] for o in scan.oddities.get(id, [])) for id in names
        ]
        _save_outlines(path, pictures, names, oddities, cases[0].classes)
    return len(cases)


def draw_annotations(
    path: str | Path,
    ranked: Sequence[RankedAnnotation],
    runs: Sequence[Run],
    trust: tuple[str, ...],
    data_root: str | Path,
) -> None:
    """Draws each annotation, dashed, and the prediction of a run that tested it."""
    predicted: dict[str, tuple[Case, np.ndarray, np.ndarray, np.ndarray]] = {}
    for run in runs:
        tested = {found.case.id for found in ranked if found.case in run.tested}
        if ids := tested - predicted.keys():
            root = None if run.sets else data_root  # which is that of one set
            predicted |= {p[0].id: p for p in predict_tested(run, ids, trust, root)}
    cases, images, targets, preds = zip(*(predicted[o.case.id] for o in ranked), strict=True)
    names = [
        f"{i}. {f'{o.case.id} {o.class_name}'.strip()}: doubt {o.doubt:.1f}, Dice {o.dice:.3f}"
        for i, o in enumerate(ranked, 1)
    ]
    pictures = [*zip(images, preds, strict=True)]
    _save_outlines(path, pictures, names, [""] * len(names), cases[0].classes, targets)


def choose_cases(cases: Sequence[Case], oddities: Mapping[str, list[str]], n: int) -> list[Case]:
    """Chooses up to n cases, the odd ones first."""
    by_oddity = defaultdict(list)
    for case in cases:
        by_oddity[tuple(oddities.get(case.id, ()))].append(case)
    regular = by_oddity.pop((), [])
    layers = zip_longest(*(_spread(group, n) for group in by_oddity.values()))
    odd = [case for case in chain.from_iterable(layers) if case is not None][:n]
    return odd + _spread(regular, n - len(odd))


def _spread(cases: Sequence[Case], n: int) -> list[Case]:
    """Picks up to n cases at even distances."""
    n = min(n, len(cases))
    return [cases[(2 * i + 1) * len(cases) // (2 * n)] for i in range(n)]


def _save_outlines(
    path: str | Path,
    pictures: Sequence[tuple[np.ndarray, np.ndarray]],
    names: Sequence[str],
    oddities: Sequence[str],
    legend: Classes = ONE_CLASS,
    annotations: Sequence[np.ndarray] = (),
) -> None:
    """Draws pictures in rows of four, each with the outline of its mask.

    Args:
        path: PNG to write.
        pictures: Image, uint8 (H, W, 3), and mask, uint8 (H, W) of class numbers, of any sizes.
        names: A line below each picture.
        oddities: What is odd about each, below its name; its frame is red unless it is empty.
        legend: Classes of the masks, whose colours are named above, if there are several.
        annotations: A second mask of each picture, which is outlined with dashes.
    """
    columns = min(4, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    tallest = min(2, max(image.shape[0] / image.shape[1] for image, _ in pictures))
    texts = [
        "\n".join(line for text in lines for line in textwrap.wrap(text, 46))
        for lines in zip(names, oddities, strict=True)
    ]
    height = 3 * tallest + 0.16 * max(text.count("\n") + 1 for text in texts) + 0.15
    figure = Figure(
        figsize=(3 * columns, height * rows + 0.3 * legend.is_multiclass), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(pictures) :]:
        axis.set_axis_off()
    tiles = zip_longest(axes[: len(pictures)], pictures, annotations, texts, oddities)
    for axis, (image, mask), second, text, odd in tiles:
        small, small_mask = _shrink(image, mask)
        width = math.ceil(max(small_mask.shape) / 200)
        axis.imshow(draw_contours(small, small_mask, legend, width))
        if second is not None:
            _draw_dashes(axis, _shrink(image, second)[1], legend)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(text, fontsize=8, parse_math=False, color="firebrick" if odd else "black")
        axis.spines[:].set(color="firebrick" if odd else "black", linewidth=2 if odd else 0.5)
    add_legend(figure, legend)
    save_figure(figure, path)


def _draw_dashes(axis: Axes, mask: np.ndarray, classes: Classes) -> None:
    """Outlines a mask in a picture, in the colours of its classes or in `ANNOTATION`."""
    for number in classes.foreground:
        region = np.pad(mask == number, 1)
        colour = classes.palette[number] / 255 if classes.is_multiclass else ANNOTATION
        if region.any():
            positions = (np.arange(-1, length + 1) for length in mask.shape[::-1])
            axis.contour(*positions, region, [0.5], colors=[colour], linestyles="dashed")
    axis.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))


def _shrink(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shrinks image and mask to a tile; a lesion of one pixel stays."""
    step = math.ceil(max(mask.shape) / TILE)
    if step == 1:
        return image, mask
    small = np.asarray(Image.fromarray(image).reduce(step))
    starts = [range(0, length, step) for length in mask.shape]
    return small, np.maximum.reduceat(np.maximum.reduceat(mask, starts[0], 0), starts[1], 1)
