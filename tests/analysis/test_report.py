"""report.py: numbers as in the run's own files, pictures predicted again, a page that is safe."""

import base64
import hashlib
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fake_runs import HOSTILE, read_page, write_run, write_sets_run
from helpers.tiny import Ended, write_tiny_classes
from PIL import Image
from skimage.draw import disk, polygon2mask

from seglab.analysis import report as module
from seglab.analysis.compare import compare
from seglab.analysis.figures import error_map
from seglab.analysis.gallery import draw_image, draw_prediction, trace_outlines
from seglab.analysis.report import report
from seglab.core.errors import InputError
from seglab.core.files import read_csv, read_json, write_json
from seglab.data.classes import ONE_CLASS, Classes
from seglab.data.images import read_image
from seglab.data.layouts import find_cases
from seglab.data.masks import read_mask
from seglab.inference.postprocessing import predicted_mask
from seglab.inference.predictor import make_predictor
from seglab.metrics.confidence import RISK_METRICS
from seglab.runs.checkpoints import load_run_network
from seglab.runs.paths import FORMAT
from seglab.runs.records import open_run
from seglab.schema import Inference

Script = Callable[..., Ended]
pytestmark = pytest.mark.usefixtures("few_resamples")
NAMES = ("two", "one")  # folders of the rows by their labels: tta=false, tta=true


def picture(url: str) -> np.ndarray:
    head, _, data = url.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def coarse(image: np.ndarray) -> np.ndarray:
    """Without the noise that a compressed picture lacks."""
    return np.asarray(Image.fromarray(image).reduce(5), float)


def stored(row: Path, column: str = "dice_per_image") -> dict[str, float]:
    """A score of each case of both folds of a row."""
    cases = [case for fold in "01" for case in read_csv(row / fold / "test_cases.csv")]
    return {case["id"]: float(case[column]) for case in cases}


def test_numbers_are_those_of_compare_and_of_the_runs(
    swept: Path, page: Path, tmp_path: Path
) -> None:
    data = read_page(page)
    compare([swept], "all", by_diagnosis=True, slices=True, out=tmp_path)
    known = read_csv(tmp_path / "table.csv")
    for name, lines in (
        ("table", [line for line in known if line["diagnosis"] == "all"]),
        ("diagnoses", known),
    ):
        table = data[name]
        assert len(table["body"]) == len(lines) > 4  # baselines too
        for cells, line in zip(table["body"], lines, strict=True):
            row = dict(zip(table["head"], cells, strict=True))
            assert row["n"] == line["n"]
            for metric in module.REPORT_METRICS:
                value, low, high = (float(line[f"{metric}{end}"]) for end in ("", "_low", "_high"))
                digits = 1 if metric == "hd95" else 3
                ends = f"[{low:.{digits}f}, {high:.{digits}f}]"
                assert row[metric] == f"{value:.{digits}f} {ends}"
    assert any("fewer than 50 cases" in note for note in data["table"]["notes"])
    aurc = data["aurc"]
    assert aurc["head"][-3:] == [*RISK_METRICS] and len(aurc["body"]) == 2  # not of baselines
    for cells, line in zip(
        aurc["body"], [x for x in known if x["diagnosis"] == "all" and int(x["runs"])], strict=True
    ):
        for cell, metric in zip(cells[-3:], RISK_METRICS, strict=True):
            assert cell.startswith(f"{float(line[metric]):.4f} [{float(line[f'{metric}_low']):.4f}")
    slices = read_csv(tmp_path / "slices.csv")
    assert {*read_csv(swept / "one" / "0" / "case_attributes.csv")[0]} > {"contrast", "asymmetry"}
    assert {"diagnosis", "contrast"} < {line["attribute"] for line in slices}
    for cells, line in zip(data["slices"]["body"], slices, strict=True):
        assert cells[2:4] == [line["slice"], line["n"] + "*" * (int(line["n"]) < 10)]
        assert cells[4].startswith(f"{float(line['value']):.3f}")
    rows, cases = data["gallery"]["rows"], data["gallery"]["cases"]
    assert len(rows) == 2 and data["gallery"]["notes"] == []
    # Every case once, each with both rows' own Dice.
    assert sorted(card["id"] for card in cases) == [f"IMD{i:03}" for i in range(12)]
    for number, name in enumerate(NAMES):
        dice = {card["id"]: card["rows"][str(number)]["dice"] for card in cases}
        assert dice == stored(swept / name)
    facts = dict(data["facts"])
    assert str(swept.parent / "PH2Dataset") in facts["Data"]
    record = read_json(swept / "one" / "0" / "run.json")
    assert record["start"][:10] in facts["Started"]
    assert record["versions"]["seglab"] in facts["Code"]
    (loss,) = [panel for panel in data["curves"] if panel["name"] == "loss"]
    first, second = (
        [float(row["val/loss"]) for row in read_csv(swept / "one" / fold / "metrics.csv")]
        for fold in "01"
    )
    means = [line["mean"] for line in loss["lines"] if line["part"] == "val"]
    assert any(np.allclose(mean, np.mean([first, second], 0), rtol=1e-4) for mean in means)


