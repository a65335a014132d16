"""Doubtful annotations: their order by hand, planted ones, and the command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fake_runs import write_run
from helpers.layouts import mask_path
from helpers.predicting import make_lookup_predictor, write_cases
from helpers.tiny import Ended, refused, write_ph2_case
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter
from skimage.draw import disk

from seglab.analysis.doubtful import (
    MARGIN,
    make_doubt_table,
    rank_annotations,
    rank_current_annotations,
)
from seglab.core.errors import InputError
from seglab.core.files import read_csv, read_json, write_csv, write_json
from seglab.data.cache import hash_cases, hash_files
from seglab.data.checker import check_data
from seglab.inference.scoring import score_cases
from seglab.runs.records import Run, find_runs

Script = Callable[..., Ended]


def make_run(folder: Path, rows: dict[str, dict[str, Any]], **options: Any) -> Run:
    """A run with these values in test_cases.csv, by the case's id."""
    run = write_run(folder, cases=dict.fromkeys(rows, "nevus"), **options)
    usual = {"tp": 1, "fp": 0, "fn": 0, "tn": 9, "hd95": 0, "surface_dice": 1, "view_dice": ""}
    usual |= {"confidence": 1, "outline_shift": "", "missed_pieces": 0, "extra_pieces": 0}
    table = [{"id": id, "diagnosis": "nevus"} | usual | row for id, row in rows.items()]
    write_csv(run / "test_cases.csv", table)
    (found,) = find_runs([run])
    return found


def test_annotations_are_ranked_by_what_confidence_does_not_expect(tmp_path: Path) -> None:
    rows = {
        "expected": {"tp": 30, "fp": 20, "fn": 20, "confidence": 0.6},  # Dice 0.6, as expected
        "doubtful": {"tp": 40, "fp": 20, "confidence": 0.98, "outline_shift": 4, "extra_pieces": 2},
        "equal": {"confidence": 0.95},
    }
    first = make_run(tmp_path / "a", rows)
    other = {"doubtful": rows["doubtful"] | {"tp": 10, "outline_shift": "", "extra_pieces": 1}}
    second = make_run(tmp_path / "b", other, seed=1)
    ranked = rank_annotations([first, second])
    assert [found.case.id for found in ranked] == ["doubtful", "expected", "equal"]
    doubtful, expected, equal = ranked
    dice = (0.8 + 0.5) / 2
    assert doubtful.dice == pytest.approx(dice)
    assert doubtful.doubt == pytest.approx((1 - dice) / (1 - 0.98 + MARGIN))
    assert (doubtful.outline_shift, doubtful.extra_pieces, doubtful.missed_pieces) == (4, 1.5, 0)
    assert expected.doubt == pytest.approx(0.4 / (0.4 + MARGIN))
    assert (equal.doubt, equal.outline_shift) == (0, None)
    table = make_doubt_table(ranked)
    assert table.body[0] == ["doubtful", "nevus", "14.0", "0.650", "0.980", "+4.0", "0", "1.5"]
    assert table.body[2][-3:] == ["-", "0", "0"]


def test_each_class_has_a_place(tmp_path: Path) -> None:
    classes = ["skin", "disc", "square"]
    run = write_run(tmp_path / "run", data__classes=classes, cases={"a": ""})
    for name in ("test_cases.csv", "baseline_cases.csv"):
        table = [row | {"class": c} for row in read_csv(run / name) for c in classes]
        write_csv(run / name, table)
    rows = read_csv(run / "test_cases.csv")
    for row, fp in zip(rows, (9, 0, 5), strict=True):
        row |= {"tp": "5", "fp": str(fp), "fn": "0", "confidence": "0.9"}
    write_csv(run / "test_cases.csv", rows)
    ranked = rank_annotations(find_runs([run]))
    assert [found.class_name for found in ranked] == ["square", "disc"]
    assert make_doubt_table(ranked).head[:3] == ["case", "diagnosis", "class"]


