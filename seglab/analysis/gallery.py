"""Images of test cases and predictions for the report, as data URLs and SVG outlines."""

import base64
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seglab.analysis.figures import ERROR_LEGEND, colorize_mask, error_map
from seglab.analysis.rows import Row
from seglab.core.errors import InputError
from seglab.data.cache import hash_cases, hash_files
from seglab.data.cases import Case, read_pair, with_classes
from seglab.data.classes import ONE_CLASS, Classes, make_classes
from seglab.data.layouts import find_cases
from seglab.data.masks import read_mask
from seglab.runs.paths import refuse_damaged
from seglab.runs.records import Run, open_run
from seglab.runs.tables import CaseKey

MAX_EDGE = 480  # pixels of a thumbnail's longer edge
WEBP_QUALITY = 70
OUTLINE_TOLERANCE = 0.6  # pixels of a thumbnail


def make_gallery(
    rows: Sequence[Row],
    n_cases: int,
    more_cases: Sequence[CaseKey],
    trust: tuple[str, ...],
    data_root: str | Path | None,
) -> dict[str, Any]:
    """Predict the cases with the lowest mean Dice or confidence, and draw them for report.html.

    Of each row the seed with most test cases is shown. Each data set has cases of its own. If any
    case is shown, so are `more_cases`. For the other arguments see `report`.
    """
    seeds = [max(row.scored, key=lambda seed: len(row.scored[seed])) for row in rows]
    cases: dict[str, CaseKey] = {}  # by content, as the scores of rows are
    scores: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for number, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
        of_seed = replace(row, case_values={seed: row.case_values[seed]})
        confidence = of_seed.by_case("confidence")
        for case, dice in of_seed.by_case("dice_per_image").items():
            cases.setdefault(case.content, case)
            known = {} if math.isnan(confidence[case]) else {"confidence": confidence[case]}
            scores[case.content][number] = {"dice": dice, **known}

    def find_lowest(name: str) -> list[str]:
        by_set: dict[str, list[tuple[float, CaseKey]]] = defaultdict(list)
        for content, case in cases.items():
            values = [of_row[name] for of_row in scores[content].values() if name in of_row]
            if values:
                by_set[case.set].append((statistics.fmean(values), case))
        return [c.content for of_set in by_set.values() for _, c in sorted(of_set)[:n_cases]]

    more = [case.content for case in more_cases if case.content in scores]
    unsure = find_lowest("confidence")
    chosen = [*find_lowest("dice"), *unsure, *more] if n_cases else []
    cards: dict[str, dict[str, Any]] = {
        key: {"id": cases[key].id, "diagnosis": cases[key].diagnosis, "rows": scores[key]}
        for key in dict.fromkeys(chosen)
    }
    of_each = " of each data set" if any(case.set for case in cases.values()) else ""
    notes = []
    if len(cards) < len(scores):
        others = ", as many with the lowest confidence, and doubtful outlines" if unsure else ""
        notes.append(
            f"shown are the {n_cases} of {len(scores)} cases with the lowest Dice{of_each}"
            f"{others}; --cases N shows more or fewer"
        )
    drawn_rows = _draw_rows(rows, seeds, cards, notes, trust, data_root)
    return {
        "notes": notes,
        "rows": drawn_rows,
        "errors": ERROR_LEGEND,
        "cases": [*cards.values()],
    }


def _draw_rows(
    rows: Sequence[Row],
    seeds: Sequence[str],
    cards: dict[str, dict[str, Any]],
    notes: list[str],
    trust: tuple[str, ...],
    data_root: str | Path | None,
) -> list[dict[str, Any]]:
    """Draw the predictions of rows on the cards; notes say what could not be drawn."""
    drawn_rows = []
    for number, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
        drawn_row: dict[str, Any] = {
            "label": row.label,
            "seed": seed if len(row.case_values) > 1 else "",
            "legend": [],
        }
        drawn_rows.append(drawn_row)
        for run in row.runs_of_seed(seed):
            try:
                classes, left_out = _draw_predictions(run, number, cards, trust, data_root)
                drawn_row["legend"] = _make_legend(classes)
            except InputError as error:
                notes.append(f"{run.folder.name}: no predictions are shown: {error}")
                continue
            if left_out:
                notes.append(
                    f"{run.folder.name}: no predictions are shown of {', '.join(left_out)}: image "
                    "or mask is missing or has changed since the run"
                )
    return drawn_rows


