"""Images of test cases and predictions for the report, as data URLs and SVG outlines."""

import base64
import io
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seglab.analysis.figures import ERROR_LEGEND, ERROR_LEGEND_OF_CLASSES, colorize_mask, error_map
from seglab.analysis.rows import Row
from seglab.core.errors import InputError
from seglab.data.classes import Classes
from seglab.runs.records import Run, open_run
from seglab.runs.tables import Case

MAX_EDGE = 480  # pixels of a thumbnail's longer edge
WEBP_QUALITY = 70
OUTLINE_TOLERANCE = 0.6  # pixels of a thumbnail


@dataclass(frozen=True)
class ReportRow:
    """A row whose curves and predictions the report shows.

    Attributes:
        row: The row.
        seed: The seed whose predictions are shown: the first with most test cases.
        runs: The runs of this seed.
        dice: Dice of each test case; with several classes the mean over all but background.
    """

    row: Row
    seed: str
    runs: list[Run]
    dice: dict[Case, float]


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
        report_rows: Rows whose predictions are shown.
        n_cases: Number of cases with the lowest mean Dice that are shown.
        trust: Names of code that configs may hold, as in `open_run`.
        data_root: Where the data is today; None for where it was.

    Returns:
        `rows` and `cases` as report.html reads them, and `notes` on what is not shown.
    """
    dice: dict[Case, dict[int, float]] = {}
    for number, report_row in enumerate(report_rows):
        for case, value in report_row.dice.items():
            dice.setdefault(case, {})[number] = value
    worst_first = sorted(dice, key=lambda case: (statistics.fmean(dice[case].values()), case))
    cards: dict[tuple[str, str], dict[str, Any]] = {}
    for case in worst_first[:n_cases]:
        id, sha256, diagnosis = case
        by_row = {number: {"dice": value} for number, value in dice[case].items()}
        cards[id, sha256] = {"id": id, "diagnosis": diagnosis, "rows": by_row}
    rows: list[dict[str, Any]] = [
        {
            "label": report_row.row.label,
            "seed": report_row.seed if len(report_row.row.counts) > 1 else "",
            "legend": [],
            "errors": ERROR_LEGEND_OF_CLASSES if report_row.row.classes else ERROR_LEGEND,
        }
        for report_row in report_rows
    ]
    notes = []
    if len(cards) < len(dice):
        notes.append(
            f"shown are the {len(cards)} of {len(dice)} cases with the lowest Dice; --cases N "
            "shows more or fewer"
        )
    for number, report_row in enumerate(report_rows):
        for run in report_row.runs:
            try:
                for key, image, target, pred, classes in _predict(run, {*cards}, trust, data_root):
                    cards[key] |= draw_image(image)
                    cards[key]["rows"][number] |= draw_prediction(pred, target, classes)
                    rows[number]["legend"] = _make_legend(classes)
            except InputError as error:
                notes.append(
                    f"{run.folder.name}: no predictions are shown: {error} (if the data has only "
                    "moved, name its folder with --data)"
                )
    return {"notes": notes, "rows": rows, "cases": [*cards.values()]}


def _predict(
    run: Run, wanted: set[tuple[str, str]], trust: tuple[str, ...], data_root: str | Path | None
) -> Iterator[tuple[tuple[str, str], np.ndarray, np.ndarray, np.ndarray, Classes]]:
    """Predict the wanted test cases (id and hash) as `seglab.inference.evaluate` does.

    Yields:
        The case's id and hash, its image, its mask, the predicted mask, and their classes.

    Raises:
        InputError: Checkpoint or data cannot be read, or a test case has changed.
    """
    from seglab.inference.evaluate import load_run_model, read_test_cases  # torch
    from seglab.inference.predictor import predict_cases

    opened = open_run(run.folder, trust)
    if data_root is not None:
        opened.config["data"]["root"] = str(Path(data_root).absolute())
    model = load_run_model(opened, trust)
    cases = read_test_cases([opened], model.classes)
    chosen = [case for case in cases if (case.id, run.sha256[case.id]) in wanted]
    for case, image, target, prob in predict_cases(model.predict, chosen, run.folder.name):
        key = case.id, run.sha256[case.id]
        yield key, image, target, model.make_mask(prob), model.classes


def _make_legend(classes: Classes) -> list[tuple[str, str]]:
    """Name and colour of each class but background; empty in the binary case."""
    colours = [f"#{bytes(rgb).hex()}" for rgb in classes.palette]
    return [*zip(classes.names, colours, strict=True)][1:] if classes.is_multiclass else []


def draw_image(image: np.ndarray) -> dict[str, Any]:
    """Draw an image, uint8 (H, W, 3), as a thumbnail; `width` and `height` are the original's."""
    height, width = image.shape[:2]
    thumbnail = _to_url(_shrink(image, Image.Resampling.LANCZOS), quality=WEBP_QUALITY)
    return {"image": thumbnail, "width": width, "height": height}


def draw_prediction(pred: np.ndarray, target: np.ndarray, classes: Classes) -> dict[str, Any]:
    """Draw a prediction and its target.

    Args:
        pred: Predicted class numbers, uint8 (H, W).
        target: Class numbers, uint8 (H, W).
        classes: Classes of both.

    Returns:
        Thumbnails `prediction`, `target` and `errors` as data URLs, and the outlines of both masks
        as of `trace_outlines`.
    """
    pred, target = _shrink(pred), _shrink(target)
    return {
        "prediction": _to_url(colorize_mask(pred, classes), lossless=True),
        "target": _to_url(colorize_mask(target, classes), lossless=True),
        "errors": _to_url(error_map(pred, target), lossless=True),
        "prediction_outlines": trace_outlines(pred, classes),
        "target_outlines": trace_outlines(target, classes),
    }


def trace_outlines(mask: np.ndarray, classes: Classes) -> list[str]:
    """Trace the outlines of a mask, uint8 (H, W) of class numbers.

    Returns:
        An SVG path for each class but background, in a square of side 1.
    """
    from skimage.measure import approximate_polygon, find_contours  # slow to import

    paths = []
    for number in classes.foreground:
        # Padded, so that the outline is closed where the class touches the frame.
        contours = find_contours(np.pad(mask == number, 1).astype(np.uint8), 0.5)
        path = ""
        for contour in contours:
            points = (approximate_polygon(contour, OUTLINE_TOLERANCE) - 0.5) / mask.shape
            path += f"M{'L'.join(f'{x:.4f} {y:.4f}' for y, x in points)}z"
        paths.append(path)
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
