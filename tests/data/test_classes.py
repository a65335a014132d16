"""Several classes: reading, losses, metrics and masks by hand, and runs from data to pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.measure
import torch
from helpers.tiny import Ended, write_tiny_classes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from seglab.config import Inference
from seglab.core.errors import InputError
from seglab.data.classes import MAX_CLASSES, Classes, make_classes
from seglab.data.images import read_mask
from seglab.inference.drawing import draw_contours
from seglab.inference.evaluate import evaluate
from seglab.inference.models import open_model, refuse_twice
from seglab.inference.postprocessing import (
    measure_instances,
    number_instances,
    predicted_mask,
)
from seglab.inference.predict import predict
from seglab.metrics.modules import segmentation_metrics
from seglab.runs.checkpoints import hash_weights
from seglab.runs.records import find_runs

NAMES = ["skin", "disc", "square"]
COLOURS = ["#000000", "#ff0080", "#00ff00"]
THREE = Classes(tuple(NAMES))
IN_COLOUR = Classes(tuple(NAMES), tuple(COLOURS))
MASKS = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(0, 2)
)
# Networks learn the tiny set in seconds.
LEARNING = [
    *("data=pairs", f"data.classes=[{','.join(NAMES)}]", "experiment=classes", "monitor=null"),
    *("logger=none", "callbacks.pictures=null", "task.optimizer.lr=0.02"),
    *("trainer.max_epochs=20", "data.batch_size=4", "data.split.test=0.3"),
]


def quoted(colours: list[str]) -> str:
    return f"data.colours=[{','.join(repr(c) for c in colours)}]"


class TestReading:
    @pytest.mark.parametrize(
        ("names", "colours", "said"),
        [
            ([], None, "expected a list of names"),
            ("skin", None, "expected a list of names"),
            ([1, 2], None, "expected a list of names"),
            (None, None, "expected a list of names"),
            ([f"a{i}" for i in range(MAX_CLASSES + 1)], None, "expected a list of names"),
            (["a", "a"], None, "'a': expected names of letters"),
            (["a", "A"], None, "'a': expected names of letters"),
            (["a", "../b"], None, "'../b': expected names of letters"),
            (["a", "é"], None, "'é': expected names of letters"),
            (["a", "Test"], None, "'test': means something else"),
            (["a", "b"], ["#000000"], "a colour such as '#ff8000' for each of a, b"),
            (["a", "b"], ["#00FF00", "#00ff00"], "no two equal"),
            (["a", "b"], ["#000000", "red"], "a colour such as"),
            (["a"], ["#000000"], "masks of one class are read by brightness"),
        ],
    )
    def test_names_and_colours_that_are_none(self, names: Any, colours: Any, said: str) -> None:
        with pytest.raises(InputError, match=said):
            make_classes(names, colours)

    def test_palettes_tell_all_classes_apart(self) -> None:
        many = make_classes([f"class{i}" for i in range(MAX_CLASSES)])
        assert many.palette.shape == (MAX_CLASSES, 3) and many.palette.dtype == np.uint8
        assert len({tuple(colour) for colour in many.palette[1:].tolist()}) == MAX_CLASSES - 1
        assert IN_COLOUR.palette.tolist() == [[0, 0, 0], [255, 0, 128], [0, 255, 0]]


class TestScores:
    def test_the_collection_names_each_class_but_background(self) -> None:
        metrics = segmentation_metrics(0.5, NAMES)
        prob = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2]]).T[None, :, None]
        metrics.update(prob, torch.tensor([[[[0.0, 2.0, 2.0]]]]))
        values = {name: value.item() for name, value in metrics.compute().items()}
        assert values["dice_per_image_disc_net"] == 0
        assert values["dice_per_image_square_net"] == pytest.approx(2 / 3)
        assert values["dice_per_image_net"] == pytest.approx(1 / 3)
        assert values["pixel_accuracy_net"] == pytest.approx(2 / 3)
        # How sure it is of each pixel, 0.5, 0.7 and 0.6, against right, right and wrong; no two of
        # 15 bins are one.
        assert values["ece_net"] == pytest.approx((0.5 + 0.3 + 0.6) / 3, abs=1e-6)
        assert not [name for name in values if "skin" in name]


class TestMasks:
    def test_the_most_probable_class_is_taken_of_equal_ones_the_first(self) -> None:
        prob = np.array([[[0.2, 0.4]], [[0.5, 0.4]], [[0.3, 0.2]]], np.float32)
        mask = predicted_mask(prob, 0.5)
        assert mask.dtype == np.uint8 and mask.tolist() == [[1, 0]]

    def test_each_class_is_cleaned_by_itself(self) -> None:
        mask = np.array(
            [
                [1, 1, 1, 0, 2],
                [1, 0, 1, 0, 0],
                [1, 1, 1, 0, 1],
                [0, 0, 0, 0, 0],
                [2, 2, 2, 2, 2],
                [2, 0, 2, 1, 2],
                [2, 2, 2, 2, 2],
            ]
        )
        prob = np.stack([mask == k for k in range(3)]).astype(np.float32)
        cleaned = predicted_mask(prob, 0.5, Inference(largest_component=True, fill_holes=True))
        assert cleaned.tolist() == [
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [0, 0, 0, 0, 0],
            [2, 2, 2, 2, 2],
            [2, 2, 2, 2, 2],  # what was of class 1 there was removed before
            [2, 2, 2, 2, 2],
        ]
        assert predicted_mask(prob, 0.5).tolist() == mask.tolist()

    @settings(deadline=None, max_examples=60)
    @given(
        mask=arrays(
            np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)
        )
    )
    def test_instances_are_scikit_images(self, mask: np.ndarray) -> None:
        numbered = number_instances(mask)
        expected, n = skimage.measure.label(mask, background=0, connectivity=2, return_num=True)
        assert numbered.max() == n and numbered.dtype == np.uint16
        pairs = {*zip(numbered.ravel().tolist(), expected.ravel().tolist(), strict=True)}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        sizes = np.bincount(numbered.ravel())[1:]
        assert (np.diff(sizes) <= 0).all()
        classes = Classes(("none", "a", "b", "c"))
        prob = np.stack([np.full(mask.shape, (k + 1) / 8, np.float32) for k in range(4)])
        for row in measure_instances(numbered, mask, prob, classes):
            (number,) = np.unique(mask[numbered == row["lesion"]])
            assert row["class"] == classes.names[number]
            assert row["mean_probability"] == pytest.approx((number + 1) / 8)

    def test_each_class_is_outlined_in_its_colour(self) -> None:
        image = np.full((40, 60, 3), 77, np.uint8)
        mask = np.zeros((40, 60), np.uint8)
        mask[5:35, 5:30], mask[5:35, 30:55] = 1, 2
        out = draw_contours(image, mask, IN_COLOUR)
        assert (out[5:35, 29] == IN_COLOUR.palette[1]).all()  # where they touch, too
        assert (out[5:35, 30] == IN_COLOUR.palette[2]).all()
        assert (out[15, 10:25] == 77).all() and (out[0] == 77).all()


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


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


class TestRuns:
    def test_it_learns_and_says_each_class(self, run: Path) -> None:
        summary = summary_of(run)
        assert [*summary["classes"]] == ["disc", "square"]
        each = [own["dice_per_image"] for own in summary["classes"].values()]
        assert summary["test"]["dice_per_image"] == pytest.approx(sum(each) / 2)
        assert min(each) > 0.8 and summary["test"]["pixel_accuracy"] > 0.9
        assert (
            summary["test"]["dice_per_image"] > summary["baselines"]["mean_mask"]["dice_per_image"]
        )
        assert {*summary["baselines"]} == {"all_background", "mean_mask"}
        rows = rows_of(run / "test_cases.csv")
        assert [row["class"] for row in rows] == NAMES * (len(rows) // 3)
        for name, own in summary["classes"].items():
            mine = [float(row["dice_per_image"]) for row in rows if row["class"] == name]
            assert own["dice_per_image"] == pytest.approx(sum(mine) / len(mine), abs=1e-12)
        last = rows_of(run / "metrics.csv")[-1]
        assert 0 < float(last["val/dice_per_image_square_net"]) <= 1
        for name in ("pairs", "predictions", "worst", "curves"):
            assert (run / "figures" / f"{name}.png").is_file()

    def test_masks_in_colours_train_the_same_network(
        self, run: Path, folder: Path, tiny_train: Callable[..., Ended]
    ) -> None:
        root, other = folder / "coloured", folder / "of_colours"
        write_tiny_classes(root, COLOURS)
        ended = tiny_train(other, *LEARNING, f"data.root={root}", quoted(COLOURS))
        assert ended.code == 0, ended.err
        best = Path("checkpoints", "best.ckpt")
        assert hash_weights(other / best) == hash_weights(run / best)
        assert (other / "test_cases.csv").read_bytes() == (run / "test_cases.csv").read_bytes()

    def test_it_is_scored_again_and_elsewhere(self, run: Path, data: Path, tmp_path: Path) -> None:
        again = evaluate(run, out=tmp_path / "again")
        summary = summary_of(run)
        assert {k: again[k] for k in ("test", "classes")} == {
            k: summary[k] for k in ("test", "classes")
        }
        cases = (tmp_path / "again" / "test_cases.csv").read_bytes()
        assert cases == (run / "test_cases.csv").read_bytes()
        assert evaluate(run, data_root=data, out=tmp_path / "all")["n"] == 20

    def test_the_table_has_a_line_for_each_class(
        self, run: Path, script: Callable[..., Ended], tmp_path: Path
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
                assert (
                    float(line[f"{name}_low"]) <= float(line[name]) <= float(line[f"{name}_high"])
                )
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
        self, run: Path, tmp_path: Path
    ) -> None:
        import shutil

        copy = shutil.copytree(run, tmp_path / "run")
        file = copy / "test_cases.csv"
        file.write_text(file.read_text().replace(",square,", ",circle,"))
        with pytest.raises(InputError, match="not of the classes that its config names"):
            find_runs([copy])

    def test_pictures(self, run: Path, data: Path, tmp_path: Path) -> None:
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
                np.asarray(Image.open(tmp_path / "probabilities" / n / f"{id}.png"))
                for n in NAMES[1:]
            ]
            assert probs[0].dtype == np.uint16
            assert (probs[1][mask == 2] >= probs[0][mask == 2]).all()
            cut = np.asarray(Image.open(tmp_path / "cutouts" / f"{id}.png"))
            inside = skimage.morphology.erosion(mask > 0, np.ones((7, 7)))
            assert (cut[..., 3][inside] == 255).all()
        assert {row["class"] for row in rows_of(tmp_path / "instances.csv")} == {"disc", "square"}
        again = predict([run], [data / "images"], tmp_path, extras)
        assert again == {"predicted": 0, "there": 20, "skipped": 0}

    def test_what_another_network_told_apart_goes(
        self, run: Path, data: Path, tiny_train: Callable[..., Ended], tmp_path: Path
    ) -> None:
        other, out = tmp_path / "other", tmp_path / "out"
        names = "data.classes=[skin,disc,ring]"
        ended = tiny_train(other, *LEARNING, names, f"data.root={data}", "trainer.max_epochs=1")
        assert ended.code == 0, ended.err
        picture = data / "images" / "case00.png"
        predict([run], [data / "images"], out, ["probabilities"])
        predict([other], [picture], out, ["probabilities"], overwrite=True)
        left = {
            p.relative_to(out / "probabilities").as_posix()
            for p in out.rglob("*/case00.png")
            if "probabilities" in p.parts
        }
        assert left == {"disc/case00.png", "ring/case00.png"}
        assert len([*(out / "probabilities" / "square").iterdir()]) == 19

    def test_rows_of_other_classes_have_baselines_of_their_own(
        self,
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
        means = [
            summary_of(r)["baselines"]["all_background"]["dice_per_image"] for r in (run, other)
        ]
        assert sorted(whole) == pytest.approx(sorted(means)) and means[0] < means[1]

    def test_a_data_file_of_ones_own_need_not_name_classes(
        self, tiny_config: Callable[..., Any], tmp_path: Path
    ) -> None:
        from omegaconf import open_dict

        from seglab.config import check_config

        cfg = tiny_config(tmp_path / "run")
        with open_dict(cfg):
            del cfg.data["classes"], cfg.data["colours"]
        config = check_config(cfg)
        assert config["data"]["classes"] == ["lesion"] and config["model"]["classes"] == 1

    def test_an_export_predicts_the_same(
        self, run: Path, data: Path, tmp_path: Path, script: Callable[..., Ended]
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
        self, run: Path, data: Path, tiny_train: Callable[..., Ended], tmp_path: Path
    ) -> None:
        names = "data.classes=[skin,disc,other]"
        other = tmp_path / "other"
        ended = tiny_train(other, *LEARNING, names, f"data.root={data}", "trainer.max_epochs=1")
        assert ended.code == 0, ended.err
        refuse_twice([run, other])
        with pytest.raises(InputError, match="tells skin, disc, other apart"):
            predict([run, other], [data / "images"], tmp_path / "out")

    @pytest.mark.parametrize(
        ("overrides", "said"),
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
        self,
        overrides: list[str],
        said: str,
        data: Path,
        tiny_train: Callable[..., Ended],
        tmp_path: Path,
    ) -> None:
        ended = tiny_train(tmp_path / "run", *LEARNING, f"data.root={data}", *overrides)
        assert ended.code == 1
        assert said in ended.err.splitlines()[-1]
        assert "Traceback" not in ended.err

    def test_a_class_can_be_monitored(
        self, data: Path, tiny_train: Callable[..., Ended], tmp_path: Path
    ) -> None:
        monitor = "monitor=val/dice_per_image_square_net"
        few = ["trainer.max_epochs=2", "callbacks.pictures.every_n_epochs=1"]
        learning = [o for o in LEARNING if "null" not in o]
        ended = tiny_train(tmp_path / "run", *learning, monitor, *few, f"data.root={data}")
        assert ended.code == 0, ended.err
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
        assert {"val/precision_recall_disc", "val/precision_recall_square"} <= {
            *events.Tags()["tensors"]
        }
