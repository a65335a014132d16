"""Model cards: numbers equal the run's files, commands run, untrusted text stays text."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from helpers.tiny import REPO, Ended
from hypothesis import given
from hypothesis import strategies as st
from markdown import markdown  # TensorBoard brings it
from PIL import Image

from seglab.analysis import model_card as card
from seglab.analysis.compare import compare
from seglab.analysis.rows import Score, format_score
from seglab.core.errors import InputError
from seglab.core.files import read_csv, read_json, write_csv, write_json
from seglab.metrics.scores import DEFAULT_METRICS, METRICS

SOON = ["logger=none", "callbacks.pictures=null", "data.batch_size=4"]
RUNS = {
    "holdout": ["task.loss._target_=seglab.losses.focal", "+task.loss.gamma=1.5"],
    "fold": [
        "task.lr_scheduler={_target_:torch.optim.lr_scheduler.StepLR,_partial_:true,step_size:1}",
        *("monitor=null", "data.split.val=0", "data.split.fold=1", "data.split.folds=4"),
        *("inference.tta=true", "inference.largest_component=true", "inference.fill_holes=true"),
        "data.augment={_target_:seglab.data.augment.Augment,flip:false,elastic:0.02,gamma:0}",
    ],
    "classes": [
        *("data=synthetic_corners", "data.cases.n=10", "experiment=classes"),
        *("data.split.test=0.3",),
    ],
}
PLACEHOLDERS = re.compile(r"None|\bnan\b|\binf\b|\$[a-z]|\bunknown\b|&#|,,|  \|")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cards")


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest, folder: Path, tiny_train: Callable[..., Ended]) -> Path:
    """A run of each kind, trained once; read-only by agreement."""
    return trained(request.param, folder, tiny_train)


@pytest.fixture
def holdout(folder: Path, tiny_train: Callable[..., Ended], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained("holdout", folder, tiny_train), tmp_path / "holdout"))


def trained(kind: str, folder: Path, tiny_train: Callable[..., Ended]) -> Path:
    path = folder / kind
    if not path.exists():
        root = [f"data.root={folder / 'corners'}"] if kind == "classes" else []
        ended = tiny_train(path, *SOON, *RUNS[kind], *root)
        assert ended.code == 0, ended.err
    return path


def tables(text: str) -> list[list[dict[str, str]]]:
    """Rows of each table by its head, without what marks code."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = [
            [cell.strip().strip("`") for cell in line.strip("|\n").split("|")]
            for line in block.splitlines()
        ]
        assert all(len(row) == len(head) for row in rows), block
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def code_block(text: str, language: str) -> str:
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return block


def edit(file: Path, change: Callable[[Any], object]) -> None:
    content = yaml.safe_load(file.read_text())
    change(content)
    if file.suffix == ".json":
        write_json(file, content)
    else:
        file.write_text(yaml.safe_dump(content))


def test_numbers_are_those_of_the_summary_and_of_the_table_of_compare(
    run: Path, tmp_path: Path
) -> None:
    text, summary = (run / "MODEL_CARD.md").read_text(), read_json(run / "summary.json")
    compare([run], by_diagnosis=True, out=tmp_path)
    rows = [row for row in read_csv(tmp_path / "table.csv") if row["status"] != "baseline"]
    by_group = {(row["diagnosis"], row.get("class", "all")): row for row in rows}

    def formatted(row: dict[str, str], metric: str) -> str:
        value, low, high = (row[f"{metric}{end}"] for end in ("", "_low", "_high"))
        ends = (float(low), float(high)) if low else (None, None)
        return format_score(metric, Score(float(value), None, *ends))

    scores, groups = tables(text)[3:-1]
    assert {row["metric"] for row in scores} == set(METRICS) == summary["test"].keys()
    for row in scores:
        metric = row["metric"]
        assert row["this network"] == formatted(by_group["all", "all"], metric)
        assert row["this network"].startswith(format_score(metric, Score(summary["test"][metric])))
        for name, values in summary["baselines"].items():
            assert row[name] == format_score(metric, Score(values[metric]))
    found = {row.pop("group (cases)"): row for row in groups}
    expected = {}
    for (diagnosis, class_name), row in by_group.items():
        name = f"class {class_name}"
        if class_name == "all":
            name = f"diagnosis {diagnosis} ({row['n']})"
        expected[name] = {metric: formatted(row, metric) for metric in DEFAULT_METRICS}
    del expected[f"diagnosis all ({by_group['all', 'all']['n']})"]
    assert found == expected

    dice: dict[str, list[float]] = {}
    for case in read_csv(run / "test_cases.csv"):
        dice.setdefault(case["id"], []).append(float(case["dice_per_image"]))
    means = {id: np.mean(values["classes" in summary :]) for id, values in dice.items()}
    worst = re.findall(r"`(\w+)` (\d\.\d{3})", text.partition("The worst:")[2])
    lowest = sorted(means.values())[: card.WORST_CASES]
    assert [float(value) for _, value in worst] == pytest.approx(lowest, abs=0.000501)
    assert all(float(value) == pytest.approx(means[id], abs=0.000501) for id, value in worst)
    assert f"median {np.median([*means.values()]):.3f}" in text
    assert f"{summary['parameters']:,} parameters, " in text
    assert f"{summary['multiply_adds'] * 1e-9:.3g} G multiply-adds" in text
    assert "**Caution:** intervals over fewer than 50 cases are too narrow" in text


