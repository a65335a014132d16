"""compare.py on run directories that the tests write: every number again, and nothing dropped."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml
from helpers.tiny import REPO, Ended
from matplotlib.figure import Figure
from PIL import Image

from seglab.analysis import figures
from seglab.analysis import statistics as stats
from seglab.analysis.compare import compare
from seglab.analysis.grouping import make_rows
from seglab.core.files import write_csv, write_json
from seglab.metrics.names import METRICS
from seglab.runs.records import find_runs

Script = Callable[..., Ended]

CASES = {f"C{i}": ("common nevus", "melanoma")[i % 3 == 2] for i in range(9)}
SEEDS = (0, 1, 2)
FOLDS = 2


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 99)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take half a second."""
    monkeypatch.setattr("seglab.analysis.compare.draw_figures", lambda *args: None)


def counts_of(model: str, seed: object, id: str) -> tuple[int, ...]:
    random = np.random.default_rng([*f"{model} {seed} {id}".encode()])
    return tuple(int(n) for n in random.integers(5, 1000, 4))


def boundary_of(model: str, seed: object, id: str) -> tuple[float, float]:
    tp, fp, *_ = counts_of(model, seed, id)
    return tp / 10, fp / 1000


def bins_of(seed: object, fold: object) -> list[list[int]]:
    random = np.random.default_rng([*f"{seed} {fold}".encode()])
    n = random.integers(10, 100, 15)
    return [[int(k), int(k // 3), int(k) * 2**22 + i] for i, k in enumerate(n)]


def config_of(folder: Path, model: str, seed: int, fold: int | None, **more: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": "baseline",
        "seed": seed,
        "monitor": "val/dice_per_image_net",
        "run_dir": str(folder),
        "data": {
            "root": "/data/PH2",
            "size": 128,
            "classes": ["lesion"],
            "colours": None,
            "cache_dir": f"/cache/{folder.name}",
            "seed": seed,
            "cases": {"_target_": "seglab.data.layouts.ph2_cases"},
            "split": {
                **{"val": 0.1, "test": 0.1, "fold": fold, "folds": FOLDS, "seed": 42},
                "file": None,
            },
        },
        "model": {"_target_": f"seglab.networks.{model}", "width": 16},
        "task": {"loss": {"_target_": "seglab.losses.bce"}, "optimizer": {"lr": 0.001}},
        "logger": {"save_dir": str(folder), "log": f"{folder}/log"},
    }
    for key, value in more.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node[part]
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
    record: dict[str, Any] = {"format": 1, "status": status, "error": error}
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
    ids = cases_of(fold, cases)
    sha256 = {id: f"hash of {id}" for id in ids}
    write_json(folder / "splits.json", {"train": [], "val": [], "test": ids, "sha256": sha256})

    def rows(who: str, seed: object) -> list[dict[str, Any]]:
        out = []
        for id in ids:
            row = {"id": id, "diagnosis": cases[id]}
            row |= dict(zip(("tp", "fp", "fn", "tn"), counts_of(who, seed, id), strict=True))
            row |= zip(("hd95", "surface_dice"), boundary_of(who, seed, id), strict=True)
            out.append(row)
        return out

    write_csv(folder / "test_cases.csv", rows(model, seed))
    write_csv(
        folder / "baseline_cases.csv",
        [{"baseline": b, **row} for b in ("otsu", "all_background") for row in rows(b, seed)],
    )
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
            "thresholded_iou": [v if v >= 0.65 else 0 for v in iou],
        }
        found = {name: sum(values) / len(ids) for name, values in means.items()} | {
            "pixel_accuracy": (tp + tn) / (tp + fp + fn + tn),
            "iou_pooled": tp / (tp + fp + fn),
            "dice_pooled": 2 * tp / (2 * tp + fp + fn),
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
        }
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


@pytest.mark.usefixtures("no_figures")
def test_folds_seeds_and_models_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 9_999)
    table = table_of(tmp_path / "out", write_sweep(tmp_path / "sweep"))
    assert list(table) == ["SegNet", "UNet", "all_background", "otsu"]
    for model in ("SegNet", "UNet"):
        record = table[model]
        assert_values(record, by_hand(model, SEEDS, list(CASES)))
        eces = []
        for seed in SEEDS:
            bins = np.array([bins_of(seed, fold) for fold in range(FOLDS)], float).sum(0)
            eces.append(abs(bins[:, 2] / 2**24 - bins[:, 1]).sum() / bins[:, 0].sum())
        assert float(record["ece"]) == pytest.approx(np.mean(eces), abs=1e-12)
        assert float(record["ece_sd"]) == pytest.approx(np.std(eces, ddof=1), abs=1e-12)
        assert record["ece_low"] == ""
        counts = np.array([[counts_of(model, s, id) for id in CASES] for s in SEEDS], float)
        tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
        plain = scipy.stats.bootstrap(
            ((2 * tp / (2 * tp + fp + fn)).mean(0),), np.mean, random_state=np.random.default_rng(0)
        ).confidence_interval
        ends = [float(record[f"dice_per_image_{end}"]) for end in ("low", "high")]
        # Rounding breaks ties there that are ties here.
        assert ends == pytest.approx([*plain], abs=1e-3)
        assert (record["n"], record["runs"], record["finished"]) == ("9", "6", "6")
        assert [float(record[k]) for k in ("parameters", "multiply_adds")] == [1000, 5e6]
        assert float(record["training_seconds"]) == 11
        assert float(record["images_per_second"]) == 20.5
    for name in ("all_background", "otsu"):
        assert_values(table[name], by_hand(name, (0,), list(CASES)))
        assert table[name]["status"] == "baseline"


def test_what_the_terminal_shows(tmp_path: Path, script: Script) -> None:
    root = write_sweep(tmp_path / "sweep")
    ended = script("compare", root)
    assert (ended.code, ended.err) == (0, "")
    above, _, head, first, *_ = ended.out.splitlines()
    assert above == (
        "9 test cases; 2 folds, each case out of fold once; split seed 42; scored at native "
        "resolution; seeds 0, 1, 2: mean ± standard deviation over seeds [95 % interval over cases]"
    )
    assert head.split("  ")[0] == "model"
    assert head.split()[1:5] == ["n", "dice_per_image", "iou_per_image", "pixel_accuracy"]
    assert head.split()[5:7] == ["val", "runs"]
    values = by_hand("SegNet", SEEDS, list(CASES))["dice_per_image"]
    mean, sd = statistics.mean(values), statistics.stdev(values)
    assert re.match(rf"SegNet +9 +{mean:.3f} ± {sd:.3f} \[0\.\d+, 0\.\d+\]  ", first)
    assert first.endswith("  1.500     6       1,000        0.005 G       11      20.5")
    assert not list(tmp_path.glob("[!s]*"))
    ended = script("compare", root, "--metrics", "hd95,ece,hd95")
    assert ended.out.splitlines()[2].split()[1:5] == ["n", "hd95", "ece", "val"]
    hd95 = statistics.mean(by_hand("SegNet", SEEDS, list(CASES))["hd95"])
    assert f" {hd95:.1f} ± " in ended.out.splitlines()[3]
    assert set(METRICS) < set(script("compare", root, "--metrics", "all").out.split())


@pytest.mark.usefixtures("no_figures")
def test_a_sweep_that_keeps_to_one_fold_lacks_no_other(tmp_path: Path, script: Script) -> None:
    for fold in (0, 1):
        for model in ("UNet", "SegNet"):
            for seed in (0, 1):
                folder = tmp_path / f"sweep{fold}" / f"{model}-{seed}"
                write_run(folder, model, seed, fold, varies={"model": model, "seed": seed})
    ended = script("compare", tmp_path / "sweep1")
    first, *lines = ended.out.splitlines()
    assert first.startswith("4 test cases; fold 1 of 2; split seed 42; ")
    assert "missing" not in ended.out
    assert not any(line.startswith("*") for line in lines)
    ended = script("compare", tmp_path / "sweep0", tmp_path / "sweep1")
    assert ended.out.startswith("9 test cases; 2 folds, each case out of fold once; ")
    write_run(tmp_path / "sweep1" / "UNet-1-0", "UNet", 1, 0, "interrupted", varies={"seed": 1})
    ended = script("compare", tmp_path / "sweep1")
    assert ended.out.startswith("4 test cases; 2 folds, each case out of fold once; ")
    assert "missing" in ended.out


def test_what_is_not_there_is_said_and_nothing_is_dropped(tmp_path: Path, script: Script) -> None:
    root = write_sweep(tmp_path / "sweep")
    shutil.rmtree(root / "UNet-1-1")
    shutil.rmtree(root / "UNet-2-0")
    error = f"OutOfMemoryError: line 1\n  line 2 \x1b[31m{'x' * 200}"
    write_run(root / "UNet-2-0", "UNet", 2, 0, "failed", error)
    write_run(root / "gone", "UNet", 0, 0, "failed", "RuntimeError: lr", task__optimizer__lr=9.0)
    write_run(root / "later", "UNet", 0, 0, "planned", task__optimizer__lr=0.5)
    write_run(root / "stopped", "UNet", 0, 0, "interrupted", task__optimizer__lr=0.25)
    write_run(root / "now", "UNet", 0, 0, "running", task__optimizer__lr=0.125)
    ended = script("compare", root, "--out", tmp_path / "out")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    row = next(line for line in lines if re.match("UNet +0.001 ", line))
    assert row.count("*") == 3
    assert " 4 of 6 " in row
    cut = "OutOfMemoryError: line 1 line 2 ?[31m"
    cut += "x" * (97 - len(cut)) + "..."
    assert (
        f"* UNet, lr=0.001: missing: seed 1 fold 1; failed ({cut}): seed 2 fold 0; "
        "left out of the values, as incomplete: seed 1, 2"
    ) in lines
    record = read_table(tmp_path / "out" / "table.csv")["UNet, lr=0.001"]
    assert (record["status"], record["runs"], record["n"]) == ("incomplete", "6", "9")
    assert_values(record, by_hand("UNet", (0,), list(CASES)))
    assert (record["training_seconds"], record["val_dice_per_image"]) == ("10.0", "1.25")
    for lr, word in (("9.0", "failed"), ("0.5", "planned"), ("0.25", "interrupted")):
        assert re.search(rf"^UNet +{lr} +- +{word} +{word} +{word} +- +0 of 2 ", ended.out, re.M)
    assert "UNet, lr=9.0: failed (RuntimeError: lr): seed 0 fold 0; missing: seed 0 fold 1\n" in (
        ended.out
    )
    assert re.search(r"^UNet +0.125 +- +running or killed ", ended.out, re.M)
    runs = list(csv.DictReader((tmp_path / "out" / "runs.csv").open(newline="")))
    assert sorted(r["run"] for r in runs) == sorted(p.name for p in root.iterdir())
    assert {r["status"] for r in runs} == {
        *("finished", "failed", "planned", "interrupted", "running")
    }


@pytest.mark.usefixtures("no_figures")
def test_values_are_of_seeds_that_tested_the_same_cases(tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "runs", ("UNet",))
    options: dict[str, Any] = {"versus": [("baseline, unet", "otsu")], "by_diagnosis": True}
    # A fold that no seed should have is a cell and a note, and no gap.
    write_run(root / "odd", "UNet", 0, 7, "failed", "no such fold", {"data.split.fold": 7})
    text = compare([root], out=tmp_path / "out", **options)
    table = read_table(tmp_path / "out" / "table.csv")
    assert_values(table["baseline, UNet"], by_hand("UNet", SEEDS, list(CASES)))
    assert " 6 of 7 " in text
    assert "UNet: failed (no such fold): seed 0 fold 7\n" in text
    assert "*" not in text
    # A seed that tested fewer cases than another is left out.
    shutil.rmtree(root / "UNet-1-1")
    few = dict(list(CASES.items())[:-2])
    write_run(root / "UNet-1-1", "UNet", 1, 1, cases=few, varies={"seed": 1})
    text = compare([root], out=tmp_path / "out", **options)
    table = read_table(tmp_path / "out" / "table.csv")
    kept = (0, 2)
    assert_values(table["baseline, UNet"], by_hand("UNet", kept, list(CASES)))
    melanomas = [id for id, named in CASES.items() if named == "melanoma"]
    assert_values(table["baseline, UNet, melanoma"], by_hand("UNet", kept, melanomas))
    assert (table["baseline, UNet"]["status"], table["baseline, UNet"]["training_seconds"]) == (
        "incomplete",
        "11.0",
    )
    assert "8 of 9 cases: seed 1; left out of the values, as incomplete: seed 1" in text
    (test,) = csv.DictReader((tmp_path / "out" / "versus.csv").open(newline=""))
    dice, otsu = (
        by_hand(who, seeds, list(CASES))["dice_per_image"]
        for who, seeds in (("UNet", kept), ("otsu", (0,)))
    )
    difference = statistics.mean(dice) - otsu[0]
    assert float(test["difference"]) == pytest.approx(difference, abs=1e-12)
    assert re.search(r"^baseline, UNet\* +otsu +9 +2, 1 ", text, re.M)
    assert "\n- \\* incomplete: the" in (tmp_path / "out" / "versus.md").read_text()
    # Seed 0 has the first fold, seeds 1 and 2 have the second: a case counts once.
    for name in ("UNet-0-1", "UNet-1-0", "UNet-2-0", "UNet-1-1"):
        shutil.rmtree(root / name)
    write_run(root / "UNet-1-1", "UNet", 1, 1, varies={"seed": 1})
    text = compare([root], "all", out=tmp_path / "out", **options)
    record = read_table(tmp_path / "out" / "table.csv")["baseline, UNet"]
    parts = [((0,), cases_of(0)), ((1, 2), cases_of(1))]
    by_case = [[by_hand("UNet", seeds, [id]) for id in ids] for seeds, ids in parts]
    for name in ("dice_per_image", "hd95"):
        values = [statistics.mean(found[name]) for own in by_case for found in own]
        assert float(record[name]) == pytest.approx(statistics.mean(values), abs=1e-12)
    counts = [
        np.mean([counts_of("UNet", seed, id) for seed in seeds], axis=0)
        for seeds, ids in parts
        for id in ids
    ]
    tp, fp, fn, _ = np.sum(counts, axis=0)
    assert float(record["dice_pooled"]) == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-12)
    assert (record["n"], record["dice_per_image_sd"], record["ece"]) == ("9", "", "")
    assert "no seed is complete: values are means over those that have a case" in text


