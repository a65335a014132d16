"""One page of runs, to be opened from disk: their table, their curves, and every test case.

The page is `report.html` beside this file, with its data as JSON: what run directories of anyone
hold becomes text there, never markup, and the page's policy forbids everything but its own script.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from seglab.analysis.compare import make_lines, make_table
from seglab.analysis.figures import ERROR_LEGEND, ERROR_LEGEND_OF_CLASSES, colorize_mask, error_map
from seglab.analysis.grouping import make_rows
from seglab.analysis.paired import find_pairs, make_versus_table, run_paired_tests
from seglab.analysis.rows import Row
from seglab.analysis.tables import Table
from seglab.core.errors import InputError
from seglab.core.files import hash_file, read_json, write_atomic
from seglab.data.cases import with_classes
from seglab.data.classes import Classes
from seglab.runs.paths import RunPaths
from seglab.runs.records import Case, Run, find_runs, read_curve

if TYPE_CHECKING:
    from seglab.runs.directory import Run as OpenedRun

log = logging.getLogger(__name__)

NAME = "report.html"
METRICS = ("dice_per_image", "iou_per_image", "pixel_accuracy", "hd95", "surface_dice")
_COLUMNS = (
    "hd95 is in pixels, less is better; val is Dice per image of val; train s and images/s are of "
    "training, means over runs"
)
LIMIT = 15_000_000  # bytes of a page, whatever the number of cases
ROWS = 6  # with curves and pictures, at most: there are as many colours
# Characters that an image with its target takes at most, and a prediction with its errors.
_IMAGE, _PREDICTION = 30_000, 8_000
_LEAST = 0.25  # of these: rather than make pictures still smaller, cases are left out
_ENTRY = 400  # characters that a case takes besides
# The larger edge of pictures, in pixels: the first with which they are small enough.
_EDGES = (640, 512, 400, 320, 256, 192, 128, 96, 64, 48)
_QUALITY = 70  # of WebP
_SPAN = 1000  # outlines are drawn in a picture of this width
_TOLERANCES = (0.6, 1.2, 2.5, 5.0, 10.0)  # of outlines, in pixels of a picture of the largest edge
_POINTS = 200  # of a curve, at most
_LONGEST = 200  # characters of a name


@dataclass
class _Shown:
    """A row of the table, and whose predictions the page shows of it: those of one seed.

    Attributes:
        row: The row.
        seed: The first of its seeds that has all cases, or most.
        runs: That seed's.
        dice: Of each of their test cases, as the runs have stored it; of several classes the mean
            over all but background.
        predictions: By the case's hash: mask, errors and outline, ready for the page.
        legend: Of several classes name and colour of each but background; else empty.
    """

    row: Row
    seed: str
    runs: list[Run]
    dice: dict[Case, float]
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)
    legend: list[tuple[str, str]] = field(default_factory=list)


def report(
    dirs: Sequence[str | Path],
    out: str | Path | None = None,
    trust: tuple[str, ...] = (),
    versus: Sequence[tuple[str, str]] = (),
    data_root: str | Path | None = None,
) -> Path:
    """Writes one HTML file that needs no other: scores, curves and pictures of runs.

    Predictions are made anew from the checkpoints, as `seglab.inference.evaluate` does. What cannot be shown
    is said on the page, and in the log: data that is gone or has changed, a run without its
    checkpoint.

    Args:
        dirs: Folders of runs.
        out: The file to write; None for report.html in the folder, if it is one.
        trust: As in `seglab.runs.directory.open_run`.
        versus: Pairs of rows for paired tests of Dice, as in `seglab.analysis.compare.compare`.
        data_root: Where the runs' data lies today; None for where it lay.

    Returns:
        The file.

    Raises:
        InputError: No finished run, an unknown row, a damaged file, or a file that cannot be
            written.
    """
    out = _check_place(dirs, out)
    runs = find_runs(dirs)
    rows, notes = make_rows(runs)
    if not any(row.finished for row in rows):
        raise InputError(
            f"{dirs[0]}: holds no finished run; name a folder of runs that train.py has ended"
        )
    pairs = find_pairs(versus, rows)
    chosen_rows = _choose_rows([row for row in rows if row.finished], pairs)
    if len(chosen_rows) < sum(bool(row.finished) for row in rows):
        notes.append(
            f"training and test cases, below, are those of {ROWS} rows: of --versus, then of the "
            "best val; name folders of other runs for theirs"
        )
        log.warning("%s", notes[-1])
    lines = make_lines(rows, METRICS, by_diagnosis=True)
    whole = make_table(rows, [x for x in lines if x.diagnosis is None], notes, METRICS, False)
    parts = make_table(rows, lines, notes, METRICS, True)
    gallery = [_choose_seed(row) for row in chosen_rows]
    page: dict[str, Any] = {
        "title": _title(gallery, dirs),
        "about": whole.title,
        "facts": _facts([run for row in rows for run in row.finished]),
        "table": _table(whole, len(whole.head), [_COLUMNS, *whole.notes]),
        # Costs are those of all cases.
        "diagnoses": _table(
            *(parts, parts.n_text_columns + 1 + len(METRICS)),
            [note for note in parts.notes if note not in whole.notes],
        ),
        "curves": _curves(gallery),
    }
    if pairs:
        tests = make_versus_table(
            run_paired_tests(pairs, "dice_per_image"), pairs, "dice_per_image"
        )
        page["versus"] = _table(tests, len(tests.head), tests.notes) | {"above": tests.title}
        numbers = {row.label: number for number, row in enumerate(chosen_rows)}
        page["pairs"] = [
            [numbers[a.label], numbers[b.label]]
            for a, b in pairs
            if {a.label, b.label} <= {*numbers}
        ]
    room = LIMIT - len(_page(page)) - 2 * _LONGEST * len(gallery)
    cards = _cards(gallery)
    chosen, share = _choose_cases(cards, room, len(gallery))
    left = len(cards) - len(chosen)
    remarks = [
        f"{left} of {len(cards)} cases are left out, for a page of at most "
        f"{LIMIT / 1e6:g} MB: shown are the worst, and an even spread of the others"
    ] * (left > 0)
    images, gone = _draw(gallery, {card[0][1] for card in chosen}, share, trust, data_root)
    remarks += gone
    for remark in remarks:
        log.warning("%s", remark)
    page["gallery"] = {
        "notes": remarks,
        "rows": [_about(each) for each in gallery],
        "cases": [_card(card, gallery, images) for card in chosen],
    }
    write_atomic(out, _page(page))
    log.info("%s: %d cases, %.2g MB", out, len(chosen), out.stat().st_size / 1e6)
    return out


def _check_place(dirs: Sequence[str | Path], out: str | Path | None) -> Path:
    """Where to write; refused before minutes are spent on pictures."""
    if out is None:
        if len(dirs) > 1:
            raise InputError("--out: name the file to write, there are several folders")
        if not Path(dirs[0]).is_dir():
            raise InputError(f"{dirs[0]}: no such folder; expected one that holds runs")
        out = Path(dirs[0]) / NAME
    out = Path(out)
    if out.is_dir():
        raise InputError(f"{out}: is a folder; name a file with --out, such as {out / NAME}")
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
        raise InputError(f"{out}: cannot be written there; name another file with --out")
    return out


def _choose_rows(finished: list[Row], pairs: Sequence[tuple[Row, Row]]) -> list[Row]:
    """Chooses whose curves and predictions are shown, in the table's order."""
    worst = -math.inf
    by_val = sorted(finished, key=lambda row: worst if row.val is None else row.val, reverse=True)
    there = {row.label for row in finished}
    labels = [row.label for row in [*itertools.chain(*pairs), *by_val] if row.label in there]
    first = [*dict.fromkeys(labels)][:ROWS]
    return [row for row in finished if row.label in first]


