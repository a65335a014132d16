"""Tests trained networks on several data sets: networks in rows, data sets in columns."""

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from seglab.analysis.notes import MIN_CASES_FOR_INTERVAL, NARROW_INTERVAL_CAUTION
from seglab.analysis.rows import Score, format_score
from seglab.analysis.statistics import intervals
from seglab.analysis.tables import Table, format_plain, write_table
from seglab.core import files
from seglab.core.errors import InputError, check_number, name_some
from seglab.core.memory import keep_freed_memory
from seglab.data.cache import hash_cases, hash_files
from seglab.data.cases import Case, with_classes
from seglab.data.duplicates import thumbnail
from seglab.data.images import read_image
from seglab.data.layouts import find_cases
from seglab.data.threads import map_in_threads
from seglab.inference.models import Model, ensemble, find_members
from seglab.metrics.scores import confusion_counts, mean_terms, score_terms, scores
from seglab.runs.paths import refuse_damaged, refuse_run_files
from seglab.runs.records import UNKNOWN, open_run
from seglab.runs.thumbnails import find_trained_on, read_seen_cases

log = logging.getLogger(__name__)

# What a case is to the networks of a row. The first two are scored.
OUT_OF_FOLD, NEW, TRAINED_ON, NEAR = "out of fold", "new", "trained on", "near-duplicate"
SAVE_EVERY = 20  # cases


class DataSet:
    """A data set to test on: its cases, and the hashes of their files, by id."""

    def __init__(self, text: str) -> None:
        name, root = _split_name(text)
        if not files.expand_user(root).is_dir():
            raise InputError(f"--on {text}: no such folder; expected NAME=ROOT of a data set")
        cases = find_cases(root)
        self.name = name or files.expand_user(root).resolve().name
        self.cases = {case.id: case for case in cases}
        self.sha256 = hash_cases(cases, hash_files(cases))

    @cached_property
    def thumbnails(self) -> dict[str, np.ndarray]:
        """Small pictures of all cases, see `seglab.data.duplicates.thumbnail`, by id."""
        images = [case.image for case in self.cases.values()]
        found = map_in_threads(lambda file: thumbnail(read_image(file)), images, "reading", "case")
        return dict(zip(self.cases, found, strict=True))