def test_pictures_are_what_the_networks_predict(swept: Path, page: Path) -> None:
    data = read_page(page)
    cases = {case.id: case for case in find_cases(swept.parent / "PH2Dataset")}
    cards = {card["id"]: card for card in data["gallery"]["cases"]}
    for number, name in enumerate(NAMES):
        for fold in "01":
            run = open_run(swept / name / fold)
            predict = make_predictor(load_run_network(run)[0], 32, tta=name == "one")
            for id in run.ids["test"]:
                image, target = read_image(cases[id].image), read_mask(cases[id].mask)
                pred = predicted_mask(
                    predict(image).prob, run.threshold, Inference(**run.config["inference"])
                )
                card, result = cards[id], cards[id]["rows"][str(number)]
                for url, mask in ((result["prediction"], pred), (result["target"], target)):
                    assert np.array_equal(
                        picture(url), np.repeat(mask[..., None] * np.uint8(255), 3, 2)
                    )
                assert np.array_equal(picture(result["errors"]), error_map(pred, target))
                assert np.abs(coarse(picture(card["image"])) - coarse(image)).mean() < 3
                assert (card["width"], card["height"]) == target.shape[::-1]


def test_the_difference_of_rows_is_that_of_compare(
    swept: Path, page: Path, labels: list[str], tmp_path: Path
) -> None:
    data = read_page(page)
    compare([swept], versus=[(labels[1], labels[0])], out=tmp_path)
    (known,) = read_csv(tmp_path / "versus.csv")
    (cells,) = data["versus"]["body"]
    value, low, high = (float(known[key]) for key in ("difference", "low", "high"))
    assert cells[:4] == [labels[1], labels[0], "12", "1, 1"]
    assert cells[4] == f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
    differences = [
        c["rows"]["1"]["dice"] - c["rows"]["0"]["dice"] for c in data["gallery"]["cases"]
    ]
    assert value == pytest.approx(np.mean(differences), abs=1e-9)
    assert data["pairs"] == [[1, 0]]
    with pytest.raises(InputError, match="--versus 'none'"):
        report([swept], tmp_path / "page.html", versus=[("none", labels[0])])
    assert not (tmp_path / "page.html").exists()