def _choose_seed(row: Row) -> _Shown:
    seed = max(row.scored, key=lambda seed: len(row.scored[seed]))
    dice = replace(row, counts={seed: row.counts[seed]}).by_case("dice_per_image")
    return _Shown(row, seed, [run for run in row.finished if run.seed == seed], dice)


def _title(gallery: Sequence[_Shown], dirs: Sequence[str | Path]) -> str:
    """Names the rows, or where there are many the folders."""
    folders = dict.fromkeys(Path(d).resolve().name for d in dirs)
    labels = [each.row.label for each in gallery]
    return _clipped("; ".join(labels if len(labels) < 4 else folders))


def _facts(runs: list[Run]) -> list[tuple[str, str]]:
    """Where the numbers come from, by what that is called."""
    records = [record if isinstance(record, dict) else {} for record in map(_record, runs)]
    data = {f"{run.settings.get('data.root')} ({run.data[:12] or 'unknown'})" for run in runs}
    seeds = {run.seed for run in runs}
    code = defaultdict(set)
    for record in records:
        git, versions = (
            part if isinstance(part, dict) else {}
            for part in (record.get("git"), record.get("versions"))
        )
        commit = f"commit {str(git['commit'])[:12]}" if git.get("commit") else "no commit known"
        code[f"seglab {versions.get('seglab', '?')}, {commit}"].add(bool(git.get("dirty")))
    changed = {(True,): ", with changes", (False, True): ", some runs with changes"}
    times = [
        str(record[key])[:16] for record in records for key in ("start", "end") if record.get(key)
    ]
    when = " to ".join(dict.fromkeys((min(times), max(times)))).replace("T", " ") if times else ""
    facts = {
        "Data": "; ".join(sorted(data)),
        "Split": "; ".join(sorted({_split(run) for run in runs})),
        "Seeds" if len(seeds) > 1 else "Seed": ", ".join(sorted(seeds)),
        "Trained": f"{when} UTC" if when else "unknown",
        "Code": "; ".join(
            f"{of}{changed.get((*sorted(dirty),), '')}" for of, dirty in sorted(code.items())
        ),
    }
    return [(name, _clipped(text, 600)) for name, text in facts.items()]