class Networks:
    """The networks of a row: a run, or runs that differ in seed and fold alone.

    By the hash of a case's files, `tested` has the mean Dice of the runs that tested it, `dice`
    that of the ensemble, and `is_near` whether it is nearly a training image; `seen` are those of
    training images. The ensemble's values are kept for later calls.
    """

    def __init__(self, text: str, trust: tuple[str, ...], folder: Path | None) -> None:
        name, path = _split_name(text)
        self._trust = trust
        self._model: Model | None = None
        self.runs = [open_run(member, trust) for member in find_members(path)]
        self.label = name or self.runs[0].settings["name"]
        if (status := self.runs[0].status) != "finished":
            text = "%s: not finished (%s); its best network so far is tested"
            log.warning(text, self.label, status)
        if any(run.provenance.init.get("trained_on") == "unknown" for run in self.runs):
            log.warning("%s: started from weights that may have seen these cases", self.label)
        found = defaultdict(list)
        for run in self.runs:
            for case, values in run.tested.items():
                foreground = values[-max(1, len(values) - 1) :, :4]
                found[case.sha256].append(score_terms(foreground)["dice_per_image"][:, 0].mean())
        self.tested = {sha256: fmean(dice) for sha256, dice in found.items()}
        self.seen = {*chain(*(part for r in self.runs for part in read_seen_cases(r).values()))}
        # A checkpoint holds the settings that it predicts with.
        key = files.hash_json([files.hash_file(run.paths.best_checkpoint) for run in self.runs])
        folder = self.runs[0].paths.evaluations if folder is None else folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / f"scores-{key[:24]}.json"
        self.dice: dict[str, float] = {}
        self.is_near: dict[str, bool] = {}
        if self._file.exists():
            with refuse_damaged(self._file):
                stored = files.read_json(self._file)
                self.dice, self.is_near = stored["dice"], stored["is_near"]

    def describe_cases(self, data_set: DataSet) -> dict[str, str]:
        """Tell what each case of a data set is to these networks, by id."""
        kinds = {
            id: OUT_OF_FOLD if sha256 in self.tested else TRAINED_ON if sha256 in self.seen else NEW
            for id, sha256 in data_set.sha256.items()
        }
        new = {id: data_set.sha256[id] for id, kind in kinds.items() if kind == NEW}
        if unknown := {id: sha256 for id, sha256 in new.items() if sha256 not in self.is_near}:
            pictures = np.stack([data_set.thumbnails[id] for id in unknown])
            near = find_trained_on(self.runs, unknown, pictures)
            self.is_near |= {sha256: id in near for id, sha256 in unknown.items()}
            self._save()
        if near := [id for id, sha256 in new.items() if self.is_near[sha256]]:
            text = "%s: nearly the same as training images of %s, and left out: %s"
            log.warning(text, data_set.name, self.label, name_some(near))
        return kinds | dict.fromkeys(near, NEAR)

    def score(self, data_set: DataSet, ids: Sequence[str]) -> dict[str, float]:
        """Return the Dice of cases by id: as the runs tested them, else of the ensemble."""
        hashes = {id: data_set.sha256[id] for id in ids}
        known = {*self.tested, *self.dice}
        missing = {sha: data_set.cases[id] for id, sha in hashes.items() if sha not in known}
        if missing:
            self._predict(missing, f"{self.label} on {data_set.name}")
        dice = self.dice | self.tested
        return {id: dice[sha256] for id, sha256 in hashes.items()}

    def _predict(self, cases: Mapping[str, Case], name: str) -> None:
        from seglab.inference.evaluate import load_run_model  # both import torch
        from seglab.inference.predictor import predict_cases

        if self._model is None:
            self._model = ensemble([load_run_model(run, self._trust) for run in self.runs])
        model = self._model
        to_predict = with_classes([*cases.values()], model.classes)
        predictions = predict_cases(model.predictor, to_predict, name)
        try:
            for sha256, (_, _, target, prediction) in zip(cases, predictions, strict=True):
                pred = model.make_mask(prediction.prob)
                self.dice[sha256] = fmean(
                    scores(confusion_counts(pred == k, target == k)[None])["dice_per_image"]
                    for k in model.classes.foreground
                )
                if len(self.dice) % SAVE_EVERY == 0:
                    self._save()
        finally:
            self._save()

    def _save(self) -> None:
        files.write_json(self._file, {"dice": self.dice, "is_near": self.is_near})


def transfer(
    paths: Sequence[str | Path],
    on: Sequence[str],
    out: str | Path | None = None,
    limit: int | None = None,
    trust: tuple[str, ...] = (),
    width: int | None = None,
) -> str:
    """Make a table of Dice: networks in rows, by the data sets that they are tested on.

    Cases that runs of a row tested keep that score; others are predicted by its runs as an
    ensemble. Cases that any row was trained on, or nearly the same pictures, are left out.

    Args:
        paths: Runs, or sweeps over seed and fold alone, as PATH or NAME=PATH.
        on: Data sets of any layout, as NAME=ROOT.
        out: Folder for tables, figure, transfer.json for `report`, and the scores to go on with;
            by default these are kept in `evaluations` of each row's first run.
        limit: Greatest number of cases of each data set, the first by the hash of their ids.
        trust: See `open_run`.
        width: Columns of the terminal; None for no limit.

    Returns:
        The text to print.
    """
    keep_freed_memory()
    check_number("--limit", limit, int, 1, null=True)
    if out is not None:
        refuse_run_files(out)
        out = files.expand_user(out)
    rows = [Networks(str(text), trust, out) for text in paths]
    _check_names([row.label for row in rows])
    data_sets = [DataSet(text) for text in on]
    _check_names([data_set.name for data_set in data_sets])
    records: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for data_set in data_sets:
        kinds = [row.describe_cases(data_set) for row in rows]
        fair = [id for id in data_set.cases if {NEW, OUT_OF_FOLD}.issuperset(k[id] for k in kinds)]
        drawn = {*sorted(fair, key=files.hash_json)[:limit]}
        counted = [id for id in fair if id in drawn]
        for row, own in zip(rows, kinds, strict=True):
            dice = row.score(data_set, counted)
            place = {"row": row.label, "set": data_set.name}
            record = place | {"networks": len(row.runs), "cases": len(own), "fair": len(fair)}
            records.append(record | _summarize(own, dice))
            lines += [
                place | {"id": id, "dice_per_image": dice.get(id, ""), "how": own[id]} for id in own
            ]
    table = _make_table(records)
    if out is not None:
        _write(out, table, records, lines)
    return format_plain(table, width)


