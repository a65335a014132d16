"""score.py: masks of any program, scored as those of a network."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fake_runs import read_page
from helpers.tiny import Ended
from PIL import Image
from skimage import color, filters, io

import seglab
from seglab.core.errors import InputError
from seglab.core.files import read_csv, read_json, write_json
from seglab.data.cases import Case, read_pair
from seglab.data.layouts import find_cases
from seglab.inference.imported_masks import read_probabilities
from seglab.inference.score import score
from seglab.metrics.scores import CALIBRATION_BINS

# The columns of test_cases.csv that are scores or counts, for comparison.
NOT_SCORES = ("id", "diagnosis", "set", "baseline")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture
def trained(run: Path, tiny_train: Callable[..., Ended]) -> Path:
    """A run with four test cases; read-only."""
    if not run.exists():
        overrides = ["task.optimizer.lr=0.02", "trainer.max_epochs=6", "seed=1"]
        ended = tiny_train(run, "logger=none", *overrides)
        assert ended.code == 0, ended.err
    return run


@pytest.fixture
def cases(tiny_ph2: Path) -> list[Case]:
    return find_cases(tiny_ph2)


def write_otsu(cases: list[Case], folder: Path) -> Path:
    """Otsu's masks, in a loop that uses nothing of seglab."""
    folder.mkdir()
    for case in cases:
        grey = color.rgb2gray(io.imread(case.image))
        mask = (grey <= filters.threshold_otsu(grey)).astype(np.uint8) * 255
        io.imsave(folder / f"{case.id}.png", mask, check_contrast=False)
    return folder


def scores_of(table: Path, **where: str) -> dict[str, dict[str, str]]:
    rows = [row for row in read_csv(table) if where.items() <= row.items()]
    return {row["id"]: {k: v for k, v in row.items() if k not in NOT_SCORES} for row in rows}


def test_otsus_masks_have_the_scores_of_the_runs_own_otsu(
    trained: Path, cases: list[Case], tiny_ph2: Path, tmp_path: Path, script: Callable[..., Ended]
) -> None:
    masks, out = write_otsu(cases, tmp_path / "masks"), tmp_path / "out"
    split = trained / "splits.json"
    ended = script(
        "score", masks, "--data", tiny_ph2, "--name", "Otsu", "--split", split, "--out", out
    )
    assert ended.code == 0, ended.err
    ours = scores_of(out / "test_cases.csv")
    theirs = scores_of(trained / "baseline_cases.csv", baseline="otsu")
    for of_case in theirs.values():  # probabilities of 0 and 1 are no confidence
        of_case["confidence"] = ""
    assert ours == theirs
    summary = read_json(trained / "summary.json")["baselines"]["otsu"]
    for name, value in read_json(out / "summary.json")["test"].items():
        assert value == summary[name]
    attributes = (out / "case_attributes.csv").read_text()
    assert attributes == (trained / "case_attributes.csv").read_text()


def save_predictions(run: Path, cases: list[Case], folder: Path) -> tuple[Path, Path]:
    """Masks and probabilities of a run's network, as another program would leave them."""
    model = seglab.load_model(run)
    masks, probs = folder / "masks", folder / "probs"
    masks.mkdir()
    probs.mkdir()
    for case in cases:
        prob = model.probabilities(read_pair(case)[0])
        Image.fromarray(model.make_mask(prob) * np.uint8(255)).save(masks / f"{case.id}_pred.png")
        # nnU-Net: both classes, and an axis for the depth.
        both = np.stack([1 - prob, prob]).transpose(1, 0, 2, 3)[0][:, None]
        np.savez(probs / f"{case.id}_pred.npz", probabilities=both)
    return masks, probs


def test_masks_and_probabilities_of_a_network_have_its_scores(
    trained: Path, cases: list[Case], tiny_ph2: Path, tmp_path: Path
) -> None:
    split = trained / "splits.json"
    tested = [case for case in cases if case.id in read_json(split)["test"]]
    masks, probs = save_predictions(trained, tested, tmp_path)
    pattern = "{id}_pred"
    summary = score(masks, tiny_ph2, "same", tmp_path / "out", probs, split, pattern)
    assert scores_of(tmp_path / "out" / "test_cases.csv") == scores_of(trained / "test_cases.csv")
    stored = read_json(trained / "summary.json")
    assert summary["test"] == stored["test"]
    assert summary["calibration"]["test"] == stored["calibration"]["test"]
    assert np.shape(summary["calibration"]["test"]) == (CALIBRATION_BINS, 3)
    assert summary["notes"] == []  # no test case was trained on