def test_the_front_matter_is_what_the_hub_reads(run: Path) -> None:
    _, front_matter, body = (run / "MODEL_CARD.md").read_text().split("---\n", 2)
    values = yaml.safe_load(front_matter)
    is_synthetic = run.name == "classes"
    assert values["license"] == ("mit" if is_synthetic else "other")
    assert (values["library_name"], values["pipeline_tag"]) == ("seglab", "image-segmentation")
    assert ("PH2 comes from one hospital" in body) != is_synthetic == ("about patients" in body)
    (model,) = values["model-index"]
    (result,) = model["results"]
    assert model["name"].startswith("UNet on ")
    assert result["task"]["type"] == "image-segmentation"
    assert result["dataset"]["split"] == "test"
    assert result["dataset"]["args"]["cases"] == len(read_json(run / "splits.json")["test"])
    scores = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert scores == read_json(run / "summary.json")["test"]


def test_statements_about_the_run_are_true_and_complete(run: Path, cache_dir: Path) -> None:
    text, record = (run / "MODEL_CARD.md").read_text(), read_json(run / "run.json")
    split, kind = read_json(run / "splits.json"), run.name
    # Its status is 'finished' by now, and this process is none of scripts/.
    assert re.sub(r"python scripts/(\w+)\.py", r"seglab \1", text) == card.make_model_card(run)
    assert not PLACEHOLDERS.search(text), PLACEHOLDERS.search(text)
    sizes = [f"{len(split[subset])} {subset}" for subset in ("train", "val", "test")]
    assert ", ".join(sizes) in text
    for value in (record["data_fingerprint"], record["start"][:10]):
        assert f"`{value}`" in text
    assert f"torch {record['versions']['torch']}" in text
    assert "](" not in text  # no links
    for private in (str(run.parent), str(cache_dir), record["machine"]["host"] + " "):
        assert private not in text
    expected = {
        "holdout": ["`focal(gamma=1.5)`", "`val/dice_per_image_net`", "constant"],
        "fold": ["fold 1 of 4 (from 0)", "tta=true", "elastic=0.02", "`StepLR(step_size=1)`"],
        "classes": ["`skin, lesion, dark_corner`", "highest probability", "`synthetic_cases("],
    }
    for words in expected[kind]:
        assert words in text


