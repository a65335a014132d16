"""report.py: numbers as in the run's own files, pictures predicted again, a page that is safe."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny import Ended, skip_figures, write_tiny_classes, write_tiny_ph2
from PIL import Image
from skimage.draw import disk, polygon2mask

from seglab.analysis import report as module
from seglab.analysis import statistics as stats
from seglab.analysis.compare import compare
from seglab.analysis.figures import error_map
from seglab.analysis.gallery import MAX_OUTLINES, draw_image, draw_prediction, trace_outlines
from seglab.analysis.grouping import make_rows
from seglab.analysis.report import report
from seglab.config import Inference
from seglab.core.errors import InputError
from seglab.data.classes import ONE_CLASS, Classes
from seglab.data.images import read_image, read_mask
from seglab.data.layouts import find_cases
from seglab.inference.postprocessing import predicted_mask
from seglab.inference.predictor import make_predictor
from seglab.runs.opening import load_run_network, open_run
from seglab.runs.records import find_runs

Script = Callable[..., Ended]
PLAIN = ["logger=none", "callbacks.pictures=null", "monitor=null", "model.width=2"]
HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def few_resamples_and_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 99)
    skip_figures(monkeypatch)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture
def swept(folder: Path, tiny_train: Script) -> Path:
    """Two rows of two folds each; read-only by agreement."""
    data, runs = folder / "PH2Dataset", folder / "runs"
    if not runs.exists():
        write_tiny_ph2(data, 12)
        for name, more in (("one", ["inference.tta=true"]), ("two", ["model.depth=1"])):
            for fold in (0, 1):
                split = [f"data.split.fold={fold}", "data.split.folds=2", f"data.root={data}"]
                more = [*more, "inference.largest_component=true", "task.optimizer.lr=0.02"]
                ended = tiny_train(runs / name / str(fold), *PLAIN, *split, *more)
                assert ended.code == 0, ended.err
    return runs


@pytest.fixture
def labels(swept: Path) -> list[str]:
    """Of the two rows."""
    return [row.label for row in make_rows(find_runs([swept]))[0] if row.finished]


@pytest.fixture
def page(folder: Path, swept: Path, labels: list[str]) -> Path:
    """Of both rows, the second against the first."""
    out = folder / "both.html"
    return out if out.exists() else report([swept], out, versus=[(labels[1], labels[0])])


def data_of(page: Path) -> dict[str, Any]:
    found = re.findall(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def picture(url: str) -> np.ndarray:
    head, _, data = url.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def coarse(image: np.ndarray) -> np.ndarray:
    """Without the noise that a compressed picture lacks."""
    return np.asarray(Image.fromarray(image).reduce(5), float)


def stored(run: Path) -> dict[str, float]:
    with (run / "test_cases.csv").open() as file:
        return {row["id"]: float(row["dice_per_image"]) for row in csv.DictReader(file)}


def test_numbers_are_those_of_compare_and_of_the_runs(
    swept: Path, page: Path, tmp_path: Path
) -> None:
    data = data_of(page)
    compare([swept], "all", by_diagnosis=True, out=tmp_path)
    with (tmp_path / "table.csv").open() as file:
        known = list(csv.DictReader(file))
    for name, lines in (
        ("table", [line for line in known if line["diagnosis"] == "all"]),
        ("diagnoses", known),
    ):
        table = data[name]
        assert len(table["body"]) == len(lines) > 4  # baselines too
        for cells, line in zip(table["body"], lines, strict=True):
            shown = dict(zip(table["head"], cells, strict=True))
            assert shown["n"] == line["n"]
            for metric in module.REPORT_METRICS:
                value, low, high = (float(line[f"{metric}{end}"]) for end in ("", "_low", "_high"))
                digits = 1 if metric == "hd95" else 3
                ends = f"[{low:.{digits}f}, {high:.{digits}f}]"
                assert shown[metric] == f"{value:.{digits}f} {ends}"
    assert any("fewer than 50 cases" in note for note in data["table"]["notes"])
    rows, cases = data["gallery"]["rows"], data["gallery"]["cases"]
    assert len(rows) == 2 and data["gallery"]["notes"] == []
    # Every case once, each with both rows' own Dice.
    assert sorted(card["id"] for card in cases) == [f"IMD{i:03}" for i in range(12)]
    for number, name in enumerate(("one", "two")):
        (number,) = [
            i for i, row in enumerate(rows) if ("tta=true" in row["label"]) == (name == "one")
        ]
        dice = stored(swept / name / "0") | stored(swept / name / "1")
        assert {card["id"]: card["rows"][str(number)]["dice"] for card in cases} == dice
        for fold in ("0", "1"):
            own = stored(swept / name / fold)
            summary = json.loads((swept / name / fold / "summary.json").read_text())
            mean = np.mean(
                [card["rows"][str(number)]["dice"] for card in cases if card["id"] in own]
            )
            assert mean == pytest.approx(summary["test"]["dice_per_image"], abs=1e-12)
    facts = dict(data["facts"])
    assert str(swept.parent / "PH2Dataset") in facts["Data"] and facts["Seed"] == "42"
    record = json.loads((swept / "one" / "0" / "run.json").read_text())
    assert (
        record["start"][:10] in facts["Started"] and record["versions"]["seglab"] in facts["Code"]
    )
    (loss,) = [panel for panel in data["curves"] if panel["name"] == "loss"]
    with (swept / "one" / "0" / "metrics.csv").open() as file:
        first = [float(row["val/loss"]) for row in csv.DictReader(file)]
    with (swept / "one" / "1" / "metrics.csv").open() as file:
        second = [float(row["val/loss"]) for row in csv.DictReader(file)]
    means = [line["mean"] for line in loss["lines"] if line["part"] == "val"]
    assert any(np.allclose(mean, np.mean([first, second], 0), rtol=1e-4) for mean in means)


def test_pictures_are_what_the_networks_predict(swept: Path, page: Path) -> None:
    data = data_of(page)
    cases = {case.id: case for case in find_cases(swept.parent / "PH2Dataset")}
    cards = {card["id"]: card for card in data["gallery"]["cases"]}
    for number, row in enumerate(data["gallery"]["rows"]):
        for fold in ("0", "1"):
            name = "one" if "tta=true" in row["label"] else "two"
            run = open_run(swept / name / fold)
            predict = make_predictor(load_run_network(run)[0], 32, tta=name == "one")
            for id in run.ids["test"]:
                image, target = read_image(cases[id].image), read_mask(cases[id].mask)
                pred = predicted_mask(
                    predict(image), run.threshold, Inference(**run.config["inference"])
                )
                card, own = cards[id], cards[id]["rows"][str(number)]
                for url, mask in ((own["prediction"], pred), (card["target"], target)):
                    assert np.array_equal(
                        picture(url), np.repeat(mask[..., None] * np.uint8(255), 3, 2)
                    )
                assert np.array_equal(picture(own["errors"]), error_map(pred, target))
                assert np.abs(coarse(picture(card["image"])) - coarse(image)).mean() < 3
                assert (card["width"], card["height"]) == target.shape[::-1]


def test_the_difference_of_rows_is_that_of_compare(
    swept: Path, page: Path, labels: list[str], tmp_path: Path
) -> None:
    data = data_of(page)
    compare([swept], versus=[(labels[1], labels[0])], out=tmp_path)
    with (tmp_path / "versus.csv").open() as file:
        (known,) = csv.DictReader(file)
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


@pytest.mark.parametrize("name", ["one", "two"])
def test_of_many_rows_those_of_best_val_are_shown(
    swept: Path, labels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 1)
    shutil.copytree(swept, tmp_path / "runs")
    for fold in "01":
        summary = tmp_path / "runs" / name / fold / "summary.json"
        values = json.loads(summary.read_text())
        values["val"]["dice_per_image"] = 0.9
        summary.write_text(json.dumps(values))
    swept = tmp_path / "runs"
    (best,) = [label for label in labels if ("tta=true" in label) == (name == "one")]
    (other,) = {*labels} - {best}
    data = data_of(report([swept], tmp_path / "page.html"))
    assert [row["label"] for row in data["gallery"]["rows"]] == [best]
    assert len(data["table"]["body"]) == 2 + 3
    assert any("those of 1 rows" in note for note in data["table"]["notes"])
    assert {line["row"] for panel in data["curves"] for line in panel["lines"]} == {0}
    # Who is named comes first.
    data = data_of(report([swept], tmp_path / "page.html", versus=[(other, best)]))
    assert [row["label"] for row in data["gallery"]["rows"]] == [other]
    assert data["pairs"] == [] and len(data["versus"]["body"]) == 1


def points_of(path: str, width: float) -> list[np.ndarray]:
    """Polygons of a path of relative lines, in pixels."""
    out = []
    for piece in re.findall(r"M([^z]*)z", path):
        steps = np.array(re.findall(r"-?\d+", piece), float).reshape(-1, 2)
        out.append(steps.cumsum(0) * width / 1000)
    return out


def test_outlines_enclose_the_mask() -> None:
    mask = np.zeros((150, 200), np.uint8)
    mask[disk((60, 180), 50, shape=mask.shape)] = 1  # beyond the frame
    mask[disk((60, 160), 12)] = 0
    mask[disk((120, 40), 20)] = 1
    (path,) = trace_outlines(mask, ONE_CLASS)
    inside = np.zeros(mask.shape, bool)
    for points in points_of(path, 200):
        inside ^= polygon2mask(mask.shape, points[:, ::-1] - 0.5)  # pixels' centres
    assert (inside == mask).mean() > 0.99 and len(points_of(path, 200)) == 3
    assert trace_outlines(mask * 0, ONE_CLASS) == [""]
    # One path for each class.
    three = Classes(("skin", "disc", "square"))
    mask[:] = 0
    mask[100:140, 20:60], mask[10:50, 20:60], mask[10:20, 100:110] = 1, 2, 2
    first, second = trace_outlines(mask, three)
    assert len(points_of(first, 200)) == 1 and len(points_of(second, 200)) == 2


def test_the_worst_cases_are_shown(
    swept: Path, tmp_path: Path, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "deep" / "page.html"
    ended = script("report", swept / "one", "--out", out, "--cases", "5")
    assert ended.code == 0, ended.err
    gallery = data_of(out)["gallery"]
    assert gallery["notes"][0].startswith("shown are the 5 of 12 cases with the lowest Dice")
    dice = stored(swept / "one" / "0") | stored(swept / "one" / "1")
    lowest = sorted(dice, key=lambda id: (dice[id], id))[:5]
    assert [card["id"] for card in gallery["cases"]] == lowest
    assert all("image" in card for card in gallery["cases"])


def test_large_images_become_thumbnails() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (600, 900, 3), dtype=np.uint8)
    target, pred = (random.random((2, 600, 900)) < 0.5).astype(np.uint8)
    drawn = draw_image(image, target, ONE_CLASS) | draw_prediction(pred, target, ONE_CLASS)
    for name in ("image", "target", "prediction", "errors"):
        assert picture(drawn[name]).shape == (320, 480, 3)
    assert (drawn["width"], drawn["height"]) == (900, 600)
    assert drawn["outline"][0].count("z") <= MAX_OUTLINES
    assert len(json.dumps(drawn)) < 200_000  # whatever the image shows


def test_the_page_asks_for_nothing(page: Path) -> None:
    text = page.read_text()
    own = text.replace("http://www.w3.org/2000/svg", "")  # the name of SVG
    template = (
        own.partition('id="data">')[0] + own.rpartition("</script>")[0].rpartition("<script>")[2]
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


@pytest.fixture
def hostile(swept: Path, tmp_path: Path) -> Path:
    """A page of a run whose files hold markup wherever they hold text."""
    run = tmp_path / "run"
    shutil.copytree(swept / "one" / "0", run)
    for name, old in {
        "test_cases.csv": "IMD",
        "splits.json": "IMD",
        "baseline_cases.csv": "IMD",
        "config.yaml": "name: baseline",
    }.items():
        text = (run / name).read_text()
        assert old in text
        new = f"name: '{HOSTILE}'" if old[0] == "n" else f"{HOSTILE}IMD"
        (run / name).write_text(text.replace(old, new).replace("nevus", f"nevus {HOSTILE}"))
    record = json.loads((run / "run.json").read_text())
    record["git"]["commit"] = record["versions"]["seglab"] = HOSTILE
    (run / "run.json").write_text(json.dumps(record))
    return report([run], tmp_path / "hostile.html")


def test_hostile_names_stay_text(hostile: Path, page: Path) -> None:
    text, data = hostile.read_text(), data_of(hostile)
    assert text.count("</script>") == page.read_text().count("</script>") == 2
    assert "<img" not in text
    assert all(card["id"].startswith(HOSTILE) for card in data["gallery"]["cases"])
    assert any(HOSTILE in card["diagnosis"] for card in data["gallery"]["cases"])
    assert HOSTILE in data["title"] and HOSTILE in dict(data["facts"])["Code"]
    # It is not the split that the network was trained on.
    assert "no predictions are shown" in data["gallery"]["notes"][0]
    assert all("image" not in card for card in data["gallery"]["cases"])


def test_several_classes(folder: Path, tiny_train: Script, tmp_path: Path) -> None:
    names = ["skin", "disc", "square"]
    run, root = tmp_path / "run", write_tiny_classes(folder / "classes", n=12)
    ended = tiny_train(
        *(run, f"data.root={root}", "data=pairs", f"data.classes=[{','.join(names)}]"),
        *("experiment=classes", *PLAIN, "task.optimizer.lr=0.02", "data.split.test=0.3"),
    )
    assert ended.code == 0, ended.err
    data = data_of(report([run], tmp_path / "page.html"))
    (row,), cases = data["gallery"]["rows"], data["gallery"]["cases"]
    opened = open_run(run)
    net, metadata = load_run_network(opened)
    palette = metadata["classes"].palette
    assert (
        row["legend"]
        == [[name, "#" + bytes(colour).hex()] for name, colour in zip(names, palette, strict=True)][
            1:
        ]
    )
    with (run / "test_cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {card["id"] for card in cases} == {row["id"] for row in rows}
    predict = make_predictor(net, 32)
    for card in cases:
        own = [r for r in rows if r["id"] == card["id"] and r["class"] != "skin"]
        mean = sum(float(r["dice_per_image"]) for r in own) / 2
        assert card["rows"]["0"]["dice"] == pytest.approx(mean, abs=1e-12)
        pred = predict(read_image(root / "images" / f"{card['id']}.png")).argmax(0)
        target = np.asarray(Image.open(root / "masks" / f"{card['id']}.png"))
        assert np.array_equal(picture(card["rows"]["0"]["prediction"]), palette[pred])
        assert np.array_equal(picture(card["target"]), palette[target])
        assert np.array_equal(picture(card["rows"]["0"]["errors"]), error_map(pred, target))
        assert len(card["outline"]) == 2
    classes = data["table"]["head"].index("class")
    assert [cells[classes] for cells in data["table"]["body"]][:3] == ["all", "disc", "square"]


def test_what_is_gone_or_changed_is_said(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, root = tmp_path / "run", tmp_path / "data"
    shutil.copytree(swept / "two" / "0", run)
    shutil.copytree(swept.parent / "PH2Dataset", root)
    config = (run / "config.yaml").read_text().replace(str(swept.parent / "PH2Dataset"), str(root))
    (run / "config.yaml").write_text(config)
    changed, gone, *others = json.loads((run / "splits.json").read_text())["test"]
    cases = {case.id: case for case in find_cases(root)}
    image = np.asarray(Image.open(cases[changed].image))
    Image.fromarray(255 - image).save(cases[changed].image)
    shutil.rmtree(cases[gone].image.parents[1])
    gallery = data_of(report([run], tmp_path / "page.html"))["gallery"]
    pictured = {card["id"]: "image" in card for card in gallery["cases"]}
    assert pictured == {changed: False, gone: False} | dict.fromkeys(others, True)
    said = "\n".join(gallery["notes"])
    assert f"cases that are missing or have changed since the run: {changed}, {gone}" in said
    root.rename(tmp_path / "elsewhere")
    gallery = data_of(report([run], tmp_path / "page.html"))["gallery"]
    assert len(gallery["cases"]) == len(pictured) and str(root) in gallery["notes"][0]
    assert not any("image" in card for card in gallery["cases"])
    assert "--data" in gallery["notes"][0]
    moved = report([run], tmp_path / "page.html", data_root=tmp_path / "elsewhere")
    assert {card["id"]: "image" in card for card in data_of(moved)["gallery"]["cases"]} == pictured
    # Numbers need no network either.
    (run / "checkpoints" / "best.ckpt").unlink()
    assert "best.ckpt" in data_of(report([run], tmp_path / "page.html"))["gallery"]["notes"][0]


def test_bad_input_is_one_line(script: Script, swept: Path, tmp_path: Path) -> None:
    run = swept / "one" / "0"
    failed = tmp_path / "failed" / "0"
    failed.mkdir(parents=True)
    (failed / "run.json").write_text(
        json.dumps({"format": 1, "status": "failed", "error": "X: full"})
    )
    (tmp_path / "file").write_text("")
    for arguments, said in {
        (tmp_path / "no",): "no such folder",
        (tmp_path / "file",): "no such folder",
        (failed.parent,): "no finished run",
        (run, swept / "two"): "--out: name the file",
        (run, "--out", tmp_path): "is a folder",
        (run, "--out", tmp_path / "file" / "page.html"): str(tmp_path / "file"),
        (run, "--out", Path("/proc/page.html")): "/proc/page.html",
        (run, "--cases", -1): "--cases -1: expected a number of cases",
    }.items():
        ended = script("report", *arguments)
        assert ended.code == 1 and said in ended.err, ended.err
        assert len(ended.err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*.html")) and not list(swept.rglob("*.html"))
    shutil.copytree(run, tmp_path / "cut" / "run")
    (tmp_path / "cut" / "run" / "summary.json").unlink()
    ended = script("report", tmp_path / "cut")
    assert ended.code == 1
    assert ended.err.endswith("no such file; restore it, or move its run elsewhere\n")
    # One that failed beside one that did not is a row of the table.
    shutil.copytree(run, tmp_path / "both" / "run")
    failed.rename(tmp_path / "both" / "failed")
    ended = script("report", tmp_path / "both")
    assert ended.code == 0, ended.err
    data = data_of(tmp_path / "both" / "report.html")
    assert any("failed (X: full)" in note for note in data["table"]["notes"])
    assert len(data["gallery"]["rows"]) == 1
    first = (tmp_path / "both" / "report.html").read_bytes()
    assert script("report", tmp_path / "both").code == 0
    assert (tmp_path / "both" / "report.html").read_bytes() == first


class TestBrowser:
    """What Debian's Chromium makes of it; slow."""

    pytestmark = [
        pytest.mark.slow,
        pytest.mark.skipif(
            not (shutil.which("chromium") and shutil.which("chromedriver")),
            reason="needs chromium and chromedriver",
        ),
    ]

    @pytest.fixture(scope="class")
    def browser(self) -> Iterator[Any]:
        webdriver = pytest.importorskip("selenium.webdriver")
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for argument in ("--headless=new", "--no-sandbox", "--window-size=1400,900"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        driver = webdriver.Chrome(options, service)
        yield driver
        driver.quit()

    @pytest.fixture
    def opened(self, browser: Any, page: Path) -> Any:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get(page.as_uri())
        return browser

    @staticmethod
    def ids(browser: Any) -> list[str]:
        script = "return [...document.querySelectorAll('#cards .id')].map((x) => x.textContent)"
        return browser.execute_script(script)

    @staticmethod
    def choose(browser: Any, name: str, value: str) -> None:
        browser.execute_script(
            "const x = document.querySelector(arguments[0]); x.value = arguments[1];"
            "x.dispatchEvent(new Event('change'))",
            *(f"#{name}", value),
        )

    @staticmethod
    def press(browser: Any, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(browser).send_keys(*keys).perform()

    def test_order_filter_and_row(self, opened: Any, page: Path) -> None:
        cases = data_of(page)["gallery"]["cases"]

        def ordered(row: str, *diagnoses: str) -> list[str]:
            own = [c for c in cases if not diagnoses or c["diagnosis"] in diagnoses]
            return [c["id"] for c in sorted(own, key=lambda c: (c["rows"][row]["dice"], c["id"]))]

        assert self.ids(opened) == ordered("0")
        self.choose(opened, "row", "1")
        assert self.ids(opened) == ordered("1")
        score = opened.find_element("css selector", "#cards .score").text
        assert score == f"{min(c['rows']['1']['dice'] for c in cases):.3f}"
        self.choose(opened, "diagnosis", "is melanoma")
        assert self.ids(opened) == ordered("1", "melanoma")
        count = opened.find_element("id", "count").text
        assert count == f"{len(ordered('1', 'melanoma'))} of 12 cases"
        self.choose(opened, "diagnosis", "all")
        self.choose(opened, "order", "id")
        assert self.ids(opened) == sorted(c["id"] for c in cases)
        self.choose(opened, "order", "diagnosis")
        key = {c["id"]: c["diagnosis"] for c in cases}
        found = [key[id] for id in self.ids(opened)]
        assert found == sorted(found)
        rows = data_of(page)["gallery"]["rows"]
        self.choose(opened, "order", f"{rows[1]['label']} better than {rows[0]['label']}")
        gain = {c["id"]: c["rows"]["1"]["dice"] - c["rows"]["0"]["dice"] for c in cases}
        assert self.ids(opened) == sorted(gain, key=lambda id: (-gain[id], id))

    def test_keyboard(self, opened: Any, page: Path) -> None:
        from selenium.webdriver.support.wait import WebDriverWait

        cards = {card["id"]: card for card in data_of(page)["gallery"]["cases"]}
        ids = self.ids(opened)

        def focused() -> str:
            return opened.execute_script(
                "return document.activeElement.querySelector('.id')?.textContent"
            )

        def source(where: str) -> str:
            found = opened.find_element("css selector", f"{where} img")
            assert found.get_attribute("alt")
            return found.get_attribute("src")

        opened.execute_script("document.querySelector('#kind').focus()")
        self.press(opened, "\ue004")  # Tab
        assert focused() == ids[0]
        self.press(opened, "\ue014", "\ue014", "\ue012")  # right, right, left
        assert focused() == ids[1]
        self.press(opened, "3")
        assert source("#cards li:nth-child(2)") == cards[ids[1]]["target"]
        self.press(opened, "\ue007")  # Enter
        dialog = opened.find_element("css selector", "dialog")
        assert dialog.get_attribute("open") is not None
        assert opened.find_element("id", "case-title").text == ids[1]
        assert source(".big") == cards[ids[1]]["target"]
        self.press(opened, "d")
        assert source(".big") == cards[ids[1]]["rows"]["0"]["prediction"]
        self.press(opened, "5", "\ue014")
        assert opened.find_element("id", "case-title").text == ids[2]
        assert source(".big") == cards[ids[2]]["rows"]["0"]["errors"]
        opened.find_elements("css selector", ".scores button")[1].click()
        assert opened.find_element("id", "case-title").text == ids[2]
        assert source(".big") == cards[ids[2]]["rows"]["1"]["errors"]
        assert opened.find_element("id", "row").get_property("value") == "1"
        opened.find_elements("css selector", ".scores button")[0].click()
        assert source(".big") == cards[ids[2]]["rows"]["0"]["errors"]
        scores = opened.find_elements("css selector", ".scores tbody td")
        expected = [f"{cards[ids[2]]['rows'][row]['dice']:.3f}" for row in "01"]
        assert [score.text for score in scores] == expected
        self.press(opened, "1")
        outlines = opened.find_elements("css selector", ".big svg path:not(.under)")
        own = cards[ids[2]]
        drawn = [own["outline"], own["rows"]["0"]["outline"]]
        assert [line.get_attribute("d") for line in outlines] == [path for (path,) in drawn]
        self.press(opened, "\ue00c")  # Esc
        assert dialog.get_attribute("open") is None
        WebDriverWait(opened, 10).until(lambda _: focused() == ids[2])
        ring = "return getComputedStyle(document.activeElement.closest('li')).outlineStyle"
        assert opened.execute_script(ring) == "solid"

    def test_mouse(self, opened: Any, page: Path) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        card = next(c for c in data_of(page)["gallery"]["cases"] if c["id"] == self.ids(opened)[0])
        frame = opened.find_element("css selector", "#cards .frame")
        parts = frame.find_elements("css selector", ".strip span")
        image = frame.find_element("css selector", "img")
        opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", frame)
        ActionChains(opened).move_to_element(parts[3]).perform()
        assert image.get_attribute("src") == card["rows"]["0"]["errors"]
        title = opened.find_element("css selector", "h1")
        opened.execute_script("arguments[0].scrollIntoView()", title)
        ActionChains(opened).move_to_element(title).perform()
        assert image.get_attribute("src") == card["image"]
        opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", frame)
        frame.click()
        assert opened.find_element("id", "case-title").text == card["id"]

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_contrast_and_width(self, opened: Any, scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

        def luminance(css: str) -> float:
            rgb = np.array([int(n) for n in re.findall(r"\d+", css)[:3]]) / 255
            linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
            return float(linear @ [0.2126, 0.7152, 0.0722])

        def style(selector: str, name: str) -> str:
            return opened.execute_script(
                "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]",
                *(selector, name),
            )

        page = luminance(style("body", "backgroundColor"))
        assert (page < 0.1) == (scheme == "dark")
        texts = ("body", ".lead", "dt", "thead th", "summary", ".notes", "#cards .diagnosis")
        for selector in texts:
            light, dark = sorted([page, luminance(style(selector, "color"))], reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, selector
        metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        opened.find_element("css selector", "#cards button").click()
        assert opened.execute_script("return document.documentElement.scrollWidth") == 390
        assert opened.execute_script("return document.querySelector('dialog').scrollWidth") <= 390
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def test_nothing_else_is_loaded_or_run(self, opened: Any, hostile: Path) -> None:
        for kind in ("outlines", "image", "target", "prediction", "errors"):
            self.choose(opened, "kind", kind)
        assert opened.get_log("browser") == []
        opened.get(hostile.as_uri())
        assert opened.find_element("css selector", "#cards .id").text.startswith(HOSTILE)
        assert HOSTILE in opened.find_element("css selector", "h1").text
        assert opened.execute_script("return document.querySelectorAll('img').length") == 0
        received_signal = [
            message["params"]["request"]["url"]
            for entry in opened.get_log("performance")
            if (message := json.loads(entry["message"])["message"])["method"]
            == "Network.requestWillBeSent"
        ]
        assert received_signal and all(
            url.startswith(("file:", "data:")) for url in received_signal
        )
        assert len([url for url in received_signal if url.startswith("file:")]) == 2
        # And what got in all the same would be refused.
        opened.execute_script(
            "document.body.innerHTML += '<img src=x onerror=\"window.hit = 1\">';"
            "const s = document.createElement('script'); s.textContent = 'window.hit = 1';"
            "document.body.append(s)"
        )
        assert opened.execute_script("return window.hit ?? 0") == 0
        refused = [entry["message"] for entry in opened.get_log("browser")]
        assert len(refused) >= 2 and all("Content Security Policy" in line for line in refused)