@pytest.mark.usefixtures("no_figures")
def test_what_a_reader_is_warned_of(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    many = {f"C{i}": "" for i in range(50)}
    rates = {"task.optimizer.lr": "1", "model": "a"}
    write_run(root / "a", cases=many, varies=rates)
    text = compare([root])
    for words in ("too narrow", "states of seglab", "different data", "choose by val"):
        assert words not in text
    write_run(root / "b", seed=1, cases=many, source="code, mended", data="other")
    text = compare([root])
    assert "runs of 2 states of seglab's code stand in one table" in text
    assert "runs of one protocol read different data: baseline, UNet" in text
    assert "choose by val" not in text
    write_run(root / "c", status="pruned", error="at epoch 3", task__optimizer__lr=1.0)
    write_run(root / "d", "SegNet", cases=dict(list(many.items())[1:]))
    lines = compare([root]).splitlines()
    assert re.search(r"^UNet +1.0 +- +pruned +pruned +pruned +- +0 of 1 ", "\n".join(lines), re.M)
    assert "UNet, lr=1.0: pruned (at epoch 3): seed 0" in lines
    assert any(line.startswith("intervals over fewer than 50 cases are too") for line in lines)
    assert lines[-1] == "choose by val: test values of many rows flatter the best of them"
    shutil.rmtree(root / "c")
    assert "choose by val" not in compare([root])
    two = {"varies": {"task.optimizer.lr": 1, "model": "a"}, "task__optimizer__lr": 2.0}
    write_run(root / "e", "SegNet", **two)
    assert compare([root]).splitlines()[-1] == lines[-1]


def test_nothing_finished_at_all(tmp_path: Path, script: Script) -> None:
    write_run(tmp_path / "runs" / "a", status="failed", error="ValueError: no")
    ended = script("compare", tmp_path / "runs", "--out", tmp_path / "out", "--by-diagnosis")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("no finished run\n")
    assert "baseline, UNet: failed (ValueError: no): seed 0" in ended.out
    assert len(contents(tmp_path / "out")) == 7


def test_runs_without_a_config_are_rows_of_what_was_overridden(
    tmp_path: Path, script: Script
) -> None:
    root = tmp_path / "runs"
    write_run(root / "a")
    for i, record in enumerate(
        (
            {"status": "planned", "varies": {"model": "unet", "data.size": 64, "seed": 0}},
            {"status": "planned", "varies": {"model": "unet", "data.size": 64, "seed": 1}},
            {"status": "failed", "error": "E", "overrides": ["model=nets", "hydra.run.dir=x"]},
            {"status": "failed", "error": None},
        )
    ):
        (root / f"{i}").mkdir()
        write_json(root / f"{i}" / "run.json", {"format": 1} | record)
    out = script("compare", root).out
    assert re.search(r"^unet +64 +- +planned +planned +planned +- +0 of 2 ", out, re.M)
    assert "model=unet, size=64: planned: seed 0, seed 1" in out
    assert "model=nets: failed (E): seed -" in out
    assert "\n3: failed: seed -" in out  # by its path


def test_one_case_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", cases={"C1": ""})
    table = table_of(tmp_path / "out", tmp_path / "runs", by_diagnosis=True)
    assert_values(table["baseline, UNet"], by_hand("UNet", (0,), ["C1"]))
    assert_values(table["baseline, UNet, -"], by_hand("UNet", (0,), ["C1"]))
    assert table["baseline, UNet"]["dice_per_image_sd"] == ""
    record = table["baseline, UNet"]
    assert record["dice_per_image"] == record["dice_per_image_low"]
    above = (tmp_path / "out" / "table.md").read_text()
    assert above.startswith("1 test case; holdout; split seed 42; scored at native resolution; ")
    assert "seed 0: value [95 % interval over cases]\n" in above


@pytest.mark.usefixtures("no_figures")
def test_rows_of_each_diagnosis(tmp_path: Path) -> None:
    table = table_of(tmp_path / "out", write_sweep(tmp_path / "runs"), by_diagnosis=True)
    assert list(table)[:3] == ["SegNet", "SegNet, common nevus", "SegNet, melanoma"]
    for who, seeds in (("UNet", SEEDS), ("otsu", (0,))):
        for diagnosis in ("common nevus", "melanoma"):
            ids = [id for id, named in CASES.items() if named == diagnosis]
            record = table[f"{who}, {diagnosis}"]
            assert record["n"] == str(len(ids))
            assert_values(record, by_hand(who, seeds, ids))
            assert record["ece"] == ""


def test_seeds_that_rows_should_share(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    write_run(root / "a", data__split__val=0, varies={"seed": 0})
    write_run(root / "b", seed=1, varies={"seed": 1})
    write_run(root / "c", data__root="/elsewhere", seed=2)
    # Weights of one seed, batches of two: two cells.
    write_run(root / "d", data__root="/elsewhere", seed=2, data__seed=7)
    rows, notes = make_rows(find_runs([root]))
    cells = {
        row.label: [(*key, run.path if run else "") for key, run in row.cells.items()]
        for row in rows
        if row.finished
    }
    assert cells == {
        "root=/data/PH2, data.split.val=0": [("0", "", "a"), ("1", "", "")],
        "root=/data/PH2, data.split.val=0.1": [("0", "", ""), ("1", "", "b")],
        "root=/elsewhere, data.split.val=0.1": [("2", "", "c"), ("2 (data.seed 7)", "", "d")],
    }
    assert notes == []
    # Jobs of another sweep, and single runs, were never meant to have these seeds.
    write_run(root / "other" / "e", task__optimizer__lr=1.0, seed=3, varies={"seed": 3})
    write_run(root / "f", task__optimizer__lr=2.0, seed=4)
    rows, _ = make_rows(find_runs([root]))
    assert {row.settings["task.optimizer.lr"]: [*row.cells] for row in rows if row.finished} == {
        **{"1.0": [("3", "")], "2.0": [("4", "")]},
        "0.001": [("2", ""), ("2 (data.seed 7)", "")],
    }


@pytest.mark.usefixtures("no_figures")
def test_of_two_runs_of_one_config_one_is_used(tmp_path: Path, script: Script) -> None:
    root = tmp_path / "runs"
    for name in ("b", "a", "c/deep"):
        write_run(root / name)
    write_run(root / "0", status="failed", error="E")
    write_run(root / "1", status="interrupted", seed=1)
    write_run(root / "2", status="failed", error="E", seed=1)
    out = script("compare", root, "--out", tmp_path / "out").out
    assert "a and b have the same config: the first is used" in out
    assert "a and c/deep have the same config: the first is used" in out
    assert "* baseline, UNet: interrupted: seed 1" in out
    runs = list(csv.DictReader((tmp_path / "out" / "runs.csv").open(newline="")))
    assert [r["run"] for r in runs if r["used"] == "True"] == ["1", "a"]
    assert {r["row"] for r in runs} == {"baseline, UNet"}


def test_a_case_tested_twice_sets_runs_apart(tmp_path: Path, script: Script) -> None:
    root = tmp_path / "runs"
    write_run(root / "a", fold=0)
    write_run(root / "b", fold=1, cases=dict(list(CASES.items())[1:]))
    ended = script("compare", root)
    assert ended.code == 0
    assert "a and b test the same case, C2: each run has a row" in ended.out
    assert re.search(r"^a +5 .*\]  +0.500 +1  +1,000 ", ended.out, re.M)
    assert "rows were not tested on the same cases" in ended.out


@pytest.mark.usefixtures("no_figures")
def test_baselines_of_every_set_of_cases(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    write_sweep(root / "folds", ("UNet",))
    few = dict(list(CASES.items())[:4])
    write_run(root / "holdout", cases=few)
    text = compare([root], out=tmp_path / "out")
    table = read_table(tmp_path / "out" / "table.csv")
    assert list(table)[:2] == ["2 folds", "holdout"]
    assert_values(table["otsu (cases of 2 folds)"], by_hand("otsu", (0,), list(CASES)))
    assert_values(table["otsu (cases of holdout)"], by_hand("otsu", (0,), list(few)))
    assert "rows were not tested on the same cases" in text
    assert "4 to 9 test cases; 2 folds, each case out of fold once and holdout; " in text
    # Rows that lack folds need no baselines of their own.
    shutil.rmtree(root / "holdout")
    write_run(root / "part", "SegNet", 0, 0)
    table = table_of(tmp_path / "out", root)
    assert list(table) == ["SegNet", "UNet", "all_background", "otsu"]
    shutil.rmtree(root / "folds")
    table = table_of(tmp_path / "out", root)
    assert_values(table["otsu"], by_hand("otsu", (0,), cases_of(0)))


def test_equal_ids_of_other_pictures_are_other_cases(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    write_run(root / "a")
    write_run(root / "b", "SegNet")
    split = {"train": [], "val": [], "test": [*CASES]}
    write_json(root / "b" / "splits.json", split | {"sha256": {id: "other" for id in CASES}})
    text = compare([root], versus=[("unet", "segnet")])
    assert "rows were not tested on the same cases" in text
    assert re.search(r"UNet +SegNet +0 +1, 1 +- +- +-$", text, re.M)


@pytest.mark.usefixtures("no_figures")
def test_paired_tests(tmp_path: Path, script: Script) -> None:
    root = write_sweep(tmp_path / "runs")
    write_run(root / "gone", "Other", 0, 0, "failed", "E")
    out = tmp_path / "out"
    options = ("--versus", "unet", "otsu", "--versus", "UNet", "seg", "--versus", "other", "unet")
    ended = script("compare", root, *options, "--metric", "hd95", "--out", out)
    assert (ended.code, ended.err) == (0, "")
    tests = list(csv.DictReader((out / "versus.csv").open(newline="")))
    assert [(t["a"], t["b"]) for t in tests] == [
        *(("UNet", "otsu"), ("UNet", "SegNet"), ("Other", "UNet"))
    ]
    mean = {
        who: np.mean([[boundary_of(who, s, id)[0] for id in CASES] for s in seeds], axis=0)
        for who, seeds in (("UNet", SEEDS), ("SegNet", SEEDS), ("otsu", (0,)))
    }
    p = []
    for test, other in zip(tests, ("otsu", "SegNet"), strict=False):
        differences = mean["UNet"] - mean[other]
        plain = stats.paired_test(differences)
        signs = 1 - 2 * np.array(list(np.ndindex(*[2] * 9)))
        flipped = abs((signs * differences).mean(1))
        p.append(float(np.mean(flipped >= abs(differences.mean()) - 1e-9)))
        assert int(test["n"]) == 9
        assert float(test["difference"]) == pytest.approx(differences.mean(), abs=1e-12)
        assert float(test["low"]) == pytest.approx(plain.low, abs=1e-9)
        assert float(test["high"]) == pytest.approx(plain.high, abs=1e-9)
    # 512 flips are more than 99 here: exact where RESAMPLES is as shipped.
    assert all(0 < float(t["p"]) <= 1 for t in tests[:2])
    first, second = sorted(float(t["p"]) for t in tests[:2])
    holm = sorted(float(t["p_holm"]) for t in tests[:2])
    assert holm == pytest.approx([min(1, 2 * first), max(min(1, 2 * first), second)])
    assert (tests[2]["n"], tests[2]["p"]) == ("0", "")
    for text in ((out / "versus.md").read_text(), (out / "versus.tex").read_text(), ended.out):
        assert "over cases, for these trained networks" in text
        assert "less is better" in text
    assert re.search(r"UNet +otsu +9 +3, 1 ", ended.out)
    # A pair is tested once, in whatever order; files of an earlier call do not outlive it.
    again = (*options[:3], "--versus", "otsu", "UNet", *options[:3], "--metric", "hd95")
    assert (
        len(re.findall(r"^(?:UNet +otsu|otsu +UNet) ", script("compare", root, *again).out, re.M))
        == 1
    )
    assert script("compare", root, "--out", out).code == 0
    assert not list(out.glob("versus.*"))
    better = {id: "" for id in CASES}
    write_run(tmp_path / "apart" / "a", cases=better)
    write_run(tmp_path / "apart" / "b", "SegNet", cases=better)
    for name, dice in (("a", 900), ("b", 1)):
        rows = [
            {
                "id": id,
                "diagnosis": "",
                "tp": dice,
                "fp": 9,
                "fn": i,
                "tn": 1,
                "hd95": 1,
                "surface_dice": 1,
            }
            for i, id in enumerate(CASES)
        ]
        write_csv(tmp_path / "apart" / name / "test_cases.csv", rows)
    # Of 99 random flips none was as extreme: p is 2 / 100 or less.
    ended = script("compare", tmp_path / "apart", "--versus", "unet", "segnet")
    assert re.search(r"\]  <= 0.0200  <= 0.0200$", ended.out, re.M)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--versus", "x", "otsu"], "--versus 'x': expected the label of one row, or how it"),
        (["--versus", "", "otsu"], "there are 'SegNet', 'UNet', 'all_background', 'otsu'"),
        (["--metrics", "dice"], "--metrics dice: expected one of dice_per_image, iou_per_image, "),
        (["--versus", "UNET", "u"], "--versus 'UNET' 'u': both are the row 'UNet'; name two rows"),
        (["--metric", "ece"], "--metric ece: expected one of dice_per_image, "),
        (["--out", "/proc/none"], "/proc/none: "),
    ],
)
def test_options_that_mean_nothing(
    tmp_path: Path, script: Script, options: list[str], line: str
) -> None:
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", "SegNet")
    ended = script("compare", tmp_path / "runs", *options)
    assert ended.code == 1
    assert ended.out == ""
    assert line in ended.err
    assert ended.err.count("\n") == 1


def test_folders_without_runs(tmp_path: Path, script: Script) -> None:
    write_run(tmp_path / "runs" / "a")
    (tmp_path / "empty").mkdir()
    for folder, what in ((tmp_path / "empty", "holds no run"), (tmp_path / "no", "no such folder")):
        ended = script("compare", tmp_path / "runs", folder)
        assert ended.code == 1
        assert ended.err.startswith(f"error: {folder}: {what}")
        assert ended.err.count("\n") == 1


def test_what_lies_in_a_run_is_part_of_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "a")
    write_run(run / "reproductions" / "x", "SegNet")
    for folder, path in ((tmp_path / "runs", "a"), (run, ".")):
        assert [found.path for found in find_runs([folder])] == [path]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("run.json", '{"status": "odd"}'),
        ("run.json", '{"status": "finished", "varies": 3}'),
        ("run.json", '{"status": "planned", "config": ' + '{"a": ' * 990 + "1" + "}" * 991),
        ("config.yaml", None),
        ("config.yaml", "a: ["),
        ("config.yaml", "- 1"),
        ("config.yaml", "a: &a [1]\nb: *a"),
        ("config.yaml", "[" * 999),
        ("config.yaml", "\x00"),
        ("summary.json", None),
        ("summary.json", "{}"),
        ("summary.json", "[1]"),
        ("summary.json", '{"val": {}, "test": {"x": NaN}, "seconds": {"training_steps": 1}}'),
        (
            "summary.json",
            '{"val": {}, "test": {}, "seconds": {"training_steps": 1}, '
            '"calibration": {"test": [[1]]}}',
        ),
        (
            "summary.json",
            '{"val": {}, "test": {}, "seconds": {"training_steps": 1}, '
            f'"calibration": {{"test": {[[0, 1, 1]] * 15}}}}}',
        ),
        ("test_cases.csv", None),
        ("test_cases.csv", ""),
        ("test_cases.csv", "id,diagnosis,tp,fp,fn,tn\n"),
        ("test_cases.csv", "id,diagnosis,tp,fp,fn,tn\nC0,,1,1,1\n"),
        ("test_cases.csv", "id,diagnosis,tp,fp,fn,tn\nC0,,1,1,1,x\n"),
        ("test_cases.csv", "id,diagnosis,tp,fp,fn,tn\nC0,,1,1,1,-1\n"),
        ("test_cases.csv", "id,diagnosis,tp,fp,fn,tn\nC0,,0,0,0,0\n"),
        ("test_cases.csv", "id,diagnosis,tp,fp,fn,tn\nC0,,1,1,1,1\nC0,,1,1,1,1\n"),
        ("test_cases.csv", f"id,diagnosis,tp,fp,fn,tn\nC0,,1,1,1,{10**400}\n"),
        ("test_cases.csv", "id,diagnosis,tp,fp,fn,tn,hd95\nC0,,1,1,1,1,inf\n"),
        ("test_cases.csv", "id,diagnosis,tp,fp,fn,tn,hd95\nC0,,1,1,1,1,-1\n"),
        ("test_cases.csv", "id,diagnosis,tp,fp,fn,tn,surface_dice\nC0,,1,1,1,1,1.1\n"),
        ("baseline_cases.csv", None),
        ("baseline_cases.csv", "id,diagnosis,tp,fp,fn,tn\nC0,,1,1,1,1\n"),
        ("splits.json", "3"),
        ("metrics.csv", "epoch,val/dice_per_image_net\nx,1\n"),
        ("metrics.csv", None),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, script: Script, name: str, content: str | None
) -> None:
    file = write_run(tmp_path / "runs" / "a") / name
    file.unlink() if content is None else file.write_text(content)
    ended = script("compare", tmp_path / "runs", "--out", tmp_path / "out")
    assert ended.code == 1, ended.out
    assert ended.err.startswith(f"error: {file}: ")
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["run.json", "config.yaml", "summary.json", "metrics.csv", "splits.json"]
)
def test_what_is_no_file_or_too_large_is_not_read(
    tmp_path: Path, script: Script, name: str
) -> None:
    file = write_run(tmp_path / "runs" / "a") / name
    file.unlink()
    os.mkfifo(file)
    made: list[Callable[[], object]] = [lambda: file.symlink_to("/dev/zero")]
    made += [lambda: os.truncate(file, 2**26 + 1)]
    for make in (lambda: None, *made):
        make()
        ended = script("compare", tmp_path / "runs", "--out", tmp_path / "out")
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert f"{file}: expected a regular file of at most 64 MiB; " in ended.err
        file.unlink()
        file.touch() if make is made[0] else None
    assert not (tmp_path / "out").exists()