def _draw_predictions(
    run: Run,
    number: int,
    cards: dict[str, dict[str, Any]],
    trust: tuple[str, ...],
    data_root: str | Path | None,
) -> tuple[Classes, list[str]]:
    """Predict the cases of a run, draw them on the cards, and return classes and ids left out."""
    found = {case.id: cards[case.content] for case in run.tested if case.content in cards}
    wanted = {id: card for id, card in found.items() if number in card["rows"]}
    classes = ONE_CLASS
    for case, image, target, pred in predict_tested(run, {*wanted}, trust, data_root):
        card, classes = wanted.pop(case.id), case.classes
        card |= draw_image(image)
        card["rows"][number] |= draw_prediction(pred, target, classes)
    return classes, [*wanted]


def predict_tested(
    run: Run, ids: Collection[str], trust: tuple[str, ...], data_root: str | Path | None
) -> Iterator[tuple[Case, np.ndarray, np.ndarray, np.ndarray]]:
    """Predict test cases of a run again, except those that have changed or are missing.

    Of imported masks those that were scored are read.

    Yields:
        The case, its image, uint8 (H, W, 3), its mask and the prediction, uint8 (H, W) of class
        numbers.

    Raises:
        InputError: The run, or its data, cannot be read.
    """
    if run.status == "evaluated":
        raise InputError("evaluate keeps no masks; predict writes them")
    if run.status == "imported":
        data = run.config["data"]
        root = data["root"] if data_root is None else data_root
        with refuse_damaged(run.paths.config):
            classes = make_classes([*run.classes])
            found = with_classes(find_cases(root, mask_suffix=data["mask_suffix"]), classes)
        for case in _select_unchanged(found, run, ids):
            mask = read_mask(run.paths.masks / f"{case.id}.png", classes)
            yield case, *read_pair(case), mask
        return
    # Both import torch.
    from seglab.inference.evaluate import load_run_model, read_cases
    from seglab.inference.predictor import predict_cases

    opened = open_run(run.folder, trust, data_root)
    model = load_run_model(opened, trust)
    cases = _select_unchanged(read_cases(opened), run, ids)
    for case, image, target, prediction in predict_cases(model.predictor, cases, run.folder.name):
        yield case, image, target, model.make_mask(prediction.prob)


def _select_unchanged(cases: Sequence[Case], run: Run, ids: Collection[str]) -> list[Case]:
    """Return the cases with these ids whose files are those that the run tested."""
    chosen = [case for case in cases if case.id in ids]
    hashes = hash_cases(chosen, hash_files(chosen))
    return [case for case in chosen if hashes[case.id] == run.sha256[case.id]]


def _make_legend(classes: Classes) -> list[tuple[str, str]]:
    """Name and colour of each class except background; empty in the binary case."""
    colours = [f"#{bytes(rgb).hex()}" for rgb in classes.palette]
    return [*zip(classes.names, colours, strict=True)][1:] if classes.is_multiclass else []


def draw_image(image: np.ndarray) -> dict[str, Any]:
    """Draw an image, uint8 (H, W, 3), as a thumbnail; `width` and `height` are the original's."""
    height, width = image.shape[:2]
    thumbnail = _to_url(_shrink(image, Image.Resampling.LANCZOS), quality=WEBP_QUALITY)
    return {"image": thumbnail, "width": width, "height": height}


def draw_prediction(pred: np.ndarray, target: np.ndarray, classes: Classes) -> dict[str, Any]:
    """Draw thumbnails and outlines of two masks, uint8 (H, W) of class numbers."""
    pred, target = _shrink(pred), _shrink(target)
    return {
        "prediction": _to_url(colorize_mask(pred, classes), lossless=True),
        "target": _to_url(colorize_mask(target, classes), lossless=True),
        "errors": _to_url(error_map(pred, target), lossless=True),
        "prediction_outlines": trace_outlines(pred, classes),
        "target_outlines": trace_outlines(target, classes),
    }


def trace_outlines(mask: np.ndarray, classes: Classes) -> list[str]:
    """Return an SVG path for each class except background of a mask, in a square of side 1."""
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