def test_its_python_and_its_commands_run_as_they_stand(
    run: Path,
    script: Callable[..., Ended],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_ph2: Path,
) -> None:
    text = (run / "MODEL_CARD.md").read_text()
    shutil.copytree(run, tmp_path / run.name)  # commands write below it
    (tmp_path / "images").mkdir()
    image = Image.open(next(tiny_ph2.rglob("IMD003.bmp")))
    image.save(tmp_path / "image.jpg")
    Image.open(tmp_path / "image.jpg").save(tmp_path / "images" / "image.png")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code_block(text, "python"), found)
    assert found["prob"].shape[-2:] == found["mask"].shape == image.size[::-1]
    assert found["prob"].dtype == np.float32

    first, *lines = code_block(text, "bash").splitlines()
    assert first == f"RUN={run.name}"
    names = []
    for command in (line for line in lines if not line.startswith("#")):
        python, file, *arguments = shlex.split(command.replace("$RUN", run.name))
        assert python == "python"
        names.append(Path(file).stem)
        assert (REPO / file).is_file()
        if names[-1] == "reproduce" and run.name != "fold":
            arguments.append("--check")  # trains nothing
        ended = script(names[-1], *arguments)
        assert ended.code == 0, ended.err
    assert names == ["predict", "export", "evaluate", "reproduce"]
    mask = np.asarray(Image.open("predictions/masks/image.png"))
    expected = found["mask"] if run.name == "classes" else found["mask"] > 0
    assert np.array_equal(mask if run.name == "classes" else mask > 0, expected)
    assert (tmp_path / run.name / "network.onnx").is_file()


def test_a_run_killed_before_its_card_was_written_gets_one(
    holdout: Path, tiny_train: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (holdout / "MODEL_CARD.md").read_text()
    config = yaml.safe_load((holdout / "config.yaml").read_text())
    text = (holdout / "config.yaml").read_text().replace(config["run_dir"], str(holdout))
    (holdout / "config.yaml").write_text(text)

    def train_again() -> Ended:
        (holdout / "MODEL_CARD.md").unlink()
        edit(holdout / "run.json", lambda record: record.update(status="running", end=None))
        for checkpoint in (holdout / "checkpoints").iterdir():
            checkpoint.unlink()  # they belong to the directory that was copied
        return tiny_train(holdout, *SOON, *RUNS["holdout"])

    assert train_again().code == 0
    assert tables((holdout / "MODEL_CARD.md").read_text())[3:-1] == tables(before)[3:-1]
    # A card that cannot be made does not fail the run.
    monkeypatch.setattr(card, "make_model_card", raise_input_error)
    ended = train_again()
    assert (ended.code, (holdout / "MODEL_CARD.md").exists()) == (0, False)
    assert "MODEL_CARD.md is left out: damaged" in ended.err


def raise_input_error(run: Path) -> str:
    raise InputError("damaged")


def test_where_weights_patients_and_code_come_from(holdout: Path) -> None:
    model = {"_target_": "seglab.networks.EncoderUNet", "weights": "/home/jane/nevi.pth"}
    edit(holdout / "config.yaml", lambda config: config.update(model=model))
    edit(holdout / "run.json", lambda record: record.update(modules={"model.weights": "cd34"}))
    text = card.make_model_card(holdout)
    assert "# `EncoderUNet`, trained on `PH2Dataset`" in text
    assert "`EncoderUNet(weights=nevi.pth)`" in text
    assert "pretrained weights | `cd34` |" in text
    assert "jane" not in text

    model = {"_target_": "seglab.networks.SMPNetwork", "encoder_weights": "imagenet"}
    edit(holdout / "config.yaml", lambda config: config.update(model=model))
    edit(holdout / "run.json", lambda record: record.update(modules={}))
    assert "pretrained weights | `imagenet` |" in card.make_model_card(holdout)

    model = {"_target_": "lib.nets.Net", "inner": {"_target_": "lib.Block", "n": 3}}
    edit(holdout / "config.yaml", lambda config: config.update(model=model))
    edit(holdout / "run.json", lambda r: r["git"].update(commit="a1b2c3", dirty=True))
    edit(holdout / "run.json", lambda r: r.update(device="cuda"))
    edit(holdout / "run.json", lambda r: r["machine"].update(cuda=["NVIDIA H100"]))
    edit(holdout / "config.yaml", lambda c: c["data"]["split"].update(file="/x/mine.json"))
    text = card.make_model_card(holdout)
    assert "`Net(inner._target_=lib.Block, inner.n=3)`" in text
    assert "commit | `a1b2c3`, with uncommitted changes" in text
    assert "`cuda: NVIDIA H100`" in text
    assert "| split | `mine.json` |" in text
    assert card.PH2_LIMITS in text
    # Other data in PH2's layout.
    edit(holdout / "config.yaml", lambda config: config["data"].update(root="/data/nevi"))
    assert card.UNKNOWN_LIMITS in card.make_model_card(holdout)


class Seen(NamedTuple):
    """What a reader of a page sees, and the elements that a browser would build."""

    tags: list[str]
    rows: list[list[str]]
    text: str


def render(text: str) -> Seen:
    html = markdown(text, extensions=["tables", "fenced_code"])
    root = ElementTree.fromstring(f"<body>{html}</body>")  # fails where a name broke out
    rows = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
    return Seen([element.tag for element in root.iter()], rows, "".join(root.itertext()))


@given(
    st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=30)
)
def test_a_name_of_any_characters_is_text_in_a_cell_and_in_a_line(name: str) -> None:
    formatted = card.code_span(name)
    page = f"| a | b |\n|:--|--:|\n| {formatted} | {formatted} |\n\n- It is {formatted}.\n"
    seen = render(page)
    assert seen.rows == [["a", "b"], [name, name]]
    assert f"It is {name}." in seen.text
    assert {*seen.tags} <= {*re.findall(r"\w+", "body table thead tbody tr th td ul li code p")}


