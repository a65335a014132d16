"""Images of test cases and predictions for the report, as data URLs and SVG outlines."""

from __future__ import annotations

import base64
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seglab.analysis.figures import ERROR_LEGEND, ERROR_LEGEND_OF_CLASSES, colorize_mask, error_map
from seglab.analysis.rows import Row
from seglab.core.errors import InputError
from seglab.data.cases import with_classes
from seglab.data.classes import Classes
from seglab.runs.records import Run
from seglab.runs.tables import Case

MAX_EDGE = 480  # pixels of a thumbnail's longer edge
WEBP_QUALITY = 70
OUTLINE_WIDTH = 1000  # width of the drawing that outlines are in
OUTLINE_TOLERANCE = 0.6  # pixels of a thumbnail
MAX_OUTLINES = 20  # per class
MAX_NAME_LENGTH = 200

CaseKey = tuple[Case, tuple[str, ...]]  # a case, and the classes that its mask tells apart


@dataclass
class ReportRow:
    """A row whose curves and predictions the report shows.

    Attributes:
        row: The row.
        seed: The seed whose predictions are shown: the first with most test cases.
        runs: The runs of this seed.
        dice: Dice of each test case; with several classes the mean over all but background.
        predictions: Mask, errors and outline of each prediction, by the case's hash.
        legend: Name and colour of each class but background; empty in the binary case.
    """

    row: Row
    seed: str
    runs: list[Run]
    dice: dict[Case, float]
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)
    legend: list[tuple[str, str]] = field(default_factory=list)


def make_report_row(row: Row) -> ReportRow:
    """Choose the seed of a row whose predictions are shown."""
    seed = max(row.scored, key=lambda seed: len(row.scored[seed]))
    dice = replace(row, counts={seed: row.counts[seed]}).by_case("dice_per_image")
    return ReportRow(row, seed, [run for run in row.finished if run.seed == seed], dice)


def make_gallery(
    report_rows: Sequence[ReportRow],
    n_cases: int,
    trust: tuple[str, ...],
    data_root: str | Path | None,
) -> dict[str, Any]:
    """Predict the worst test cases and draw them.

    Args:
        report_rows: Rows whose predictions are shown; they get predictions and legend.
        n_cases: Number of cases with the lowest mean Dice that are shown.
        trust: Names of code that configs may hold, as in `open_run`.
        data_root: Where the data is today; None for where it was.

    Returns:
        `rows` and `cases` as report.html reads them, and `notes` on what is not shown.
    """
    dice: dict[CaseKey, dict[int, float]] = defaultdict(dict)
    for number, report_row in enumerate(report_rows):
        for case, value in report_row.dice.items():
            dice[case, report_row.row.classes][number] = value
    worst_first = sorted(
        dice, key=lambda key: (math.fsum(dice[key].values()) / len(dice[key]), key)
    )
    chosen = worst_first[:n_cases]
    notes = []
    if len(chosen) < len(dice):
        notes.append(
            f"shown are the {len(chosen)} of {len(dice)} cases with the lowest Dice; --cases N "
            "shows more or fewer"
        )
    images, problems = _draw_cases(report_rows, {case[1] for case, _ in chosen}, trust, data_root)
    cards = []
    for key in chosen:
        (id, sha256, diagnosis), classes = key
        by_row = {
            number: {"dice": value, **report_rows[number].predictions.get(sha256, {})}
            for number, value in dice[key].items()
        }
        card = {"id": shorten(id), "diagnosis": shorten(diagnosis), "rows": by_row}
        cards.append(card | images.get((sha256, classes), {}))
    rows = [
        {
            "label": shorten(report_row.row.label),
            "seed": shorten(report_row.seed) if len(report_row.row.counts) > 1 else "",
            "legend": report_row.legend,
            "errors": ERROR_LEGEND_OF_CLASSES if report_row.row.classes else ERROR_LEGEND,
        }
        for report_row in report_rows
    ]
    return {"notes": notes + problems, "rows": rows, "cases": cards}


def _draw_cases(
    report_rows: Sequence[ReportRow],
    wanted: set[str],
    trust: tuple[str, ...],
    data_root: str | Path | None,
) -> tuple[dict[tuple[str, tuple[str, ...]], dict[str, Any]], list[str]]:
    """Predict cases and draw them.

    Args:
        report_rows: Rows; they get predictions and legend.
        wanted: Hashes of the cases.
        trust: As in `make_gallery`.
        data_root: As in `make_gallery`.

    Returns:
        Images and targets by the case's hash and the names of classes; and notes on what is
        missing.
    """
    from seglab.runs.opening import open_run  # torch

    images: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    notes = []
    jobs = [(report_row, run) for report_row in report_rows for run in report_row.runs]
    for number, (report_row, run) in enumerate(jobs, 1):
        path = run.folder.name if run.path == "." else run.path
        lost: list[str] = []
        try:
            opened = open_run(run.folder, trust)
            if data_root is not None:
                opened.config["data"]["root"] = str(Path(data_root).absolute())
            name = f"predicting, run {number} of {len(jobs)}"
            for sha256, image, target, pred, classes in _predict(opened, trust, wanted, name, lost):
                key = sha256, report_row.row.classes
                if key not in images:
                    images[key] = draw_image(image, target, classes)
                report_row.predictions[sha256] = draw_prediction(pred, target, classes)
                if classes.is_multiclass:
                    colours = [f"#{bytes(rgb).hex()}" for rgb in classes.palette]
                    report_row.legend = [*zip(classes.names, colours, strict=True)][1:]
        except InputError as error:
            notes.append(f"{path}: no predictions are shown: {error}")
        if lost:
            ids = ", ".join(map(shorten, lost[:5])) + f" and {len(lost) - 5} more" * (len(lost) > 5)
            notes.append(f"{path}: cases that are missing or have changed since the run: {ids}")
    return images, notes