def _record(run: Run) -> Any:
    return read_json(RunPaths(run.folder).record)


def _split(run: Run) -> str:
    said = run.settings
    file = said.get("data.split.file", "null")
    if file != "null":
        return f"{said['protocol']}, {Path(file).name}"
    return f"{said['protocol']}, seed {said.get('data.split.seed', 'unknown')}"


def _table(table: Table, columns: int, notes: Sequence[str]) -> dict[str, Any]:
    body = [cells[:columns] for cells in table.body]
    return {
        "head": table.head[:columns],
        "left": table.n_text_columns,
        "body": body,
        "notes": list(notes),
    }


def _curves(gallery: Sequence[_Shown]) -> list[dict[str, Any]]:
    """Losses and monitored metrics over epochs: the mean of a row's runs, and their reach."""
    panels: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, each in enumerate(gallery):
        for name in ("loss", each.row.monitor.removeprefix("val/")):
            for part in ("train", "val"):
                found = [read_curve(run, f"{part}/{name}") for run in each.row.finished]
                epochs = sorted({epoch for curve in found for epoch in curve})
                if epochs:
                    ends = np.linspace(0, len(epochs) - 1, min(len(epochs), _POINTS))
                    epochs = [epochs[i] for i in np.rint(ends).astype(int)]
                    reached = [[c[epoch] for c in found if epoch in c] for epoch in epochs]
                    mean = [math.fsum(values) / len(values) for values in reached]
                    values = {"mean": mean, "low": map(min, reached), "high": map(max, reached)}
                    rounded = {k: [float(f"{v:.5g}") for v in own] for k, own in values.items()}
                    panels[name].append({"row": number, "part": part, "epochs": epochs} | rounded)
    return [{"name": name, "lines": lines} for name, lines in panels.items()]


# A case as rows of the same classes test it, and the Dice of these by their number.
_Card = tuple[Case, dict[int, float]]


def _cards(gallery: Sequence[_Shown]) -> list[_Card]:
    """Every test case once, worst first."""
    found: dict[tuple[Case, tuple[str, ...]], dict[int, float]] = defaultdict(dict)
    for number, each in enumerate(gallery):
        for case, dice in each.dice.items():
            found[case, each.row.classes][number] = dice
    cards = [(case, dice) for (case, _), dice in found.items()]
    return sorted(cards, key=lambda card: (math.fsum(card[1].values()) / len(card[1]), card[0]))