def test_of_many_rows_those_of_best_val_are_shown(
    swept: Path, labels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 1)
    shutil.copytree(swept, tmp_path / "runs")
    for fold in "01":
        summary = tmp_path / "runs" / NAMES[1] / fold / "summary.json"
        values = read_json(summary)
        values["val"]["dice_per_image"] = 0.9
        write_json(summary, values)
    swept = tmp_path / "runs"
    other, best = labels
    data = read_page(report([swept], tmp_path / "page.html"))
    assert [row["label"] for row in data["gallery"]["rows"]] == [best]
    assert len(data["table"]["body"]) == 2 + 3
    assert any("those of 1 rows" in note for note in data["table"]["notes"])
    assert {line["row"] for panel in data["curves"] for line in panel["lines"]} == {0}
    # Who is named comes first.
    data = read_page(report([swept], tmp_path / "page.html", versus=[(other, best)]))
    assert [row["label"] for row in data["gallery"]["rows"]] == [other]
    assert data["pairs"] == [] and len(data["versus"]["body"]) == 1


def points_of(path: str, height: int, width: int) -> list[np.ndarray]:
    """Polygons of a path, in pixels: x, y."""
    pieces = [re.findall(r"[\d.]+", piece) for piece in re.findall(r"M([^z]*)z", path)]
    return [np.array(piece, float).reshape(-1, 2) * (width, height) for piece in pieces]


def test_outlines_enclose_the_mask() -> None:
    mask = np.zeros((150, 200), np.uint8)
    mask[disk((60, 180), 50, shape=mask.shape)] = 1  # beyond the frame
    mask[disk((60, 160), 12)] = 0
    mask[disk((120, 40), 20)] = 1
    (path,) = trace_outlines(mask, ONE_CLASS)
    inside = np.zeros(mask.shape, bool)
    for points in points_of(path, *mask.shape):
        inside ^= polygon2mask(mask.shape, points[:, ::-1] - 0.5)  # pixels' centres
    assert (inside == mask).mean() > 0.99 and len(points_of(path, *mask.shape)) == 3
    assert trace_outlines(mask * 0, ONE_CLASS) == [""]
    # One path for each class.
    three = Classes(("skin", "disc", "square"))
    mask[:] = 0
    mask[100:140, 20:60], mask[10:50, 20:60], mask[10:20, 100:110] = 1, 2, 2
    first, second = trace_outlines(mask, three)
    assert (first.count("M"), second.count("M")) == (1, 2)


def test_the_worst_cases_are_shown(swept: Path, tmp_path: Path, script: Script) -> None:
    out = tmp_path / "deep" / "page.html"
    ended = script("report", swept / "one", "--out", out, "--cases", "5")
    assert ended.code == 0, ended.err
    gallery = read_page(out)["gallery"]
    assert gallery["notes"][0].startswith("shown are the 5 of 12 cases with the lowest Dice")
    dice = stored(swept / "one")
    lowest = sorted(dice, key=lambda id: (dice[id], id))[:5]
    ids = [card["id"] for card in gallery["cases"]]
    doubtful = [cells[0] for cells in read_page(out)["doubtful"]["body"]]
    confidence = stored(swept / "one", "confidence")
    doubted = sorted(confidence, key=lambda id: (confidence[id], id))[:5]
    assert ids[:5] == lowest and {*ids} == {*lowest, *doubted, *doubtful} and len(doubtful) == 10
    assert all("image" in card for card in gallery["cases"])


def test_risk_and_confidence_are_those_of_the_test_cases(swept: Path, page: Path) -> None:
    data = read_page(page)
    curves = {(line["row"], line["part"]): line["mean"] for line in data["risk"]["lines"]}
    for number, name in enumerate(NAMES):
        rows = [row for fold in "01" for row in read_csv(swept / name / fold / "test_cases.csv")]
        dice = {row["id"]: float(row["dice_per_image"]) for row in rows}
        confidence = {row["id"]: float(row["confidence"]) for row in rows}
        shown = {c["id"]: c["rows"][str(number)]["confidence"] for c in data["gallery"]["cases"]}
        assert shown == confidence
        for part, order in (("confidence", confidence), ("oracle", dice)):
            risks = [1 - dice[id] for id in sorted(order, key=order.__getitem__, reverse=True)]
            # 25 % of twelve cases are three, 26 % are four.
            for percent, n in ((1, 1), (25, 3), (26, 4), (100, 12)):
                mean = sum(risks[:n]) / n
                assert curves[number, part][percent - 1] == pytest.approx(mean, abs=1e-12)
        assert curves[number, "chance"] == pytest.approx([1 - np.mean([*dice.values()])] * 100)


