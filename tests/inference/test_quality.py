"""Quality of masks: what predict and a model say of it, with and without a calibration."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import Ended, written
from PIL import Image

from seglab.core.files import read_csv, write_json
from seglab.data.classes import Classes
from seglab.data.images import read_image
from seglab.data.layouts import find_cases
from seglab.inference.calibration import Calibration, CalibrationCase
from seglab.inference.drawing import REVIEW, draw_contours
from seglab.inference.familiarity import image_features
from seglab.inference.image_files import find_images
from seglab.inference.models import Model, load_model
from seglab.inference.postprocessing import Prediction
from seglab.inference.predict import predict
from seglab.inference.quality import Quality
from seglab.schema import DEFAULT_INFERENCE

COLUMNS = ["picture", "confidence", "expected_dice", "lower_bound", "familiar", "review"]


def calibrate(run: Path, images: list[Path], n: int = 30) -> None:
    """Write a calibration of `n` invented cases, whose Dice is 0.9 times their confidence."""
    model = load_model(run)
    confidence = np.linspace(0, 1, n)
    cases = tuple(CalibrationCase(f"case{c}", c, 0.9 * c) for c in confidence.tolist())
    features = tuple(tuple(image_features(read_image(image)).tolist()) for image in images)
    calibration = Calibration(cases, model.sha256, model.inference, features)
    write_json(run / "calibration.json", calibration.to_json())


@pytest.fixture
def calibrated_run(predicting_runs: tuple[Path, Path], tiny_ph2: Path, tmp_path: Path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(predicting_runs[1], run)
    calibrate(run, [case.image for case in find_cases(tiny_ph2)])
    return run


def test_quality_csv_says_which_masks_to_review(
    calibrated_run: Path, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (pictures / "b" / "two.jpg").unlink()  # JPEG changes the colours of noise, of which it consists
    Image.open(pictures / "b" / "three.TIFF").rotate(90, expand=True).save(pictures / "turned.png")
    strange = read_image(pictures / "a" / "one.png") // np.array([1, 2, 3], np.uint8)
    Image.fromarray(strange).save(pictures / "strange.png")
    out, model, files = pictures.parent / "out", load_model(calibrated_run), find_images([pictures])
    confidence = {}
    for name, path in files.items():
        prob = model.probabilities(path)[0].astype(float)
        mask = prob > model.threshold
        confidence[name] = 2 * prob[mask].sum() / (prob.sum() + mask.sum())
    bounds = {name: model.calibration.lower_bound(c, 0.8) for name, c in confidence.items()}
    familiar = [float(bound) for name, bound in bounds.items() if name != "strange"]
    between = np.mean(sorted(familiar)[1:3]).item()
    options = {"review_below": between, "level": 0.8}
    caplog.set_level("INFO", "seglab")
    predict([calibrated_run], [pictures], out, ["quality", "overlays"], **options)
    assert caplog.messages == [
        "3 of 5 masks to review, 1 of them of images unlike the training images"
    ]
    rows = {row["picture"]: row for row in read_csv(out / "quality.csv")}
    assert sorted(rows) == sorted(files) and [*rows["a/one"]] == COLUMNS
    images = written(out)
    for name, row in rows.items():
        assert float(row["confidence"]) == pytest.approx(confidence[name], rel=1e-6)
        mask, quality = model.assess(files[name], 0.8)
        assert np.array_equal(mask * 255, images[f"masks/{name}.png"])
        assert quality.needs_review(between) is (row["review"] == "True")
        if name == "strange":
            assert row["expected_dice"] == row["lower_bound"] == "not valid here"
            assert (row["familiar"], row["review"]) == ("False", "True")
            assert quality == Quality(float(row["confidence"]), familiar=False)
        else:
            assert float(row["lower_bound"]) == pytest.approx(float(bounds[name]), rel=1e-6)
            assert float(row["expected_dice"]) == quality.expected_dice
            assert row["familiar"] == "True"
            assert row["review"] == str(bounds[name] < between)
        overlay = images[f"overlays/{name}.png"]
        is_marked = not np.array_equal(overlay, draw_contours(read_image(files[name]), mask))
        assert is_marked is (row["review"] == "True")
        assert (overlay[0, 0] == REVIEW).all() == is_marked


def test_quality_goes_on_and_depends_on_its_settings(
    calibrated_run: Path, pictures: Path, script: Callable[..., Ended]
) -> None:
    out = pictures.parent / "out"
    command = ["predict", calibrated_run, pictures, "--out", out, "--quality"]
    assert script(*command).code == 0
    table = (out / "quality.csv").read_bytes()
    (out / "masks" / "b" / "two.png").unlink()
    (out / "quality.csv").unlink()
    ended = script(*command)
    assert ended.err.splitlines()[-1] == f"{out}: 1 predicted, 3 there already"
    assert (out / "quality.csv").read_bytes() == table
    for options in (["--level", 0.8], ["--review-below", 0.7]):
        ended = script(*command, *options)
        assert ended.code == 1 and "is of other quality: {'review_below': 0.8" in ended.err
    calibrate(calibrated_run, [*pictures.rglob("[!.]*.png")])
    ended = script(*command)
    assert ended.code == 1 and "is of other quality" in ended.err
    assert script(*command, "--overwrite").code == 0
    for options, said in (
        (["--level", 0.99], "level=0.99: needs 99 calibration cases, there are 30"),
        (["--review-below", 80], "review_below=80.0: expected a Dice between 0 and 1"),
    ):
        ended = script(*command, *options)
        (line,) = ended.err.splitlines()
        assert ended.code == 1 and said in line


def test_without_a_calibration_there_is_confidence_alone(
    predicting_runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended]
) -> None:
    out, run = pictures.parent / "out", predicting_runs[0]
    options = ["--review-below", 0.7, "--overlays"]  # which means --quality
    ended = script("predict", run, pictures / "b", "--out", out, *options)
    warning, last = ended.err.splitlines()
    assert warning.startswith(f"{run}: no calibration was made of these networks")
    assert "calibrate.py SWEEP" in warning
    assert (ended.code, last) == (0, f"{out}: 2 predicted, 0 there already")
    model = load_model(run)
    for row in read_csv(out / "quality.csv"):
        assert [*row] == COLUMNS and [*row.values()][2:] == ["", "", "", ""]
        _, quality = model.assess(find_images([pictures / "b"])[row["picture"]])
        assert quality == Quality(float(row["confidence"])) and quality.needs_review() is None


def test_confidence_of_several_classes_is_the_mean_over_all_but_background() -> None:
    prob = np.zeros((3, 2, 4), np.float32)
    prob[:, 0] = np.array([0.8, 0.1, 0.1])[:, None]  # background
    prob[:, 1, :2] = np.array([0.1, 0.9, 0.0])[:, None]
    prob[:, 1, 2:] = np.array([0.1, 0.3, 0.6])[:, None]
    classes = Classes(("skin", "disc", "square"), ("#000000", "#ff0080", "#00ff00"))
    model = Model(
        Path("x"), lambda image: Prediction(lambda: prob), classes, 0.5, DEFAULT_INFERENCE, ()
    )
    _, quality = model.assess(np.zeros((2, 4, 3), np.uint8))
    disc = 2 * 1.8 / (4 * 0.1 + 2 * 0.9 + 2 * 0.3 + 2)
    square = 2 * 1.2 / (4 * 0.1 + 2 * 0.6 + 2)
    assert quality.confidence == pytest.approx((disc + square) / 2, rel=1e-6)