HOSTILE = (
    "x`|</td><img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "a\n```\n# b | [c](http://d)",
    "![i](http://www.d/e.png)\\|",
    "`" * 9,
    "| --- |",
)


def test_hostile_names_are_nothing_but_text(holdout: Path) -> None:
    benign = render(card.make_model_card(holdout).split("---\n", 2)[2])
    rows = read_csv(holdout / "test_cases.csv")
    names = [HOSTILE[i % len(HOSTILE)] for i in range(len(rows))]
    for row, name in zip(rows, names, strict=True):
        row["id"], row["diagnosis"] = f"{row['id']} {name}", name
    write_csv(holdout / "test_cases.csv", rows)
    bad = HOSTILE[0]

    def spoil(config: dict[str, Any]) -> None:
        config.update(name=HOSTILE[2], monitor=HOSTILE[3], seed=HOSTILE[0])
        config["data"].update(root=HOSTILE[2], size=bad, batch_size=bad, classes=[bad])
        config["data"]["augment"] = {"_target_": "seglab.data.augment.Augment", bad: bad}
        config["data"]["split"]["seed"] = bad
        config["model"] = {"_target_": f"{HOSTILE[1]}.x", "a": bad, bad: [bad, {bad: bad}]}
        config["trainer"]["precision"] = bad
        config["trainer"]["max_epochs"] = bad
        config["callbacks"]["x"] = {"_target_": bad}
        config["task"] = {key: {"_target_": bad, bad: bad} for key in ("loss", "optimizer")}

    edit(holdout / "config.yaml", spoil)
    edit(holdout / "run.json", lambda r: r.update(start=bad, device=bad, split_hash=bad))
    edit(holdout / "run.json", lambda r: r["versions"].update(torch=bad, seglab=HOSTILE[2]))
    edit(holdout / "summary.json", lambda s: s["baselines"].update({bad: s["baselines"]["otsu"]}))
    hostile = holdout.with_name("a\n```\n# `b`<img>")
    holdout.rename(hostile)
    _, front_matter, text = card.make_model_card(hostile).split("---\n", 2)
    assert yaml.safe_load(front_matter).keys() >= {"license", "model-index"}
    seen = render(text)
    assert {*seen.tags} == {*benign.tags}
    assert seen.tags.count("h2") == benign.tags.count("h2")
    assert seen.tags.count("h1") == 1
    assert not re.search(r"<[^ ]|\]\(", re.sub(r"^```(.|\n)*?^```$", "", text, flags=re.M))
    assert {len(row) for row in seen.rows} == {2, 7, 4}  # facts, baselines with one more, groups
    assert re.search(r"^RUN='a\?```\?# `b`<img>'$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("summary.json", None, "not trained to its end"),
        ("splits.json", '{"sha256": {}, "train": 3}', "damaged"),
        ("test_cases.csv", None, "no such file"),
    ],
)
def test_what_is_no_whole_run_is_one_line(
    holdout: Path, name: str, content: str | None, named: str
) -> None:
    (holdout / name).unlink()
    if content is not None:
        (holdout / name).write_text(content)
    with pytest.raises(InputError, match=named) as caught:
        card.make_model_card(holdout)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