def _predict(
    run: Run, trust: tuple[str, ...], wanted: set[str], name: str, lost: list[str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray, Classes]]:
    """Predict test cases as `seglab.inference.evaluate.evaluate` does.

    Args:
        run: The run, as `open_run` returns it.
        trust: As in `open_run`.
        wanted: Hashes of the cases.
        name: Title of the progress bar.
        lost: Gets ids of cases whose files are missing or have changed.

    Yields:
        The case's hash, its image, its mask, the predicted mask, and their classes.

    Raises:
        InputError: Checkpoint or data cannot be read.
    """
    from seglab.data.cache import hash_cases, hash_files
    from seglab.inference.evaluate import load_run_model, read_cases
    from seglab.inference.predictor import predict_cases

    model = load_run_model(run, trust)
    try:
        cases = read_cases(run)
    except InputError as error:
        root = run.config["data"]["root"]
        raise InputError(
            f"{root}: the data cannot be read; if it has moved, name its folder with --data"
        ) from error
    by_id = {case.id: case for case in with_classes(cases, model.classes)}
    hashes = run.sha256
    unchanged = []
    for id in (id for id in run.ids["test"] if hashes[id] in wanted):
        try:
            case = by_id[id]
            is_unchanged = hash_cases([case], hash_files([case]))[id] == hashes[id]
        except (KeyError, InputError):
            is_unchanged = False
        if is_unchanged:
            unchanged.append(case)
        else:
            lost.append(id)
    for case, image, target, prob in predict_cases(model.predict, unchanged, name):
        yield hashes[case.id], image, target, model.make_mask(prob), model.classes


def draw_image(image: np.ndarray, target: np.ndarray, classes: Classes) -> dict[str, Any]:
    """Draw a case.

    Args:
        image: uint8 (H, W, 3).
        target: Class numbers, uint8 (H, W).
        classes: Classes of the target.

    Returns:
        Thumbnails `image` and `target` as data URLs, the target's `outline` as of
        `trace_outlines`; `width` and `height` of the original in pixels.
    """
    height, width = target.shape
    return {
        "image": _to_url(_shrink(image, Image.Resampling.LANCZOS), quality=WEBP_QUALITY),
        "target": _to_url(colorize_mask(_shrink(target), classes), lossless=True),
        "outline": trace_outlines(_shrink(target), classes),
        "width": width,
        "height": height,
    }


def draw_prediction(pred: np.ndarray, target: np.ndarray, classes: Classes) -> dict[str, Any]:
    """Draw a prediction.

    Args:
        pred: Predicted class numbers, uint8 (H, W).
        target: Class numbers, uint8 (H, W).
        classes: Classes of both.

    Returns:
        Thumbnails `prediction` and `errors` as data URLs, the prediction's `outline` as of
        `trace_outlines`.
    """
    pred, target = _shrink(pred), _shrink(target)
    return {
        "prediction": _to_url(colorize_mask(pred, classes), lossless=True),
        "errors": _to_url(error_map(pred, target), lossless=True),
        "outline": trace_outlines(pred, classes),
    }


def trace_outlines(mask: np.ndarray, classes: Classes) -> list[str]:
    """Trace the outlines of a mask as SVG paths.

    Args:
        mask: Class numbers, uint8 (H, W).
        classes: Classes of the mask.

    Returns:
        A path for each class but background, with its longest outlines, in a drawing of width
        `OUTLINE_WIDTH`.
    """
    from skimage.measure import approximate_polygon, find_contours  # slow to import

    paths = []
    for number in classes.foreground:
        # Padded, so that the outline is closed where the lesion touches the frame.
        contours = find_contours(np.pad(mask == number, 1).astype(np.uint8), 0.5)
        pieces = []
        for contour in sorted(contours, key=len, reverse=True)[:MAX_OUTLINES]:
            # Pixels' corners, x and y.
            line = approximate_polygon(contour, OUTLINE_TOLERANCE)[:-1, ::-1] - 0.5
            points = np.rint(line * OUTLINE_WIDTH / mask.shape[1]).astype(int)
            if len(points) >= 3:
                steps = " ".join(f"{x} {y}" for x, y in np.diff(points, axis=0).tolist())
                pieces.append(f"M{points[0, 0]} {points[0, 1]}l{steps}z")
        paths.append("".join(pieces))
    return paths


def _shrink(
    picture: np.ndarray, resample: Image.Resampling = Image.Resampling.NEAREST
) -> np.ndarray:
    image = Image.fromarray(picture)
    image.thumbnail((MAX_EDGE, MAX_EDGE), resample)
    return np.asarray(image)


def _to_url(picture: np.ndarray, **options: Any) -> str:
    """Encode uint8 (H, W, 3) as data URL of WebP."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "WEBP", **options)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def shorten(text: str, length: int = MAX_NAME_LENGTH) -> str:
    """Shorten a text to a number of characters."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
