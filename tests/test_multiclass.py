"""Runs on masks of three classes, from training to comparison, prediction and export."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny import Ended, write_tiny_classes
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seglab import load_results
from seglab.analysis.grouping import make_rows
from seglab.core.errors import InputError
from seglab.core.files import read_csv
from seglab.data.classes import Classes
from seglab.data.masks import read_mask
from seglab.inference.evaluate import evaluate
from seglab.inference.models import load_model
from seglab.inference.predict import predict
from seglab.metrics.confidence import RISK_METRICS
from seglab.runs.checkpoints import hash_weights
from seglab.runs.records import find_runs

NAMES = ["skin", "disc", "square"]
COLOURS = ["#000000", "#ff0080", "#00ff00"]
THREE = Classes(tuple(NAMES))
# Networks learn the tiny set in seconds.
LEARNING = [
    *("data=pairs", f"data.classes=[{','.join(NAMES)}]", "experiment=classes", "monitor=null"),
    *("logger=none", "callbacks.pictures=null", "task.optimizer.lr=0.02"),
    *("trainer.max_epochs=20", "data.batch_size=4", "data.split.test=0.3"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classes")


@pytest.fixture
def data(folder: Path) -> Path:
    root = folder / "data"
    return root if root.exists() else write_tiny_classes(root)


@pytest.fixture
def run(folder: Path, data: Path, tiny_train: Callable[..., Ended]) -> Path:
    """Trained on masks of class numbers; read-only."""
    run = folder / "run"
    if not run.exists():
        ended = tiny_train(run, *LEARNING, f"data.root={data}")
        assert ended.code == 0, ended.err
    return run


@pytest.fixture
def other_run(folder: Path, data: Path, tiny_train: Callable[..., Ended]) -> Path:
    """Trained for other classes, skin, disc, ring and more, which no mask holds; read-only."""
    run = folder / "other_run"
    if not run.exists():
        classes = "data.classes=[skin,disc,ring,more]"
        ended = tiny_train(run, *LEARNING, classes, f"data.root={data}", "trainer.max_epochs=1")
        assert ended.code == 0, ended.err
        assert "no mask holds more at data.size=" in ended.err
    return run


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


@pytest.mark.figures  # with a legend
def test_a_run_learns_and_scores_each_class(run: Path) -> None:
    summary = summary_of(run)
    assert [*summary["classes"]] == ["disc", "square"]
    dice = [scores["dice_per_image"] for scores in summary["classes"].values()]
    assert summary["test"]["dice_per_image"] == pytest.approx(sum(dice) / 2)
    assert min(dice) > 0.8 and summary["test"]["pixel_accuracy"] > 0.9
    assert summary["test"]["dice_per_image"] > summary["baselines"]["mean_mask"]["dice_per_image"]
    assert {*summary["baselines"]} == {"all_background", "mean_mask"}
    rows = read_csv(run / "test_cases.csv")
    assert [row["class"] for row in rows] == NAMES * (len(rows) // 3)
    for name, scores in summary["classes"].items():
        values = [float(row["dice_per_image"]) for row in rows if row["class"] == name]
        assert scores["dice_per_image"] == pytest.approx(sum(values) / len(values), abs=1e-12)
        ranked = sorted(
            (-float(r["confidence"]), i) for i, r in enumerate(rows[NAMES.index(name) :: 3])
        )
        risks = [1 - values[i] for _, i in ranked]
        areas = [sum(risks[:k]) / k for k in range(1, len(risks) + 1)]
        assert scores["aurc"] == pytest.approx(sum(areas) / len(areas), abs=1e-12)
    areas = [scores["aurc"] for scores in summary["classes"].values()]
    assert summary["test"]["aurc"] == pytest.approx(sum(areas) / 2, abs=1e-15)
    row = make_rows(find_runs([run]))[0][0].scores(RISK_METRICS)
    for metric, ends in summary["intervals"]["test"].items():
        assert [*row[metric][2:4]] == pytest.approx(ends) and ends[0] < ends[1]
    assert {*summary["intervals"]["test"]} == {*RISK_METRICS}
    last = read_csv(run / "metrics.csv")[-1]
    assert 0 < float(last["val/dice_per_image_square_net"]) <= 1


def test_masks_in_colours_train_the_same_network(
    data: Path, tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    root, runs = tmp_path / "coloured", (tmp_path / "of_numbers", tmp_path / "of_colours")
    write_tiny_classes(root, COLOURS)
    for run, more in zip(runs, ([], [f"data.root={root}", f"data.colours={COLOURS}"]), strict=True):
        ended = tiny_train(run, *LEARNING, f"data.root={data}", *more, "trainer.max_epochs=1")
        assert ended.code == 0, ended.err
    weights = [hash_weights(run / "checkpoints" / "best.ckpt") for run in runs]
    tables = [(run / "test_cases.csv").read_bytes() for run in runs]
    assert weights[0] == weights[1] and tables[0] == tables[1]


def test_it_is_scored_again_and_elsewhere(run: Path, data: Path, tmp_path: Path) -> None:
    evaluated, summary = evaluate(run, out=tmp_path / "again"), summary_of(run)
    assert (evaluated["test"], evaluated["classes"]) == (summary["test"], summary["classes"])
    cases = (tmp_path / "again" / "test_cases.csv").read_bytes()
    assert cases == (run / "test_cases.csv").read_bytes()
    assert evaluate(run, data_root=data, out=tmp_path / "all")["n"] == 20
    # A score of 1 for a class that is nowhere would otherwise be a silent one.
    discs = write_tiny_classes(tmp_path / "discs", n=10)
    for file in (discs / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(file)) == 1).astype(np.uint8)).save(file)
    warnings = evaluate(run, data_root=discs, out=tmp_path / "discs-scored")["warnings"]
    assert any(warning.startswith("no mask holds square: ") for warning in warnings)


def test_the_table_has_a_line_for_each_class(
    run: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = script("compare", run, "--metrics", "all", "--out", tmp_path)
    assert ended.code == 0, ended.err
    summary = summary_of(run)
    lines = [row for row in read_csv(tmp_path / "table.csv") if row["status"] == "finished"]
    assert [line["class"] for line in lines] == ["all", "disc", "square"]
    expected = [summary["test"], *summary["classes"].values()]
    for line, values in zip(lines, expected, strict=True):
        for name in (
            "dice_per_image",
            "iou_pooled",
            "pixel_accuracy",
            "hd95",
            "sensitivity",
            *RISK_METRICS,
        ):
            assert float(line[name]) == pytest.approx(values[name], abs=1e-12), name
            assert float(line[f"{name}_low"]) <= float(line[name]) <= float(line[f"{name}_high"])
    assert float(lines[0]["ece"]) == pytest.approx(summary["test"]["ece"], abs=1e-12)
    # A baseline's mean is that of its lines, too.
    base = [row for row in read_csv(tmp_path / "table.csv") if row["status"] == "baseline"]
    assert len(base) == 6
    for whole, *classes in (base[:3], base[3:]):
        mean = sum(float(line["dice_per_image"]) for line in classes) / 2
        assert float(whole["dice_per_image"]) == pytest.approx(mean, abs=1e-12)


def test_a_table_of_other_classes_than_the_config_names_is_damaged(
    run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    file = copy / "test_cases.csv"
    file.write_text(file.read_text().replace(",square,", ",circle,"))
    with pytest.raises(InputError, match="not of the classes that its config names"):
        find_runs([copy])


def test_pictures(run: Path, data: Path, tmp_path: Path) -> None:
    predict([run], [data / "images"], tmp_path, ("probabilities", "instances"))
    for row in read_csv(run / "test_cases.csv"):
        file, number = tmp_path / "masks" / f"{row['id']}.png", NAMES.index(row["class"])
        assert Image.open(file).mode == "P"
        mask = read_mask(file, THREE)
        a, b = mask == number, read_mask(data / "masks" / file.name, THREE) == number
        total = a.sum() + b.sum()
        dice = 2 * (a & b).sum() / total if total else 1
        assert float(row["dice_per_image"]) == pytest.approx(dice)
        disc, square = (
            np.asarray(Image.open(tmp_path / "probabilities" / name / file.name))
            for name in NAMES[1:]
        )
        assert disc.dtype == np.uint16
        assert (square[mask == 2] >= disc[mask == 2]).all()
    assert {row["class"] for row in read_csv(tmp_path / "instances.csv")} == {"disc", "square"}


def test_results_are_those_of_the_files(run: Path) -> None:
    written = read_csv(run / "test_cases.csv")
    rows = load_results(run).cases
    assert len(rows) == len(written) and {row["class"] for row in rows} == {*NAMES}
    for row, line in zip(rows, written, strict=True):
        texts = {name: "" if row[name] is None else str(row[name]) for name in line}
        assert texts == line  # to the last digit


def test_files_of_another_networks_classes_are_removed(
    run: Path, other_run: Path, data: Path, tmp_path: Path
) -> None:
    out, picture = tmp_path / "out", data / "images" / "case00.png"
    predict([run], [data / "images"], out, ["probabilities"])
    predict([other_run], [picture], out, ["probabilities"], overwrite=True)
    left = {file.parent.name for file in out.glob("probabilities/*/case00.png")}
    assert left == {"disc", "ring", "more"}
    assert not [*(out / "probabilities" / "square").glob("*")]
    with pytest.raises(InputError, match="has the classes skin, disc, ring, more"):
        predict([run, other_run], [picture], tmp_path / "ensemble")


def test_rows_of_other_classes_have_baselines_of_their_own(
    run: Path, other_run: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = script("compare", run, other_run, "--out", tmp_path)
    assert ended.code == 0, ended.err
    assert "rows have different classes" in ended.out
    whole = [
        float(line["dice_per_image"])
        for line in read_csv(tmp_path / "table.csv")
        if line["label"].startswith("all_background") and line["class"] == "all"
    ]
    runs = (run, other_run)
    means = [summary_of(r)["baselines"]["all_background"]["dice_per_image"] for r in runs]
    assert sorted(whole) == pytest.approx(means) and means[0] < means[1]


def test_an_export_predicts_the_same(
    run: Path, data: Path, tmp_path: Path, script: Callable[..., Ended]
) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "network.onnx"
    ended = script("export", run, "--out", out)
    assert ended.code == 0, ended.err
    image = np.array(Image.open(data / "images" / "case07.png"))
    for tta in (False, True):
        model, other = (load_model(path, tta=tta) for path in (run, out))
        assert other.classes == model.classes == THREE
        one, two = model.probabilities(image), other.probabilities(image)
        assert one.shape == two.shape == (3, *image.shape[:2])
        assert np.abs(one - two).max() < 1e-5
        assert one.sum(0) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.loss._target_=seglab.losses.bce"], "expected one of cross_entropy, "),
        (["inference.tune_threshold=true"], "inference.tune_threshold=true: of several"),
        (["data.classes=[skin,disc]"], "holds 2, which is no class; expected 0 to 1 for skin"),
        (["data.classes=[disc]"], "expected one of bce, "),
        (["data.classes=3"], "data.classes=3: expected a list of names"),
        (["monitor=val/dice_per_image_circle_net"], "no such value; expected one of"),
    ],
)
def test_bad_input_is_one_line(
    overrides: list[str],
    message: str,
    data: Path,
    tiny_train: Callable[..., Ended],
    tmp_path: Path,
) -> None:
    ended = tiny_train(tmp_path / "run", *LEARNING, f"data.root={data}", *overrides)
    assert ended.code == 1
    assert message in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


def test_a_class_can_be_monitored(
    data: Path, tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    monitor = "monitor=val/dice_per_image_square_net"
    few = ["trainer.max_epochs=2", "callbacks.pictures.every_n_epochs=1"]
    learning = [o for o in LEARNING if not o.endswith(("=null", "=none"))]
    ended = tiny_train(tmp_path / "run", *learning, monitor, *few, f"data.root={data}")
    assert ended.code == 0, ended.err
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"val/precision_recall_disc", "val/precision_recall_square"} <= {
        *events.Tags()["tensors"]
    }


def test_lesion_values_take_one_class_of_several(
    data: Path, tmp_path: Path, tiny_train: Callable[..., Ended], script: Callable[..., Ended]
) -> None:
    options = ["data=pairs", f"data.root={data}", "logger=none", "trainer.max_epochs=1"]
    refused = tiny_train(tmp_path / "refused", *options)
    line = refused.err.splitlines()[-1].removeprefix("error: ")
    assert refused.code == 1 and "data.lesion_values=nonzero" in line
    assert line in script("prepare_ph2", "--check", data).out
    run = tmp_path / "run"
    ended = tiny_train(run, *options, "data.lesion_values=[2]")
    assert ended.code == 0, ended.err
    evaluate(run, data_root=data, out=tmp_path / "all")
    for folder in (run, tmp_path / "all"):
        for row in read_csv(folder / "test_cases.csv"):
            numbers = np.asarray(Image.open(data / "masks" / f"{row['id']}.png"))
            assert int(row["tp"]) + int(row["fn"]) == np.sum(numbers == 2)