def test_byte_for_byte_the_same_in_any_order_and_place(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sweep(tmp_path / "one" / "x")
    write_run(tmp_path / "one" / "y" / "late", status="failed", error="E", model="Other")
    moved = tmp_path / "elsewhere" / "deep"
    shutil.copytree(tmp_path / "one", moved)
    options = ("--by-diagnosis", "--versus", "unet", "segnet")
    first = script(
        "compare", tmp_path / "one/x", tmp_path / "one/y", *options, "--out", tmp_path / "A"
    )
    walk = os.walk

    def backwards(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for folder, below, files in walk(*args, **kwargs):
            below.sort(reverse=True)
            yield folder, below, files

    monkeypatch.setattr(os, "walk", backwards)
    monkeypatch.chdir(moved)
    second = script("compare", "y", "x", "x", *options, "--out", tmp_path / "B")
    assert first.code == second.code == 0
    assert first.out == second.out
    assert contents(tmp_path / "A") == contents(tmp_path / "B")
    assert set(contents(tmp_path / "A")) == {
        *("table.md", "table.tex", "table.csv", "runs.csv"),
        *("versus.md", "versus.tex", "versus.csv"),
        *("dice_boxes.png", "val_curves.png", "dice_cost.png"),
    }
    runs = list(csv.DictReader((tmp_path / "A" / "runs.csv").open(newline="")))
    assert (runs[0]["run"], runs[-1]["run"]) == ("x/SegNet-0-0", "y/late")


def test_columns_are_what_tells_rows_apart(tmp_path: Path) -> None:
    def columns(name: str, *runs: dict[str, Any]) -> list[list[str]]:
        for i, options in enumerate(runs):
            write_run(tmp_path / name / str(i), **options)
        rows, _ = make_rows(find_runs([tmp_path / name]))
        return [list(rows[0].labels), *([row.label] for row in rows if row.finished)]

    assert columns("one", {}) == [["experiment", "model"], ["baseline, UNet"]]
    # The batch order's seed, the cache and what follows the run directory are no differences.
    assert columns("seeds", {"seed": 0}, {"seed": 1})[1:] == [["baseline, UNet"]]
    lr = {"task__optimizer__lr": 1e-05, "model": "SegNet", "name": "x", "model__width": 8}
    # Each tells both rows apart: the first in order does.
    assert columns("first", {}, lr) == [["experiment"], ["baseline"], ["x"]]
    rates = [{"task__optimizer__lr": rate} for rate in (0.1, 0.01, 10.0, 2.0, 1e-05)]
    assert columns("rates", *rates) == [
        *(["lr"], ["lr=1e-05"], ["lr=0.01"], ["lr=0.1"], ["lr=2.0"], ["lr=10.0"])
    ]
    losses = [{"task__loss___target_": name} for name in ("a.bce", "a.dice")]
    assert columns("losses", *losses) == [["loss"], ["bce"], ["dice"]]
    losses = [{"task__loss___target_": name} for name in ("a.bce", "b.bce")]
    assert columns("full", *losses) == [["loss"], ["a.bce"], ["b.bce"]]
    # What a sweep varied comes before what came with it.
    swept = [
        {"data__size": size, "data__batch": size // 2, "varies": {"data.size": size}}
        for size in (64, 128)
    ]
    assert columns("swept", *swept) == [["size"], ["size=64"], ["size=128"]]
    # What a sweep varied is shown, even where less would tell rows apart.
    models = [("UNet", "unet", 1), ("SegNet", "segnet", 2)]
    swept = [
        {"model": m, "data__size": n, "name": m, "varies": {"model": low, "data.size": n}}
        for m, low, n in models
    ]
    found = columns("all", *swept)
    assert found == [["model", "size"], ["SegNet, size=2"], ["UNet, size=1"]]
    # A name that a run without a config does not say tells nothing.
    (tmp_path / "all" / "bare").mkdir()
    bare = {"format": 1, "status": "failed", "error": "E", "varies": {"model": "x", "data.size": 3}}
    write_json(tmp_path / "all" / "bare" / "run.json", bare)
    assert columns("all") == found
    # Four digits where they tell rows apart; the file for programs has them all.
    rates = [{"task__optimizer__lr": rate} for rate in (0.00123456, 2.0, 12345.678)]
    assert columns("digits", *rates)[1:] == [["lr=0.001235"], ["lr=2.0"], ["lr=1.235e+04"]]
    compare([tmp_path / "digits"], out=tmp_path / "out")
    table = read_table(tmp_path / "out" / "table.csv")
    assert table["lr=0.001235"]["lr"] == "0.00123456"
    assert "0.00123456" not in (tmp_path / "out" / "table.md").read_text()
    rates = [{"task__optimizer__lr": rate} for rate in (0.00123456, 0.00123457)]
    assert columns("close", *rates)[1:] == [["lr=0.00123456"], ["lr=0.00123457"]]
    # Equal last names, and names that the table has already.
    sizes = [
        {"data__size": a, "model__size": b, "data__n": c}
        for a, b, c in ((1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 1, 2))
    ]
    assert columns("sizes", *sizes)[0] == ["data.n", "data.size", "model.size"]


def test_names_that_mean_something_to_a_reader_of_the_table(tmp_path: Path) -> None:
    hostile = r"a|b_&%$#{x}~^\c*<d>" + "\x1b[31mé"
    write_run(tmp_path / "runs" / "a", name=hostile)
    write_run(tmp_path / "runs" / "b", name="plain $x$", seed=1)
    text = compare([tmp_path / "runs"], out=tmp_path / "out")
    shown = hostile.replace("\x1b", "?")
    assert shown in text
    assert "\x1b" not in text
    markdown = (tmp_path / "out" / "table.md").read_text().splitlines()
    row = next(line for line in markdown if line.startswith("| a"))
    cells = re.split(r"(?<!\\)\|", row)
    assert len(cells) == len(markdown[2].split("|"))
    assert re.sub(r"\\(.)", r"\1", cells[1].strip()) == shown
    latex = (tmp_path / "out" / "table.tex").read_text()
    escaped = r"a\textbar{}b\_\&\%\$\#\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}c*"
    assert f"{{{escaped}\\textless{{}}d\\textgreater{{}}?[31mé}} & " in latex
    rows = re.findall(r"^\{.*\\\\$", latex, re.M)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(cells) - 3}
    plain = re.sub(r"\\textbackslash\{\}|\\[{}]", "", latex)
    assert plain.count("{") == plain.count("}")
    assert re.findall(r"\\(?:begin|end)\{(\w+)\}", latex) == [
        *("table", "tabular", "tabular", "table")
    ]
    for command in ("caption", "toprule", "midrule", "bottomrule"):
        assert latex.count(f"\\{command}") == 1


def test_a_narrow_terminal_shows_all_of_it(tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "runs")
    write_run(root / "odd", "UNet", 0, 0, "failed", "E" * 90, name="a " + "long " * 20 + "name")
    wide = compare([root], versus=[("unet, baseline", "otsu")], by_diagnosis=True)
    narrow = compare([root], versus=[("unet, baseline", "otsu")], by_diagnosis=True, width=80)
    assert max(map(len, narrow.splitlines())) <= 80 < max(map(len, wide.splitlines()))
    lost = {*re.findall(r"[\w.]+", wide)} - {*re.findall(r"[\w.]+", narrow)}
    assert lost <= {"E" * 90}  # broken over lines


def test_figures_show_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Figure] = {}
    save = Figure.savefig

    def savefig(self: Figure, *args: Any, **kwargs: Any) -> None:
        drawn[self.axes[0].get_ylabel() or self.axes[0].get_xlabel()] = self
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    root = write_sweep(tmp_path / "runs")
    for i in range(10):
        write_run(root / f"{i}", "UNet", 0, 0, task__optimizer__lr=float(i))
    write_run(root / "unwatched", monitor=None, fold=0, name="recipe")
    write_run(root / "loss", monitor="val/loss", fold=0, name="by loss")
    labels = list(table_of(tmp_path / "out", root))
    boxes, curves = drawn["dice_per_image"], drawn["val/dice_per_image_net"]
    assert [t.get_text() for t in boxes.axes[0].get_yticklabels()] == labels
    points = [line for line in boxes.axes[0].get_lines() if line.get_marker() == "o"]
    expected = np.mean(
        [
            [
                2 * tp / (2 * tp + fp + fn)
                for tp, fp, fn, _ in (counts_of("SegNet", seed, id) for id in CASES)
            ]
            for seed in SEEDS
        ],
        axis=0,
    )
    assert points[0].get_xdata() == pytest.approx(expected)
    assert [len(p.get_xdata()) for p in points] == [
        int(row["n"]) for row in read_table(tmp_path / "out" / "table.csv").values()
    ]
    # No val/loss in metrics.csv: that row alone is not drawn.
    named = [text.get_text() for text in curves.legends[0].get_texts()]
    assert named == [label for label in labels[:-2] if label != "UNet, by loss, lr=0.001"]
    line, band = curves.axes[0].get_lines()[0], curves.axes[0].collections[0]
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert list(line.get_ydata()) == pytest.approx([0.11, 0.21, 0.31])
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(0.1)
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(0.32)
    costs = drawn["dice_per_image [95 %]"]
    assert [axis.get_xlabel() for axis in costs.axes] == [
        *("multiply-adds of one image", "seconds to train")
    ]
    assert [text.get_text() for text in costs.legends[0].get_texts()] == labels[:-2]
    # Ticks that can be read, and labels that fit.
    assert {axis.get_xscale() for axis in costs.axes} == {"linear"}
    score = (0.5, None, 0.4, 0.6)
    wide = {label: (score, {"multiply_adds": n}) for label, n in (("a" * 31, 1e6), ("b", 1e7))}
    figures.save_costs(tmp_path / "wide.png", wide, "wide")
    assert drawn["wide [95 %]"].axes[0].get_xscale() == "log"
    assert [f.legends[0]._ncols for f in (costs, drawn["wide [95 %]"])] == [2, 1]
    for name in ("dice_boxes", "val_curves", "dice_cost"):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert set(image.info) <= {"dpi"}
            assert len(image.convert("RGB").getcolors(10**6) or []) > 10


def test_it_starts_without_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a")
    code = (
        "import sys; from seglab.analysis.compare import compare; "
        f"compare([{str(tmp_path / 'runs')!r}], out={str(tmp_path / 'out')!r}); "
        "assert 'numpy' in sys.modules; "
        "print([m for m in ('torch', 'lightning', 'skimage') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.usefixtures("no_figures")
def test_two_sweeps_in_one_table(tmp_path: Path) -> None:
    write_sweep(tmp_path / "p" / "sweep", ("UNet",))
    write_sweep(tmp_path / "q" / "sweep", ("SegNet",))
    table = table_of(tmp_path / "out", tmp_path / "p" / "sweep", tmp_path / "q" / "sweep")
    assert list(table) == ["SegNet", "UNet", "all_background", "otsu"]
    runs = [row["run"] for row in csv.DictReader((tmp_path / "out" / "runs.csv").open(newline=""))]
    assert (runs[0], runs[-1]) == ("p/sweep/UNet-0-0", "q/sweep/SegNet-2-1")
    record = json.loads((tmp_path / "p" / "sweep" / "UNet-0-0" / "run.json").read_text())
    assert record["status"] == "finished"
    assert math.isclose(
        float(table["UNet"]["sensitivity"]),
        statistics.mean(by_hand("UNet", SEEDS, list(CASES))["sensitivity"]),
    )
