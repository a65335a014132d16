"""Scores masks that another program wrote, and leaves a directory that reads like a run."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from seglab.core.errors import InputError, name_some
from seglab.core.files import (
    create_folder,
    expand_user,
    hash_file,
    hash_json,
    write_atomic,
    write_csv,
    write_json,
)
from seglab.data.attributes import describe_case
from seglab.data.cache import hash_cases, hash_files
from seglab.data.cases import Case, read_pair, with_classes
from seglab.data.classes import ONE_CLASS, Classes
from seglab.data.datamodule import files_below
from seglab.data.duplicates import thumbnail
from seglab.data.images import read_image
from seglab.data.layouts import find_cases
from seglab.data.masks import read_mask
from seglab.data.splits import Split, read_folds
from seglab.data.threads import map_in_threads
from seglab.inference.drawing import encode_mask
from seglab.inference.imported_masks import ImportedMasks, find_imported_masks, read_probabilities
from seglab.inference.postprocessing import class_confidences
from seglab.inference.scoring import (
    PredictedCase,
    ScoredCase,
    Scores,
    score_predictions,
    summarize_sets,
)
from seglab.metrics.confidence import CONFIDENCE_COLUMNS
from seglab.metrics.scores import PIXEL_COUNTS
from seglab.metrics.scores import scores as metric_scores
from seglab.runs.paths import RunPaths
from seglab.runs.scored import write_scored
from seglab.runs.thumbnails import find_seen

log = logging.getLogger(__name__)


def score(
    masks: str | Path,
    data_root: str | Path,
    name: str,
    out: str | Path,
    probabilities: str | Path | None = None,
    split: str | Path | None = None,
    pattern: str | None = None,
    resize: bool = False,
    mask_suffix: str | None = None,
    classes: Classes = ONE_CLASS,
) -> dict[str, Any]:
    """Score masks of any program as those of a network are, at the size of the pictures.

    `out` becomes a directory that `compare` and `report` read like a run, with the status
    'imported'. A case without a mask counts as one in which nothing was found.

    Args:
        masks: See `find_imported_masks`.
        data_root: Data set of any supported layout.
        name: What tables call the program.
        out: Folder to write, new or empty.
        probabilities: See `find_imported_masks`. Without them there is no calibration error and no
            confidence.
        split: A file that `read_folds` reads, with the cases that the program was trained on.
            Those of test are scored. None: all cases of the data set are, and what the program was
            trained on is unknown.
        pattern: See `find_imported_masks`.
        resize: Whether masks of another size than the picture are resized to it (nearest
            neighbour, probabilities bilinearly) instead of refused.
        mask_suffix: What names of the data set's own masks end with; None to recognise it.
        classes: Of all masks.

    Returns:
        The content of summary.json.

    Raises:
        InputError: A folder, mask or split cannot be read, no mask belongs to a case, a mask has
            another size than its picture, or `out` is not empty.
    """
    folder = expand_user(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--out {out}: is not empty; name a new folder")
    if not name.strip():
        raise InputError("--name: expected what tables shall call these masks")
    cases = with_classes(find_cases(data_root, mask_suffix=mask_suffix), classes)
    files = hash_files(cases)
    sha256 = hash_cases(cases, files)
    folds = [] if split is None else read_folds(split)
    used = _apply_split(sha256, folds, split)
    by_id = {case.id: case for case in cases}
    tested = [by_id[id] for id in used.test]
    found = find_imported_masks(cases, used.test, masks, probabilities, pattern)
    data = {
        "root": str(expand_user(data_root).absolute()),
        "mask_suffix": mask_suffix,
        "classes": [*classes.names],
        "split": {"file": split and str(expand_user(split).absolute())},
    }
    with create_folder(folder) as partial:
        paths = RunPaths(partial)
        scored = _score(paths, tested, found)
        resized = scored.resized
        if resized and not resize:
            raise InputError(
                f"{masks}: {len(resized)} of {len(found.masks)} masks, or their probabilities, "
                f"have another size than their picture ({name_some(resized)}); write them at the "
                "picture's size, or let --resize do it, which tables then say"
            )
        thumbnails = dict(zip(used.test, scored.thumbnails, strict=True))
        leaks = [id for fold in folds for id in _find_leaks(fold, by_id, sha256, thumbnails)]
        notes = _describe_masks(found, resized, scored.scores)
        notes += _describe_training(folds, sha256, leaks)
        summary = {**summarize_sets({"": scored.scores}), "val": {}, "n": len(tested)}
        write_json(paths.summary, summary | {"notes": notes})
        read = files_below(data_root, files)
        write_json(paths.data, {"root": data["root"], "files": read})
        of_files = {id: hash_file(file) for id, file in found.masks.items()}
        source = {"folder": str(expand_user(masks).absolute()), "sha256": of_files}
        record = {"data_fingerprint": hash_json(read), "notes": notes, "masks": source}
        config = {"name": name, "init": None, "data": data}
        protocol = "masks of another program"
        protocol += f", {len(folds)} folds" if len(folds) > 1 else ""
        write_scored(paths, "imported", config, used, protocol=protocol, **record)
    for metric, value in summary["test"].items():
        log.info("%-*s %.4f", max(map(len, summary["test"])), metric, value)
    for note in notes:
        log.warning("%s", note)
    log.info("%d cases; written to %s", len(tested), out)
    return summary | {"notes": notes}


class _Scored(NamedTuple):
    scores: Scores
    thumbnails: np.ndarray  # of the pictures, uint8 (N, S, S)
    resized: list[str]  # ids of the cases whose mask had another size


def _apply_split(
    sha256: Mapping[str, str], folds: Sequence[Split], file: str | Path | None
) -> Split:
    """Return which of the cases, by their hashes, are tested; of one fold also train and val."""
    if not folds:
        return Split([], [], [*sha256], "all cases", None, dict(sha256))
    test = sorted(id for fold in folds for id in fold.test)
    absent = [id for id in test if id not in sha256]
    if absent:
        raise InputError(
            f"{file}: {len(absent)} cases of 'test' are not in the data ({name_some(absent)}); "
            "name the data set that it splits with --data"
        )
    stored = {id: value for fold in folds for id, value in fold.sha256.items()}
    changed = [id for id in test if stored.get(id, sha256[id]) != sha256[id]]
    if changed:
        raise InputError(
            f"{file}: {len(changed)} cases of 'test' have other files than those that it was made "
            f"of ({name_some(changed)}); restore them, or remove 'sha256' from the split"
        )
    first, *others = folds
    train, val = (
        [id for id in part if id in sha256 and not others] for part in (first.train, first.val)
    )
    hashes = {id: sha256[id] for id in sorted({*train, *val, *test})}
    return replace(first, train=train, val=val, test=test, sha256=hashes)


def _score(paths: RunPaths, cases: Sequence[Case], found: ImportedMasks) -> _Scored:
    """Score masks, and write them and the tables of the cases."""
    attributes: list[dict[str, Any]] = []
    thumbnails: list[np.ndarray] = []
    resized: list[str] = []

    def on_case(scored: ScoredCase) -> None:
        attributes.append(describe_case(scored.case, scored.image, scored.target))
        thumbnails.append(thumbnail(scored.image))
        file = paths.masks / f"{scored.case.id}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, encode_mask(scored.pred, scored.case.classes))

    scores = score_predictions(_read_predictions(cases, found, resized), on_case)
    write_csv(paths.test_cases, scores.rows)
    write_csv(paths.case_attributes, attributes)
    return _Scored(scores, np.stack(thumbnails), resized)


def _read_predictions(
    cases: Sequence[Case], found: ImportedMasks, resized: list[str]
) -> Iterator[PredictedCase]:
    """Read masks and probabilities, resized to the pictures; adds the ids of these to a list."""
    for case in tqdm(cases, "scoring", unit="case", disable=None, leave=False):
        image, target = read_pair(case)
        pred, prob = np.zeros_like(target), np.zeros((0, *target.shape), np.float32)
        if case.id in found.masks:
            pred = _read_mask(found.masks[case.id], case.classes)
        if pred.shape != target.shape:
            resized.append(case.id)
            pred = _resize(pred, target.shape, Image.Resampling.NEAREST)
        confidence: list[dict[str, float | None]]
        confidence = [dict.fromkeys(CONFIDENCE_COLUMNS) for _ in case.classes.names]
        if found.probabilities:
            prob = _read_prob(case, found)
            if prob.shape[1:] != target.shape:
                resized += [case.id] if case.id not in resized else []
                channels = [_resize(p, target.shape, Image.Resampling.BILINEAR) for p in prob]
                prob = np.stack(channels)
            for columns, value in zip(confidence, class_confidences(prob, pred), strict=True):
                columns["confidence"] = value if case.id in found.masks else 0.0
        yield PredictedCase(case, image, target, prob, pred, confidence)


def _read_mask(file: Path, classes: Classes) -> np.ndarray:
    try:
        return read_mask(file, classes)
    except InputError as error:  # whose advice is for the masks of a data set
        reason, _, advice = str(error).partition("; ")
        advice = "probabilities belong to --probabilities" if "not a mask" in reason else advice
        raise InputError(f"{reason}; {advice}") from None


def _read_prob(case: Case, found: ImportedMasks) -> np.ndarray:
    """Read the probabilities of a case, float32 (C, h, w); without a mask, all is background."""
    channels = len(case.classes.names)
    if case.id in found.probabilities:
        return read_probabilities(found.probabilities[case.id], channels)
    prob = np.zeros((channels, *read_mask(case.mask, case.classes).shape), np.float32)
    prob[0] = case.classes.is_multiclass
    return prob


def _resize(array: np.ndarray, shape: tuple[int, ...], resample: Image.Resampling) -> np.ndarray:
    height, width = shape
    return np.asarray(Image.fromarray(array).resize((width, height), resample))


def _find_leaks(
    split: Split,
    cases: Mapping[str, Case],
    sha256: Mapping[str, str],
    thumbnails: Mapping[str, np.ndarray],
) -> list[str]:
    """Return the ids of test cases whose picture, or whose patient, was trained on."""
    trained = [cases[id] for id in (*split.train, *split.val) if id in cases]
    if not trained:
        return []

    def read(case: Case) -> np.ndarray:
        known = thumbnails.get(case.id)
        return thumbnail(read_image(case.image)) if known is None else known

    pictures = map_in_threads(read, trained, "reading", "case")
    seen = dict(zip((sha256[case.id] for case in trained), pictures, strict=True))
    of_test = {id: sha256[id] for id in split.test}
    of_pictures = np.stack([thumbnails[id] for id in split.test])
    found = {*find_seen(seen, of_test, of_pictures, find_duplicates=True)}
    patients = {case.patient for case in trained} - {""}
    return [id for id in split.test if id in found or cases[id].patient in patients]


def _describe_masks(found: ImportedMasks, resized: Sequence[str], scores: Scores) -> list[str]:
    """Return what a reader should know of the masks."""
    n, notes = len(found.masks), []
    if found.missing:
        notes.append(
            f"missing, and counted as nothing found: {len(found.missing)} of "
            f"{n + len(found.missing)} masks ({name_some(found.missing)})"
        )
    if resized:
        notes.append(
            "resized, as the mask or its probabilities had another size than the picture: "
            f"{len(resized)} of {n} masks ({name_some(resized)})"
        )
    if found.extra:
        names = name_some([file.name for file in found.extra])
        notes.append(f"not scored, as they belong to no case: {names}")
    counts = np.array([[row[column] for column in PIXEL_COUNTS] for row in scores.rows])
    dice = scores.values["dice_per_image"]
    # Columns of the counts that the inverted masks have.
    inverted = metric_scores(counts[:, [2, 3, 0, 1]])["dice_per_image"]
    if not scores.classes and inverted > max(dice, 0.5):
        notes.append(
            f"inverted, these masks would have a Dice of {inverted:.3f} and not {dice:.3f}; see "
            "whether they are bright, or not 0, where a lesion was found"
        )
    return notes


def _describe_training(
    folds: Sequence[Split], sha256: Mapping[str, str], leaks: Sequence[str]
) -> list[str]:
    """Return what is known of the cases that the program was trained on."""
    if not folds:
        return ["what it was trained on is unknown"]
    notes, n = [], sum(len(fold.test) for fold in folds)
    trained = {id for fold in folds for id in (*fold.train, *fold.val)}
    absent = trained - sha256.keys()
    if absent:
        notes.append(
            "trained on, but not in the data, and not compared with the test cases: "
            f"{len(absent)} of {len(trained)} cases"
        )
    if leaks:
        notes.append(
            f"scores are too high for new cases, as {len(leaks)} of {n} test cases "
            f"({name_some(leaks)}) were trained on: they, nearly the same pictures, or others of "
            "their patients"
        )
    return notes