def test_a_missing_mask_has_no_confidence_whatever_its_probabilities(
    cases: list[Case], tiny_ph2: Path, tmp_path: Path
) -> None:
    masks, probs = write_otsu(cases, tmp_path / "masks"), tmp_path / "probs"
    probs.mkdir()
    for case in cases:
        np.save(probs / f"{case.id}.npy", io.imread(masks / f"{case.id}.png") / 255)
    (masks / f"{cases[0].id}.png").unlink()
    with_its = score(masks, tiny_ph2, "A", tmp_path / "a", probs)
    (probs / f"{cases[0].id}.npy").unlink()
    without = score(masks, tiny_ph2, "A", tmp_path / "b", probs)
    assert with_its == without
    tables = [(tmp_path / name / "test_cases.csv").read_text() for name in "ab"]
    assert tables[0] == tables[1]
    assert scores_of(tmp_path / "a" / "test_cases.csv")[cases[0].id]["confidence"] == "0.0"
    np.save(probs / f"{cases[1].id}.npy", np.zeros((5, 4)))
    with pytest.raises(InputError, match=rf"1 of 19 masks, or their prob.*\({cases[1].id}\)"):
        score(masks, tiny_ph2, "A", tmp_path / "c", probs)


def test_masks_lie_in_folders_and_end_in_pred(
    cases: list[Case], tiny_ph2: Path, tmp_path: Path
) -> None:
    masks = write_otsu(cases, tmp_path / "masks")
    plain = score(masks, tiny_ph2, "A", tmp_path / "a")
    for i, case in enumerate(cases):
        folder = masks / f"fold{i % 5}"
        folder.mkdir(exist_ok=True)
        (masks / f"{case.id}.png").rename(folder / f"{case.id}_Pred.PNG")
    assert score(masks, tiny_ph2, "A", tmp_path / "b") == plain
    (masks / "overlays").mkdir()
    shutil.copy(masks / "fold0" / f"{cases[0].id}_Pred.PNG", masks / "overlays")
    with pytest.raises(InputError, match=f"two files of case {cases[0].id}"):
        score(masks, tiny_ph2, "A", tmp_path / "c")


def test_scores_are_monais(cases: list[Case], tiny_ph2: Path, tmp_path: Path) -> None:
    metrics = pytest.importorskip("monai.metrics")
    import torch

    masks = write_otsu(cases, tmp_path / "masks")
    score(masks, tiny_ph2, "Otsu", tmp_path / "out")
    ours = scores_of(tmp_path / "out" / "test_cases.csv")
    for case in cases:
        target = torch.tensor(read_pair(case)[1] > 0)[None, None]
        pred = torch.tensor(io.imread(masks / f"{case.id}.png") > 0)[None, None]
        row = {name: float(value) for name, value in ours[case.id].items() if value}
        dice = metrics.compute_dice(pred, target).item()
        assert row["dice_per_image"] == pytest.approx(dice, rel=1e-6)
        iou = metrics.compute_iou(pred, target).item()
        assert row["iou_per_image"] == pytest.approx(iou, rel=1e-6)


