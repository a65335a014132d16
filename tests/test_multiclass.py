"""Runs on masks of three classes, from training to comparison, prediction and export."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.measure
from helpers.tiny import Ended, write_tiny_classes
from PIL import Image

from seglab.core.errors import InputError
from seglab.data.classes import Classes
from seglab.data.images import read_mask
from seglab.inference.evaluate import evaluate
from seglab.inference.models import open_model
from seglab.inference.predict import predict
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


def quoted(colours: list[str]) -> str:
    return f"data.colours=[{','.join(repr(c) for c in colours)}]"


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
    """Trained for other classes, skin, disc and ring; read-only."""
    run = folder / "other_run"
    if not run.exists():
        classes = "data.classes=[skin,disc,ring]"
        ended = tiny_train(run, *LEARNING, classes, f"data.root={data}", "trainer.max_epochs=1")
        assert ended.code == 0, ended.err
    return run


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def test_a_run_learns_and_scores_each_class(run: Path) -> None:
    summary = summary_of(run)
    assert [*summary["classes"]] == ["disc", "square"]
    dice = [scores["dice_per_image"] for scores in summary["classes"].values()]
    assert summary["test"]["dice_per_image"] == pytest.approx(sum(dice) / 2)
    assert min(dice) > 0.8 and summary["test"]["pixel_accuracy"] > 0.9
    assert summary["test"]["dice_per_image"] > summary["baselines"]["mean_mask"]["dice_per_image"]
    assert {*summary["baselines"]} == {"all_background", "mean_mask"}
    rows = rows_of(run / "test_cases.csv")
    assert [row["class"] for row in rows] == NAMES * (len(rows) // 3)
    for name, scores in summary["classes"].items():
        values = [float(row["dice_per_image"]) for row in rows if row["class"] == name]
        assert scores["dice_per_image"] == pytest.approx(sum(values) / len(values), abs=1e-12)
    last = rows_of(run / "metrics.csv")[-1]
    assert 0 < float(last["val/dice_per_image_square_net"]) <= 1
    for name in ("pairs", "predictions", "worst", "curves"):
        assert (run / "figures" / f"{name}.png").is_file()


def test_masks_in_colours_train_the_same_network(
    run: Path, folder: Path, tiny_train: Callable[..., Ended]
) -> None:
    root, other = folder / "coloured", folder / "of_coloured"
    write_tiny_classes(root, COLOURS)
    ended = tiny_train(other, *LEARNING, f"data.root={root}", quoted(COLOURS))
    assert ended.code == 0, ended.err
    best = Path("checkpoints", "best.ckpt")
    assert hash_weights(other / best) == hash_weights(run / best)
    assert (other / "test_cases.csv").read_bytes() == (run / "test_cases.csv").read_bytes()


def test_it_is_scored_again_and_elsewhere(run: Path, data: Path, tmp_path: Path) -> None:
    again = evaluate(run, out=tmp_path / "again")
    summary = summary_of(run)
    assert {k: again[k] for k in ("test", "classes")} == {
        k: summary[k] for k in ("test", "classes")
    }
    cases = (tmp_path / "again" / "test_cases.csv").read_bytes()
    assert cases == (run / "test_cases.csv").read_bytes()
    assert evaluate(run, data_root=data, out=tmp_path / "all")["n"] == 20


def test_the_table_has_a_line_for_each_class(
    run: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = script("compare", run, "--metrics", "all", "--out", tmp_path)
    assert ended.code == 0, ended.err
    summary = summary_of(run)
    lines = [row for row in rows_of(tmp_path / "table.csv") if row["status"] == "finished"]
    assert [line["class"] for line in lines] == ["all", "disc", "square"]
    expected = [summary["test"], *summary["classes"].values()]
    for line, values in zip(lines, expected, strict=True):
        for name in ("dice_per_image", "iou_pooled", "pixel_accuracy", "hd95", "sensitivity"):
            assert float(line[name]) == pytest.approx(values[name], abs=1e-12), name
            assert float(line[f"{name}_low"]) <= float(line[name]) <= float(line[f"{name}_high"])
    assert float(lines[0]["ece"]) == pytest.approx(summary["test"]["ece"], abs=1e-12)
    said = [line.split() for line in ended.out.splitlines()]
    assert ["disc", "6"] in [line[:2] for line in said]
    # A baseline's mean is that of its lines, too.
    base = [row for row in rows_of(tmp_path / "table.csv") if row["status"] == "baseline"]
    assert len(base) == 6
    for whole, *classes in (base[:3], base[3:]):
        mean = sum(float(line["dice_per_image"]) for line in classes) / 2
        assert float(whole["dice_per_image"]) == pytest.approx(mean, abs=1e-12)


def test_a_table_of_other_classes_than_the_config_names_is_damaged(
    run: Path, tmp_path: Path
) -> None:
    import shutil

    copy = shutil.copytree(run, tmp_path / "run")
    file = copy / "test_cases.csv"
    file.write_text(file.read_text().replace(",square,", ",circle,"))
    with pytest.raises(InputError, match="not of the classes that its config names"):
        find_runs([copy])


def test_pictures(run: Path, data: Path, tmp_path: Path) -> None:
    extras = ("probabilities", "overlays", "instances", "cutouts")
    counts = predict([run], [data / "images"], tmp_path, extras)
    assert counts == {"predicted": 20, "there": 0, "skipped": 0}
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"masks", *extras}
    assert {p.name for p in (tmp_path / "probabilities").iterdir()} == {"disc", "square"}
    dice = {
        (row["id"], row["class"]): float(row["dice_per_image"])
        for row in rows_of(run / "test_cases.csv")
    }
    for id in {id for id, _ in dice}:
        picture = Image.open(tmp_path / "masks" / f"{id}.png")
        assert picture.mode == "P"
        mask, target = (
            read_mask(picture.filename, THREE),
            read_mask(data / "masks" / f"{id}.png", THREE),
        )
        for number, name in enumerate(NAMES):
            a, b = mask == number, target == number
            total = a.sum() + b.sum()
            assert dice[id, name] == pytest.approx(2 * (a & b).sum() / total if total else 1)
        probs = [
            np.asarray(Image.open(tmp_path / "probabilities" / n / f"{id}.png")) for n in NAMES[1:]
        ]
        assert probs[0].dtype == np.uint16
        assert (probs[1][mask == 2] >= probs[0][mask == 2]).all()
        cut = np.asarray(Image.open(tmp_path / "cutouts" / f"{id}.png"))
        inside = skimage.morphology.erosion(mask > 0, np.ones((7, 7)))
        assert (cut[..., 3][inside] == 255).all()
    assert {row["class"] for row in rows_of(tmp_path / "instances.csv")} == {"disc", "square"}
    again = predict([run], [data / "images"], tmp_path, extras)
    assert again == {"predicted": 0, "there": 20, "skipped": 0}


def test_files_of_another_networks_classes_are_removed(
    run: Path, other_run: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    picture = data / "images" / "case00.png"
    predict([run], [data / "images"], out, ["probabilities"])
    predict([other_run], [picture], out, ["probabilities"], overwrite=True)
    left = {
        p.relative_to(out / "probabilities").as_posix()
        for p in out.rglob("*/case00.png")
        if "probabilities" in p.parts
    }
    assert left == {"disc/case00.png", "ring/case00.png"}
    assert not [*(out / "probabilities" / "square").glob("*")]


def test_rows_of_other_classes_have_baselines_of_their_own(
    run: Path,
    data: Path,
    tiny_train: Callable[..., Ended],
    script: Callable[..., Ended],
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    names = "data.classes=[skin,disc,square,more]"
    ended = tiny_train(other, *LEARNING, names, f"data.root={data}", "trainer.max_epochs=1")
    assert ended.code == 0, ended.err
    assert "no training mask holds more, class 3" in ended.err
    ended = script("compare", run, other, "--out", tmp_path / "table")
    assert ended.code == 0, ended.err
    assert "rows tell other classes apart" in ended.out
    lines = rows_of(tmp_path / "table" / "table.csv")
    empty = [line for line in lines if line["label"].startswith("all_background")]
    whole = [float(line["dice_per_image"]) for line in empty if line["class"] == "all"]
    means = [summary_of(r)["baselines"]["all_background"]["dice_per_image"] for r in (run, other)]
    assert sorted(whole) == pytest.approx(sorted(means)) and means[0] < means[1]


def test_an_export_predicts_the_same(
    run: Path, data: Path, tmp_path: Path, script: Callable[..., Ended]
) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "network.onnx"
    ended = script("export", run, "--out", out)
    assert ended.code == 0, ended.err
    model, other = open_model(run), open_model(out)
    assert other.classes == model.classes == THREE
    for tta in (False, True):
        model, other = (open_model(path, tta=tta) for path in (run, out))
        image = np.array(Image.open(data / "images" / "case07.png"))
        one, two = model.predict(image), other.predict(image)
        assert one.shape == two.shape == (3, *image.shape[:2])
        assert np.abs(one - two).max() < 1e-5
        assert one.sum(0) == pytest.approx(1, abs=1e-5)
    predict([out], [data / "images"], tmp_path / "a")
    predict([run], [data / "images"], tmp_path / "b")
    for file in (tmp_path / "a" / "masks").iterdir():
        a, b = (np.asarray(Image.open(tmp_path / d / "masks" / file.name)) for d in "ab")
        assert np.array_equal(a, b)


def test_networks_of_other_classes_are_no_ensemble(
    run: Path, other_run: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="has the classes skin, disc, ring"):
        predict([run, other_run], [data / "images"], tmp_path / "out")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.loss._target_=seglab.losses.bce"], "expected one of cross_entropy, "),
        (["inference.tune_threshold=true"], "inference.tune_threshold=true: of several"),
        (["model.classes=2"], "expected logits of (1, 3, 32, 32) for data.classes, skin, disc"),
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
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"val/precision_recall_disc", "val/precision_recall_square"} <= {
        *events.Tags()["tensors"]
    }