def test_large_images_become_thumbnails() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (600, 900, 3), dtype=np.uint8)
    target, pred = np.kron(random.random((2, 6, 9)) < 0.5, np.ones((100, 100), np.uint8))
    drawn = draw_image(image) | draw_prediction(pred, target, ONE_CLASS)
    for name in ("image", "target", "prediction", "errors"):
        assert picture(drawn[name]).shape == (320, 480, 3)
    assert (drawn["width"], drawn["height"]) == (900, 600)


def test_the_page_asks_for_nothing(page: Path) -> None:
    text = page.read_text()
    markup = text.replace("http://www.w3.org/2000/svg", "")  # the name of SVG
    template = (
        markup.partition('id="data">')[0]
        + markup.rpartition("</script>")[0].rpartition("<script>")[2]
    )
    assert not re.search(r"https?:|@import|url\(|//\w+\.", template)
    assert not re.findall(r"\b(?:src|href)=\"(?!data:)", template)
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_hostile_names_stay_text(hostile: Path, page: Path) -> None:
    text, data = hostile.read_text(), read_page(hostile)
    assert text.count("</script>") == page.read_text().count("</script>") == 2
    assert "<img" not in text
    assert all(card["id"].startswith(HOSTILE) for card in data["gallery"]["cases"])
    assert any(HOSTILE in card["diagnosis"] for card in data["gallery"]["cases"])
    assert HOSTILE in data["title"] and HOSTILE in dict(data["facts"])["Code"]
    # It is not the split that the network was trained on.
    assert "no predictions are shown" in data["gallery"]["notes"][0]
    assert all("image" not in card for card in data["gallery"]["cases"])


def test_several_classes(tiny_train: Script, tmp_path: Path) -> None:
    names = ["skin", "disc", "square"]
    run, root = tmp_path / "run", write_tiny_classes(tmp_path / "classes", n=12)
    ended = tiny_train(
        *(run, f"data.root={root}", "data=pairs", f"data.classes=[{','.join(names)}]"),
        *("experiment=classes", "logger=none", "callbacks.pictures=null", "data.split.test=0.3"),
    )
    assert ended.code == 0, ended.err
    data = read_page(report([run], tmp_path / "page.html"))
    (row,), cases = data["gallery"]["rows"], data["gallery"]["cases"]
    opened = open_run(run)
    net, metadata = load_run_network(opened)
    palette = metadata["classes"].palette
    colours = [f"#{bytes(colour).hex()}" for colour in palette]
    assert row["legend"] == [[names[k], colours[k]] for k in (1, 2)]
    rows = read_csv(run / "test_cases.csv")
    assert {card["id"] for card in cases} == {row["id"] for row in rows}
    predict = make_predictor(net, 32)
    for card in cases:
        lesion_rows = [r for r in rows if r["id"] == card["id"] and r["class"] != "skin"]
        mean = sum(float(r["dice_per_image"]) for r in lesion_rows) / 2
        assert card["rows"]["0"]["dice"] == pytest.approx(mean, abs=1e-12)
        pred = predict(read_image(root / "images" / f"{card['id']}.png")).prob.argmax(0)
        target = np.asarray(Image.open(root / "masks" / f"{card['id']}.png"))
        assert np.array_equal(picture(card["rows"]["0"]["prediction"]), palette[pred])
        assert np.array_equal(picture(card["rows"]["0"]["target"]), palette[target])
        assert np.array_equal(picture(card["rows"]["0"]["errors"]), error_map(pred, target))
        assert len(card["rows"]["0"]["target_outlines"]) == 2
    classes = data["table"]["head"].index("class")
    assert [cells[classes] for cells in data["table"]["body"]][:3] == ["all", "disc", "square"]