def test_totals_are_those_of_the_isic_challenge(
    cases: list[Case], tiny_ph2: Path, tmp_path: Path
) -> None:
    isic = pytest.importorskip("isic_challenge_scoring.metrics")
    confusion = pytest.importorskip("isic_challenge_scoring.confusion")
    import pandas as pd

    masks = write_otsu(cases, tmp_path / "masks")
    summary = score(masks, tiny_ph2, "Otsu", tmp_path / "out")
    table = pd.DataFrame(
        [
            confusion.create_binary_confusion_matrix(
                read_pair(case)[1] > 0, io.imread(masks / f"{case.id}.png") > 0, name=case.id
            )
            for case in cases
        ]
    )
    for ours, theirs in (
        ("thresholded_iou", isic.binary_threshold_jaccard),
        ("iou_per_image", isic.binary_jaccard),
        ("dice_per_image", isic.binary_dice),
        ("pixel_accuracy", isic.binary_accuracy),
        ("sensitivity", isic.binary_sensitivity),
        ("specificity", isic.binary_specificity),
    ):
        options = {"threshold": 0.65} if "thresholded" in ours else {}
        values = [theirs(row, **options) for _, row in table.iterrows()]
        if "per_image" in ours or options:  # the others are pooled here
            assert summary["test"][ours] == pytest.approx(np.mean(values), rel=1e-12)


