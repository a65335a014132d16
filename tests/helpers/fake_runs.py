"""Run directories that no training wrote, and their scores in plain loops."""

import csv
import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from seglab.analysis.compare import compare
from seglab.core.files import write_csv, write_json
from seglab.metrics.scores import METRICS
from seglab.runs.paths import FORMAT

CASES = {f"C{i}": ("common nevus", "melanoma")[i % 3 == 2] for i in range(9)}
SEEDS = (0, 1, 2)
FOLDS = 2
HOSTILE = "</script><img src=x onerror=alert(1)>"


def counts_of(model: str, seed: object, id: str) -> tuple[int, ...]:
    random = np.random.default_rng([*f"{model} {seed} {id}".encode()])
    return tuple(int(n) for n in random.integers(5, 1000, 4))


def boundary_of(model: str, seed: object, id: str) -> tuple[float, float]:
    tp, fp, *_ = counts_of(model, seed, id)
    return tp / 10, fp / 1000


def confidence_of(model: str, seed: object, id: str) -> float:
    tp, fp, fn, _ = counts_of(model, seed, id)
    return (2 * tp + fn) / (2 * tp + 2 * fn + fp)


def bins_of(seed: object, fold: object) -> list[list[int]]:
    random = np.random.default_rng([*f"{seed} {fold}".encode()])
    n = random.integers(10, 100, 15)
    return [[int(k), int(k // 3), int(k) * 2**22 + i] for i, k in enumerate(n)]


def config_of(folder: Path, model: str, seed: int, fold: int | None, **more: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": "baseline",
        "seed": seed,
        "monitor": "val/dice_per_image_net",
        "init": None,
        "run_dir": str(folder),
        "data": {
            "root": "/data/PH2",
            "size": 128,
            "classes": ["lesion"],
            "colours": None,
            "cache_dir": f"/cache/{folder.name}",
            "seed": seed,
            "cases": {"_target_": "seglab.data.layouts.find_cases", "layout": "ph2"},
            "split": {
                **{"val": 0.1, "test": 0.1, "fold": fold, "folds": FOLDS, "seed": 42},
                "file": None,
            },
        },
        "model": {"_target_": f"seglab.networks.{model}", "width": 16},
        "task": {"loss": {"_target_": "seglab.losses.bce"}, "optimizer": {"lr": 0.001}},
        "logger": {"tensorboard": {"save_dir": str(folder), "log": f"{folder}/log"}},
    }
    for key, value in more.items():
        *path, last = key.split("__")
        node = config
        for section in path:
            node = node[section]
        node[last] = value
    return config


def cases_of(fold: int | None, cases: dict[str, str] = CASES) -> list[str]:
    return list(cases)[:: 1 if fold is None else FOLDS] if not fold else list(cases)[fold::FOLDS]


def write_run(
    folder: Path,
    model: str = "UNet",
    seed: int = 0,
    fold: int | None = None,
    status: str = "finished",
    error: str | None = None,
    varies: dict[str, Any] | None = None,
    cases: dict[str, str] = CASES,
    source: str = "code",
    data: str = "data",
    **more: Any,
) -> Path:
    """A run directory: `more` changes its config, `task__optimizer__lr=...`."""
    folder.mkdir(parents=True)
    config = config_of(folder, model, seed, fold, **more)
    record: dict[str, Any] = {"format": FORMAT, "status": status, "error": error}
    if varies is not None:
        record["varies"] = varies
    record |= {"git": {"source_sha256": source}, "data_fingerprint": data}
    if status in ("planned", "failed"):
        write_json(folder / "run.json", record | {"config": config})
        return folder
    write_json(folder / "run.json", record)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if status != "finished":
        return folder
    _write_cases(folder, model, {"": (seed, {id: cases[id] for id in cases_of(fold, cases)})})
    metrics = [{"epoch": e, "val/dice_per_image_net": 0.1 * e + seed / 100} for e in (1, 2, 3)]
    write_csv(folder / "metrics.csv", metrics)
    summary: dict[str, Any] = {
        "val": {"dice_per_image": 0.5 + seed},
        "test": {"dice_per_image": 0.25},
        "baselines": {},
        "best_epoch": 3,
        "threshold": 0.5,
        "calibration": {"test": bins_of(seed, fold)},
        "parameters": 1000,
        "multiply_adds": 5_000_000,
        "seconds": {"fit": 99.0, "training_steps": 10.0 + seed},
        "images_per_second": 20.0 + (fold or 0),
    }
    write_json(folder / "summary.json", summary)
    return folder


def _write_cases(folder: Path, model: str, sets: dict[str, tuple[object, dict[str, str]]]) -> None:
    """splits.json and the tables of cases: of each set the seed of its values, and diagnoses."""

    def make_case_rows(who: str) -> list[dict[str, Any]]:
        out = []
        for name, (seed, cases) in sets.items():
            for id, diagnosis in cases.items():
                row = {"id": f"{name}/{id}", "set": name} if name else {"id": id}
                row |= {"diagnosis": diagnosis}
                row |= zip(("tp", "fp", "fn", "tn"), counts_of(who, seed, id), strict=True)
                row |= zip(("hd95", "surface_dice"), boundary_of(who, seed, id), strict=True)
                row |= {"outline_shift": "", "missed_pieces": 0, "extra_pieces": 0}
                row |= {"confidence": confidence_of(who, seed, id), "view_dice": ""}
                out.append(row)
        return out

    rows = make_case_rows(model)
    sha256 = {row["id"]: f"hash of {row['id'].rpartition('/')[2]}" for row in rows}
    split = {"train": [], "val": [], "test": [*sha256], "sha256": sha256}
    write_json(folder / "splits.json", split)
    write_csv(folder / "test_cases.csv", rows)
    names = ("otsu", "all_background")
    baselines = [{"baseline": name} | row for name in names for row in make_case_rows(name)]
    write_csv(folder / "baseline_cases.csv", baselines)


def write_sets_run(
    folder: Path,
    sets: dict[str, dict[str, str]],
    held_out: tuple[str, ...] = (),
    model: str = "UNet",
    seed: int = 0,
    fold: int | None = None,
    **more: Any,
) -> Path:
    """A run of several sets, given by their diagnoses by id; those held out are so in every fold.

    Its values are those of `write_run`; of sets held out they are of the seed '0 fold 1'.
    """
    own: dict[str, Any] = {name: {"root": name, "weight": 1} for name in sets}
    for name in held_out:
        own[name]["split"] = {"fold": None}
    write_run(folder, model, seed, fold, data__sets=own, **more)
    if not (folder / "summary.json").exists():
        return folder
    tested: dict[str, tuple[object, dict[str, str]]] = {}
    for name, cases in sets.items():
        if name in held_out:
            tested[name] = (f"{seed} fold {fold}" if fold is not None else seed, cases)
        else:
            tested[name] = (seed, {id: cases[id] for id in cases_of(fold, cases)})
    tested = {name: of_set for name, of_set in tested.items() if of_set[1]}
    _write_cases(folder, model, tested)
    summary = json.loads((folder / "summary.json").read_text())
    summary["val"] = {f"{name}/dice_per_image": 0.5 + i for i, name in enumerate(tested)}
    summary["test"] = {f"{name}/dice_per_image": 0.25 + i for i, name in enumerate(tested)}
    bins = {name: bins_of(f"{seed} {name}", fold) for name in tested}
    write_json(folder / "summary.json", summary | {"calibration": {"test": bins}})
    return folder


def write_sweep(root: Path, models: tuple[str, ...] = ("UNet", "SegNet")) -> Path:
    for model in models:
        for seed in SEEDS:
            for fold in range(FOLDS):
                varies = {"model": model, "seed": seed, "data.split.fold": fold}
                write_run(root / f"{model}-{seed}-{fold}", model, seed, fold, varies=varies)
    return root


def read_table(file: Path) -> dict[str, dict[str, str]]:
    with file.open(newline="") as text:
        return {
            row["label"]
            if row["diagnosis"] == "all"
            else f"{row['label']}, {row['diagnosis']}": row
            for row in csv.DictReader(text)
        }


def table_of(out: Path, *dirs: Path, **options: Any) -> dict[str, dict[str, str]]:
    compare(dirs, out=out, **options)
    return read_table(out / "table.csv")


def by_hand(who: str, seeds: tuple[object, ...], ids: list[str]) -> dict[str, list[float]]:
    """Metrics of each seed, in plain loops."""
    out: dict[str, list[float]] = {name: [] for name in METRICS if name != "ece"}
    for seed in seeds:
        counts = {id: counts_of(who, seed, id) for id in ids}
        dice = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn, tn in counts.values()]
        iou = [tp / (tp + fp + fn) for tp, fp, fn, tn in counts.values()]
        tp, fp, fn, tn = map(sum, zip(*counts.values(), strict=True))
        hd95, surface = zip(*(boundary_of(who, seed, id) for id in ids), strict=True)
        means = {
            **{"dice_per_image": dice, "iou_per_image": iou, "hd95": hd95},
            "surface_dice": surface,
            "aurc_random": [1 - d for d in dice],
            "thresholded_iou": [v if v >= 0.65 else 0 for v in iou],
        }
        found = {name: sum(values) / len(ids) for name, values in means.items()} | {
            "pixel_accuracy": (tp + tn) / (tp + fp + fn + tn),
            "iou_pooled": tp / (tp + fp + fn),
            "dice_pooled": 2 * tp / (2 * tp + fp + fn),
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
        }
        confidence = [confidence_of(who, seed, id) for id in ids]
        for name, keys in (("aurc", confidence), ("aurc_oracle", dice)):
            ranked = sorted(range(len(ids)), key=lambda i: -keys[i])
            risks = [sum(1 - dice[i] for i in ranked[:k]) / k for k in range(1, len(ids) + 1)]
            found[name] = sum(risks) / len(risks)
        for name, value in found.items():
            out[name].append(value)
    return out


def assert_values(record: dict[str, str], values: dict[str, list[float]]) -> None:
    for name, seeds in values.items():
        assert float(record[name]) == pytest.approx(sum(seeds) / len(seeds), abs=1e-12), name
        sd = statistics.stdev(seeds) if len(seeds) > 1 else None
        assert (
            record[f"{name}_sd"] == ""
            if sd is None
            else float(record[f"{name}_sd"]) == pytest.approx(sd, abs=1e-12)
        ), name
        assert float(record[f"{name}_low"]) <= float(record[f"{name}_high"])


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def read_page(page: Path) -> dict[str, Any]:
    """The data in an HTML report."""
    (found,) = re.findall(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(found)