def _choose_cases(cards: list[_Card], room: int, rows: int) -> tuple[list[_Card], float]:
    """Chooses cases such that their pictures fit.

    Args:
        cards: Worst first.
        room: Characters that are left.
        rows: How many predictions a case may have.

    Returns:
        All; or the worst, and an even spread of the others. And the share of `_IMAGE` and
        `_PREDICTION` that each may take.
    """
    pictures, rest = _IMAGE + rows * _PREDICTION, _ENTRY + 2 * _LONGEST + 40 * rows
    share = (room / max(1, len(cards)) - rest) / pictures
    if share >= _LEAST:
        return cards, min(1.0, share)
    kept = max(0, int(room / (_LEAST * pictures + rest)))
    worst, others = cards[: kept // 2], cards[kept // 2 :]
    spread = np.rint(np.linspace(0, len(others) - 1, kept - len(worst))).astype(int)
    return worst + [others[i] for i in spread], _LEAST


def _draw(
    gallery: Sequence[_Shown],
    wanted: set[str],
    share: float,
    trust: tuple[str, ...],
    data_root: str | Path | None,
) -> tuple[dict[tuple[str, tuple[str, ...]], dict[str, Any]], list[str]]:
    """Predicts cases, and makes the pictures.

    Args:
        gallery: Gets the predictions.
        wanted: Hashes of cases.
        share: Of the size that pictures may have.
        trust: As in `seglab.runs.directory.open_run`.
        data_root: As in `report`.

    Returns:
        Images and targets by the case's hash and the names of classes; and what is not there.
    """
    from seglab.runs.directory import open_run  # heavy

    images: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    notes = []
    jobs = [(each, run) for each in gallery for run in each.runs]
    for number, (each, run) in enumerate(jobs, 1):
        name = f"predicting, run {number} of {len(jobs)}"
        lost: dict[str, list[str]] = defaultdict(list)
        path = run.folder.name if run.path == "." else run.path
        try:
            opened = open_run(run.folder, trust)
            if data_root is not None:
                opened.config.data.root = str(Path(data_root).absolute())
            for sha256, image, target, pred, classes in _predict(opened, wanted, name, lost):
                key = sha256, each.row.classes
                if key not in images:
                    images[key] = draw_image(image, target, classes, int(share * _IMAGE))
                size = int(share * _PREDICTION)
                each.predictions[sha256] = draw_prediction(pred, target, classes, size)
                if classes.is_multiclass:
                    colours = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in classes.palette.tolist()]
                    each.legend = [*zip(classes.names, colours, strict=True)][1:]
        except InputError as error:
            notes.append(f"{path}: no pictures of what it predicts: {error}")
        for why, ids in lost.items():
            others = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
            named = ", ".join(_clipped(id) for id in ids[:5])
            notes.append(f"{path}: no pictures of cases that {why}: {named}{others}")
    return images, notes


def _predict(
    run: OpenedRun, wanted: set[str], name: str, lost: dict[str, list[str]]
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray, Classes]]:
    """Predicts test cases as `seglab.inference.evaluate.evaluate` does.

    Args:
        run: The run.
        wanted: Hashes of cases.
        name: For the progress bar.
        lost: Gets ids of cases that are not what they were, by what has happened to them.

    Yields:
        The case's hash, its image, its mask, the predicted mask, and their classes.

    Raises:
        InputError: Its checkpoint or its data cannot be read.
    """
    from seglab.data.cache import hash_cases
    from seglab.inference.evaluate import model_of, read_cases
    from seglab.inference.predictor import predict_cases

    model = model_of(run)
    try:
        cases = read_cases(run)
    except InputError as error:
        root = run.config.data.root
        raise InputError(
            f"{root}: its data cannot be read there; if it has moved, name its folder with --data"
        ) from error
    by_id = {case.id: case for case in with_classes(cases, model.classes)}
    there, hashes = [], run.split.sha256
    for id in run.split.test:
        if hashes[id] not in wanted:
            continue
        if id not in by_id:
            lost["are not in the data any more"].append(id)
            continue
        case = by_id[id]
        try:
            files = {file: hash_file(file) for file in (case.image, case.mask)}
        except OSError:
            lost["cannot be read any more"].append(id)
            continue
        if hash_cases([case], files)[id] == hashes[id]:
            there.append(case)
        else:
            lost["have changed since the run, image or mask"].append(id)
    for case, image, target, prob in predict_cases(model.predict, there, name):
        yield hashes[case.id], image, target, model.make_mask(prob), model.classes