def test_what_is_gone_or_changed_is_said(swept: Path, tmp_path: Path) -> None:
    run, root = tmp_path / "run", tmp_path / "data"
    shutil.copytree(swept / "two" / "0", run)
    shutil.copytree(swept.parent / "PH2Dataset", root)
    config = (run / "config.yaml").read_text().replace(str(swept.parent / "PH2Dataset"), str(root))
    (run / "config.yaml").write_text(config)
    root.rename(tmp_path / "elsewhere")

    def gallery(**options: Any) -> dict[str, Any]:
        return read_page(report([run], tmp_path / "page.html", **options))["gallery"]

    (note,) = gallery()["notes"]
    assert str(root) in note and "--moved-to" in note
    found = gallery(data_root=tmp_path / "elsewhere")
    assert found["notes"] == [] and all("image" in card for card in found["cases"])
    # One case changes, one goes: the others are still shown.
    by_id = {case.id: case for case in find_cases(tmp_path / "elsewhere")}
    changed, gone, *others = [card["id"] for card in found["cases"]]
    image = by_id[changed].image
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    shutil.rmtree(by_id[gone].image.parents[1])
    rest = gallery(data_root=tmp_path / "elsewhere")
    assert f"no predictions are shown of {changed}, {gone}: " in rest["notes"][0]
    assert others and rest["cases"][2:] == found["cases"][2:]
    assert not any("image" in card for card in rest["cases"][:2])
    # Numbers need no network either.
    (run / "checkpoints" / "best.ckpt").unlink()
    assert "best.ckpt" in gallery()["notes"][0]


def test_bad_input_is_one_line(script: Script, swept: Path, tmp_path: Path) -> None:
    run = swept / "one" / "0"
    failed = tmp_path / "failed" / "0"
    failed.mkdir(parents=True)
    write_json(failed / "run.json", {"format": FORMAT, "status": "failed", "error": "X: full"})
    (tmp_path / "file").write_text("")
    for arguments, said in {
        (tmp_path / "file",): "cannot be searched for runs",
        (failed.parent,): "failed before it had a config: X: full",
        (run, swept / "two"): "--out: name the file",
        (run, "--cases", -5): "--cases -5: expected",
        (run, "--out", tmp_path): "expected a file that can be written",
        (run, "--out", tmp_path / "file" / "page.html"): str(tmp_path / "file"),
        (run, "--out", Path("/proc/page.html")): "/proc/page.html",
        (write_run(tmp_path / "gone", status="failed"),): "holds no finished run",
    }.items():
        ended = script("report", *arguments)
        assert ended.code == 1 and said in ended.err, ended.err
        assert len(ended.err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*.html")) and not list(swept.rglob("*.html"))
    # One that failed beside one that did not is a row of the table.
    shutil.copytree(run, tmp_path / "both" / "run")
    failed.rename(tmp_path / "both" / "failed")
    ended = script("report", tmp_path / "both")
    assert ended.code == 0, ended.err
    data = read_page(tmp_path / "both" / "report.html")
    assert any("failed before it had a config: X: full" in note for note in data["table"]["notes"])
    assert len(data["gallery"]["rows"]) == 1


def test_data_sets_of_a_run_share_its_training_curves(tmp_path: Path) -> None:
    sets = {name: {f"{name}{i}": "unknown" for i in range(4)} for name in ("a", "b")}
    run = write_sets_run(tmp_path / "run", sets)
    (run / "metrics.csv").write_text("epoch,train/loss,val/loss\n1,2,3\n2,1,2\n")
    data = read_page(report([run], tmp_path / "page.html", cases=0))
    assert len(data["gallery"]["rows"]) == 2
    (loss,) = data["curves"]
    assert [(line["row"], line["mean"]) for line in loss["lines"]] == [(0, [2, 1]), (0, [3, 2])]
    assert loss["parts"].endswith("a run's data sets together")