def test_what_is_missing_resized_and_extra_is_counted_and_said(
    cases: list[Case], tiny_ph2: Path, tmp_path: Path, script: Callable[..., Ended]
) -> None:
    masks = write_otsu(cases, tmp_path / "masks")
    (masks / f"{cases[0].id}.png").unlink()
    small = masks / f"{cases[1].id}.png"
    mask = Image.open(small)
    mask.resize((mask.width // 2, mask.height // 2), Image.Resampling.NEAREST).save(small)
    Image.new("L", (8, 8)).save(masks / "other.png")
    arguments = ("score", masks, "--data", tiny_ph2, "--name", "A", "--out", tmp_path / "out")
    ended = script(*arguments)
    assert ended.code != 0 and not (tmp_path / "out").exists()
    assert "1 of 19 masks, or their probabilities, have another size than their" in ended.err
    assert script(*arguments, "--resize").code == 0
    rows = scores_of(tmp_path / "out" / "test_cases.csv")
    assert rows[cases[0].id]["dice_per_image"] == "0.0" and rows[cases[0].id]["tp"] == "0"
    assert 0.7 < float(rows[cases[1].id]["dice_per_image"]) <= 1
    table = script("compare", tmp_path / "out").out
    for part in (
        f"A: missing, and counted as nothing found: 1 of 20 masks ({cases[0].id})",
        f"than the picture: 1 of 19 masks ({cases[1].id})",
        "A: not scored, as they belong to no case: other.png",
        "A: what it was trained on is unknown",
        "20 test cases; masks of another program; scored at native resolution: value [95 %",
    ):
        assert part in table
    assert "seed" not in table


def test_a_split_tells_which_test_cases_were_trained_on(
    cases: list[Case], tiny_ph2: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_ph2, data)
    a, b, c, d = (case.id for case in cases[:4])
    source, copy = (data / "PH2 Dataset images" / id / f"{id}_Dermoscopic_Image" for id in (a, d))
    turned = Image.open(source / f"{a}.bmp").transpose(Image.Transpose.ROTATE_180)
    lesion = data / "PH2 Dataset images"
    mask = Image.open(lesion / a / f"{a}_lesion" / f"{a}_lesion.bmp")
    turned.save(copy / f"{d}.bmp")
    mask.transpose(Image.Transpose.ROTATE_180).save(lesion / d / f"{d}_lesion" / f"{d}_lesion.bmp")
    write_json(tmp_path / "split.json", {"train": [a, b, "elsewhere"], "test": [b, c, d]})
    masks = write_otsu(find_cases(data), tmp_path / "masks")
    summary = score(masks, data, "A", tmp_path / "out", split=tmp_path / "split.json")
    gone, leaks = summary["notes"]
    assert "trained on, but not in the data" in gone and gone.endswith("1 of 3 cases")
    assert f"as 2 of 3 test cases ({b}, {d}) were trained on" in leaks
    assert read_json(tmp_path / "out" / "splits.json")["test"] == [b, c, d]


def test_folds_of_nnunet_are_checked_each(
    cases: list[Case], tiny_ph2: Path, tmp_path: Path
) -> None:
    masks, ids = write_otsu(cases, tmp_path / "masks"), [case.id for case in cases]
    folds = [{"train": [i for i in ids if i not in ids[k::5]], "val": ids[k::5]} for k in range(5)]
    file = tmp_path / "splits_final.json"
    write_json(file, folds)
    plain = score(masks, tiny_ph2, "A", tmp_path / "a")
    of_folds = score(masks, tiny_ph2, "A", tmp_path / "b", split=file)
    assert of_folds["test"] == plain["test"] and of_folds["notes"] == []
    folds[2]["train"].append(ids[2])
    write_json(file, folds)
    (note,) = score(masks, tiny_ph2, "A", tmp_path / "c", split=file)["notes"]
    assert f"as 1 of 20 test cases ({ids[2]}) were trained on" in note
    folds[2]["val"].append(ids[0])
    write_json(file, folds)
    with pytest.raises(InputError, match=f"test each case once, not {ids[0]}"):
        score(masks, tiny_ph2, "A", tmp_path / "d", split=file)


def test_it_reads_like_a_run(
    trained: Path, cases: list[Case], tiny_ph2: Path, tmp_path: Path, script: Callable[..., Ended]
) -> None:
    masks = write_otsu(cases, tmp_path / "masks")
    out, split = tmp_path / "out", trained / "splits.json"
    score(masks, tiny_ph2, "Otsu", out, split=split)
    shutil.rmtree(masks)
    both = (out, trained)
    ended = script(
        *("compare", *both, "--versus", "Otsu", "baseline", "--power", "--slices"),
        *("--metrics", "all", "--out", tmp_path / "table"),
    )
    assert ended.code == 0, ended.err
    rows = {row["label"]: row for row in read_csv(tmp_path / "table" / "table.csv")}
    ours, theirs = rows["Otsu"], rows["otsu"]
    assert ours["status"] == "imported" and ours["n"] == theirs["n"]
    assert ours["ece"] == ours["aurc"] == ours["parameters"] == "" != ours["dice_per_image"]
    for name in ("dice_per_image", "iou_pooled", "hd95"):
        for end in ("", "_low", "_high"):
            assert ours[name + end] == theirs[name + end]
    page = tmp_path / "report.html"
    ended = script("report", *both, "--out", page)
    assert ended.code == 0, ended.err
    data = read_page(page)
    labels = [row["label"] for row in data["gallery"]["rows"]]
    index = labels.index("Otsu")
    assert len(data["gallery"]["cases"]) == int(ours["n"])
    for card in data["gallery"]["cases"]:
        drawn = card["rows"][str(index)]
        assert drawn["prediction_outlines"] and "confidence" not in drawn
    ended = script("bundle", *both, "--out", tmp_path / "both.zip")
    assert ended.code == 0, ended.err
    with zipfile.ZipFile(tmp_path / "both.zip") as archive:
        archive.extractall(tmp_path)
    text = (tmp_path / "both" / "REPORTING.md").read_text()
    assert "asks that another program wrote, scored by the same code" in text
    masks_of = {file.name for file in (tmp_path / "both" / "runs").rglob("masks/*.png")}
    assert masks_of == {f"{id}.png" for id in read_json(split)["test"]}
    for command in (["evaluate", out], ["predict", out, tiny_ph2, "--out", tmp_path / "p"]):
        ended = script(*command)
        assert ended.code != 0 and "holds scores alone, and no network" in ended.err


def test_several_classes_are_scored_each(tmp_path: Path) -> None:
    data, masks, probs = tmp_path / "data", tmp_path / "masks", tmp_path / "probs"
    for folder in (data / "images", data / "masks", masks, probs):
        folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    classes = seglab.data.classes.Classes(("background", "lesion", "corner"))
    for name in "ab":
        target, prob = random.integers(0, 3, (12, 9), np.uint8), random.random((3, 12, 9))
        Image.fromarray(random.integers(0, 255, (12, 9, 3), np.uint8)).save(
            data / "images" / f"{name}.png"
        )
        Image.fromarray(target).save(data / "masks" / f"{name}.png")
        Image.fromarray(prob.argmax(0).astype(np.uint8)).save(masks / f"{name}.png")
        np.save(probs / f"{name}.npy", prob / prob.sum(0))
    summary = score(masks, data, "A", tmp_path / "out", probs, classes=classes)
    rows = read_csv(tmp_path / "out" / "test_cases.csv")
    assert [row["class"] for row in rows] == [*classes.names] * 2
    assert {*summary["classes"]} == {"lesion", "corner"} and summary["test"]["ece"] > 0


def spoil(kind: str, masks: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    first = sorted(masks.iterdir())[0]
    probs = tmp_path / "probs"
    probs.mkdir()
    shape = np.asarray(Image.open(first)).shape
    if kind == "no folder":
        options["masks"] = masks / "elsewhere"
    elif kind == "empty":
        shutil.rmtree(masks)
        masks.mkdir()
    elif kind == "other names":
        for file in [*masks.iterdir()]:
            file.rename(masks / f"x{file.name}")
    elif kind == "two ends":
        first.rename(first.with_stem(f"{first.stem}_mask"))
    elif kind == "two files":
        shutil.copy(first, first.with_suffix(".bmp"))
    elif kind == "damaged":
        first.write_bytes(first.read_bytes()[:40])
    elif kind == "grey":
        Image.linear_gradient("L").resize(shape[::-1]).save(first)
    elif kind == "pattern":
        options["pattern"] = "pred"
    elif kind == "out":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").touch()
    elif kind == "no name":
        options["name"] = " "
    elif kind == "few probabilities":
        np.save(probs / f"{first.stem}.npy", np.zeros(shape))
        options["probabilities"] = probs
    elif kind == "logits":
        for file in masks.iterdir():
            np.save(probs / f"{file.stem}.npy", np.full(shape, 3.0))
        options["probabilities"] = probs
    elif kind == "colours":
        for file in masks.iterdir():
            Image.new("RGB", shape[::-1]).save(probs / file.name)
        options["probabilities"] = probs
    elif kind == "split of other data":
        write_json(tmp_path / "split.json", {"train": ["a"], "test": ["b"]})
        options["split"] = tmp_path / "split.json"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no folder", "no such folder"),
        ("empty", "holds no picture"),
        ("other names", "say how masks are called with --pattern"),
        ("two ends", "say how masks are called, as in --pattern"),
        ("two files", "two files of case"),
        ("damaged", "cannot be read as an image"),
        ("grey", "not a mask"),
        ("pattern", "expected a name with {id}"),
        ("out", "is not empty; name a new folder"),
        ("no name", "expected what tables shall call these masks"),
        ("few probabilities", "holds no probabilities of 19 cases that have a mask"),
        ("logits", "holds values from 3 to 3; expected probabilities"),
        ("colours", "expected a grey picture"),
        ("split of other data", "1 cases of 'test' are not in the data (b)"),
    ],
)
def test_bad_folders_are_refused_in_one_line(
    kind: str, message: str, cases: list[Case], tiny_ph2: Path, tmp_path: Path
) -> None:
    masks = write_otsu(cases, tmp_path / "masks")
    out = tmp_path / "out"
    options: dict[str, Any] = {"masks": masks, "data_root": tiny_ph2, "name": "A", "out": out}
    spoil(kind, masks, tmp_path, options)
    before = sorted(out.iterdir()) if out.exists() else None
    with pytest.raises(InputError) as caught:
        score(**options)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert (sorted(out.iterdir()) if out.exists() else None) == before
    assert not [*tmp_path.glob(".out*")]


def test_probabilities_are_read_as_they_are_meant(tmp_path: Path) -> None:
    prob = np.random.default_rng(0).random((6, 5)).astype(np.float32)
    eight, sixteen = np.rint(prob * 255).astype(np.uint8), np.rint(prob * 65535).astype(np.uint16)
    Image.fromarray(eight).save(tmp_path / "8.png")
    Image.fromarray(sixteen).save(tmp_path / "16.png")
    Image.fromarray(prob).save(tmp_path / "float.tif")
    np.save(tmp_path / "one.npy", prob)
    np.savez(tmp_path / "two.npz", probabilities=np.stack([1 - prob, prob]), other=0)
    for name, error in (("8.png", 1 / 255), ("16.png", 1 / 65535), ("float.tif", 0)):
        np.testing.assert_allclose(read_probabilities(tmp_path / name, 1)[0], prob, atol=error)
    for name in ("one.npy", "two.npz"):
        assert np.array_equal(read_probabilities(tmp_path / name, 1)[0], prob)