def draw_image(
    image: np.ndarray, target: np.ndarray, classes: Classes, size: int
) -> dict[str, Any]:
    """Makes what the page has of a case: its image, its target and that one's outline.

    Args:
        image: uint8 (H, W, 3).
        target: Class numbers, uint8 (H, W).
        classes: Of the target.
        size: Characters that it may take. It has the largest edge of some with which it fits.

    Returns:
        `image` and `target` as data URLs, `outline` as of `trace`; `width` and `height` of the
        original, in pixels.
    """
    height, width = target.shape
    outline = trace(_resized(target, _EDGES[0]), classes, size // 3)
    for edge in _EDGES:
        drawn = {
            "image": _url(_resized(image, edge, Image.Resampling.LANCZOS), quality=_QUALITY),
            "target": _url(colorize_mask(_resized(target, edge), classes), lossless=True),
            "outline": outline,
        }
        if len(json.dumps(drawn)) <= size:
            break
    return drawn | {"width": width, "height": height}


def draw_prediction(
    pred: np.ndarray, target: np.ndarray, classes: Classes, size: int
) -> dict[str, Any]:
    """Makes what the page has of a prediction; arguments as of `draw_image`.

    Returns:
        `prediction` and `errors` as data URLs, without loss; `outline` as of `trace`.
    """
    outline = trace(_resized(pred, _EDGES[0]), classes, size // 3)
    for edge in _EDGES:
        found, there = _resized(pred, edge), _resized(target, edge)
        drawn = {
            "prediction": _url(colorize_mask(found, classes), lossless=True),
            "errors": _url(error_map(found, there), lossless=True),
            "outline": outline,
        }
        if len(json.dumps(drawn)) <= size:
            break
    return drawn


def trace(mask: np.ndarray, classes: Classes, size: int) -> list[str]:
    """Draws outlines of a mask as SVG paths, each class's in one.

    Where they do not fit they are drawn more coarsely, then the shortest are left out.

    Args:
        mask: Class numbers, uint8 (H, W).
        classes: Of the mask.
        size: Characters that all may take.

    Returns:
        A path for each class but background, in a picture of width 1000.
    """
    from skimage.measure import approximate_polygon, find_contours  # heavy

    def drawn(contour: np.ndarray, tolerance: float) -> str:
        line = approximate_polygon(contour, tolerance)[:-1, ::-1] - 0.5  # pixels' corners, x and y
        points = np.rint(line * _SPAN / mask.shape[1]).astype(int)
        if len(points) < 3:
            return ""
        steps = np.diff(points, axis=0).tolist()
        return f"M{points[0, 0]} {points[0, 1]}l" + " ".join(f"{x} {y}" for x, y in steps) + "z"

    numbers = classes.foreground
    room = size // len(numbers)
    paths = []
    for number in numbers:
        # Closed where the lesion touches the frame.
        part = np.pad(mask == number, 1).astype(np.uint8)
        contours = sorted(find_contours(part, 0.5), key=len, reverse=True)
        for tolerance in _TOLERANCES:
            path, fits = "", True
            for contour in contours:
                piece = drawn(contour, tolerance)
                fits = len(path) + len(piece) <= room
                if not fits:
                    break
                path += piece
            if fits:
                break
        paths.append(path)
    return paths


def _resized(
    picture: np.ndarray, edge: int, how: Image.Resampling = Image.Resampling.NEAREST
) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = min(1.0, edge / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(picture).resize(size, how))


def _url(picture: np.ndarray, **how: Any) -> str:
    """A picture as data URL of WebP: bool (H, W) or uint8 (H, W, 3)."""
    data = io.BytesIO()
    Image.fromarray(picture).convert("RGB").save(data, "WEBP", **how)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def _about(each: _Shown) -> dict[str, Any]:
    is_multiclass = len(each.row.counts) > 1
    return {
        "label": _clipped(each.row.label),
        "seed": _clipped(each.seed) if is_multiclass else "",
        "legend": each.legend,
        "errors": ERROR_LEGEND_OF_CLASSES if each.row.classes else ERROR_LEGEND,
    }


def _card(
    card: _Card,
    gallery: Sequence[_Shown],
    images: dict[tuple[str, tuple[str, ...]], dict[str, Any]],
) -> dict[str, Any]:
    (id, sha256, diagnosis), dice = card
    classes = gallery[next(iter(dice))].row.classes
    of_rows = {
        number: {"dice": value, **gallery[number].predictions.get(sha256, {})}
        for number, value in dice.items()
    }
    metadata = {"id": _clipped(id), "diagnosis": _clipped(diagnosis), "rows": of_rows}
    return metadata | images.get((sha256, classes), {})


def _clipped(text: str, length: int = _LONGEST) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _page(data: dict[str, Any]) -> str:
    """Puts data into the template, with a policy that lets nothing but its own parts act."""
    template = Path(__file__).with_suffix(".html").read_text("utf-8")
    allowed = {"img-src": ["data:"]}
    for tag in ("style", "script"):
        (own,) = re.findall(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        allowed[f"{tag}-src"] = [f"'sha256-{digest}'"]
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'"
    policy += "".join(f"; {name} {' '.join(sources)}" for name, sources in allowed.items())
    # ASCII, so that no name can break it; without '<' no name can end its element.
    text = json.dumps(data, separators=(",", ":")).replace("<", r"\u003c")
    return template.replace("POLICY", policy, 1).replace("DATA", text, 1)