def _split_name(text: str) -> tuple[str, str]:
    """Split NAME=PATH; the name is empty where there is none, or where a path is called so."""
    name, sign, path = text.partition("=")
    return ("", text) if not sign or files.expand_user(text).exists() else (name, path)


def _check_names(names: Sequence[str]) -> None:
    if len({*names}) < len(names):
        raise InputError(f"{', '.join(names)}: expected different names; write NAME=PATH")


def _summarize(kinds: Mapping[str, str], dice: Mapping[str, float]) -> dict[str, Any]:
    """Count the cases of a cell, and score it: columns of transfer.csv."""
    found, n = [*kinds.values()], len(dice)
    tested = sum(kinds[id] == OUT_OF_FOLD for id in dice)
    summary: dict[str, Any] = {"trained_on": found.count(TRAINED_ON)}
    summary |= {"near_duplicates": found.count(NEAR), "n": n, "out_of_fold": tested}
    if dice:
        terms = mean_terms(np.array([*dice.values()]), np.ones(n, bool))
        summary["dice_per_image"] = math.fsum(dice.values()) / n
        summary |= zip(("low", "high"), intervals(terms[None, None])[0].tolist(), strict=True)
    return summary


def _make_table(records: Sequence[Mapping[str, Any]]) -> Table:
    cells, columns, notes = defaultdict(list), defaultdict(list), []
    for record in records:
        text, place = UNKNOWN, f"{record['row']} on {record['set']}"
        if record["n"]:
            score = Score(record["dice_per_image"], None, record["low"], record["high"])
            text = format_score("dice_per_image", score) + "†" * (record["out_of_fold"] > 0)
        if 0 < record["out_of_fold"] < record["n"]:
            notes.append(f"{place}: {record['out_of_fold']} of {record['n']} cases out of fold")
        cells[record["row"], str(record["networks"])].append(text)
        columns[record["set"], record["n"], record["fair"], record["cases"]].append(record)
    for (name, n, fair, n_all), column in columns.items():
        reasons = [
            f"{r['row']} {r['trained_on']}"
            + (f" and {near} nearly the same pictures" if (near := r["near_duplicates"]) else "")
            for r in column
            if r["trained_on"] + r["near_duplicates"]
        ]
        if reasons:
            left_out = f"{n_all - fair} of {n_all} cases are left out in each row"
            notes.append(f"{name}: {left_out}; in train or val of: {', '.join(reasons)}")
        if n < fair:
            notes.append(f"{name}: {n} of {fair} cases are tested, drawn by the hash of their ids")
    if any(record["out_of_fold"] for record in records):
        text = "each case by the networks that were not trained on it, one by one; values without"
        notes.insert(0, f"† out of fold: {text} † are of the mean probability of all networks")
    if any(record["n"] < MIN_CASES_FOR_INTERVAL for record in records):
        notes.append(NARROW_INTERVAL_CAUTION)
    head = ["trained as", "networks", *(f"{name} (n {n})" for name, n, *_ in columns)]
    title = "Dice per image at native resolution [95 % interval over cases]; columns: tested on"
    return Table(title, head, 1, [[*texts, *values] for texts, values in cells.items()], notes)


def _write(
    out: Path, table: Table, records: list[dict[str, Any]], cases: list[dict[str, Any]]
) -> None:
    from seglab.analysis.figures import save_heat_map  # matplotlib, slow to import

    write_table(out, "transfer", table, records)
    files.write_json(out / "transfer.json", table._asdict())
    files.write_csv(out / "transfer_cases.csv", cases)
    values = [record.get("dice_per_image", math.nan) for record in records]
    by_set = np.array(values).reshape(-1, len(table.body))
    save_heat_map(out / "transfer.png", by_set.T, [row[0] for row in table.body], table.head[2:])