def test_planted_annotations_come_first(tmp_path: Path) -> None:
    """The predictions are blurred true masks; four of twenty annotations are wrong."""
    masks = []
    for i in range(20):
        mask = np.zeros((90, 120), bool)
        mask[disk((45, 50 + i), 16 + i // 4, shape=mask.shape)] = True
        masks.append(mask)
    probs = [gaussian_filter(mask.astype(np.float32), 2) for mask in masks]
    masks[3] = binary_dilation(masks[3], iterations=8)  # drawn looser
    masks[7] = np.roll(masks[7], 20, 1)
    masks[12], masks[13] = masks[13][::-1, ::-1], masks[12][::-1, ::-1]
    masks[5][2:6, 2:6] = True  # a speck, which changes Dice little
    cases = write_cases(tmp_path / "data", masks)
    sha256 = hash_cases(cases, hash_files(cases))
    run = make_run(tmp_path / "run", {case.id: {} for case in cases})
    write_csv(run.paths.test_cases, score_cases(make_lookup_predictor(probs), cases, 0.5).rows)
    split = read_json(run.paths.split)
    write_json(run.paths.split, split | {"sha256": sha256})
    ranked = rank_annotations(find_runs([run.folder]))
    assert {found.case.id for found in ranked[:4]} == {*("IMD003", "IMD007", "IMD012", "IMD013")}
    by_id = {found.case.id: found for found in ranked}
    assert by_id["IMD003"].outline_shift == pytest.approx(-7, abs=1)  # of a city-block dilation
    assert by_id["IMD005"].missed_pieces == 1
    assert by_id["IMD000"].missed_pieces == by_id["IMD000"].extra_pieces == 0

    # Who mends an annotation, or adds a case, sees the others only.
    Image.fromarray(~masks[3]).save(mask_path(tmp_path / "data", "IMD003"))
    shutil.rmtree(mask_path(tmp_path / "data", "IMD007").parents[1])
    write_ph2_case(tmp_path / "data", "IMD020", np.zeros((90, 120, 3), np.uint8), ~masks[0])
    scan = check_data(tmp_path / "data")
    current, notes = rank_current_annotations(scan, find_runs([run.folder]))
    assert [o.case.id for o in current] == [
        o.case.id for o in ranked if o.case.id not in ("IMD003", "IMD007")
    ]
    assert notes == [
        "not ranked, because their files differ from those that the runs tested: IMD003",
        "not ranked, because they are no longer here: IMD007",
        "not ranked, because no run tested them: IMD020",
    ]


def test_runs_on_other_data_are_refused(tmp_path: Path, tiny_ph2: Path) -> None:
    run = make_run(tmp_path / "run", {"IMD000": {}})  # an equal id, but other files
    with pytest.raises(InputError, match=r"^--runs: tested none of the cases of .*trained on"):
        rank_current_annotations(check_data(tiny_ph2), [run])


def test_check_ranks_and_draws(swept: Path, tmp_path: Path, script: Script) -> None:
    data, figure, file = swept.parent / "PH2Dataset", tmp_path / "doubt.png", tmp_path / "all.json"
    options = ("--runs", swept, "--show", 3, "--figure", figure, "--json", file)
    ended = script("prepare_ph2", "--check", data, *options)
    assert ended.code == 0, ended.err
    ranked = json.loads(file.read_text())["annotations"]
    assert len(ranked) == 12
    assert [o["doubt"] for o in ranked] == sorted((o["doubt"] for o in ranked), reverse=True)
    table = ended.out[ended.out.index("the 10 most doubtful of 12 annotations") :].splitlines()
    assert [line.split()[0] for line in table[3:13]] == [o["id"] for o in ranked[:10]]
    assert f"look at {figure}: 3 annotations (dashed) and predictions" in ended.out
    drawn = np.asarray(Image.open(figure).convert("RGB")).astype(int)
    for column in range(3):
        width = drawn.shape[1] // 3
        tile = drawn[:, column * width : (column + 1) * width]
        assert (np.abs(tile - (255, 210, 31)) < 40).all(axis=2).sum() > 20  # dashes
    nowhere = script("prepare_ph2", "--check", data, "--runs", tmp_path / "nowhere")
    refused(nowhere, None, "nowhere", "cannot be searched")
