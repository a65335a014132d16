"""Model cards: what they say is what the run's other files say, and what they tell to run, runs."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.tiny import REPO, Ended
from hypothesis import given
from hypothesis import strategies as st
from markdown import markdown  # TensorBoard brings it
from PIL import Image

from seglab import losses
from seglab.analysis import model_card as card
from seglab.analysis.compare import METRICS, compare
from seglab.core.errors import InputError
from seglab.core.files import read_csv, read_json, write_csv, write_json
from seglab.data.augment import Augment
from seglab.runs import records as results
from seglab.runs.loading import ALLOWED_TARGETS

SOON = ["logger=null", "callbacks.pictures=null", "data.batch_size=4"]
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
        *(
            "+callbacks.watch_test._target_=seglab.training.callbacks.WatchTest",
            "data.split.test=0.3",
        ),
    ],
}
PLACEHOLDERS = re.compile(
    r"None|\bnan\b|\binf\b|[{}]|TODO|not available|\bunknown\b|&#|\(\)|,,|  \|"
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cards")


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest, folder: Path, tiny_train: Callable[..., Ended]) -> Path:
    """A run of each kind, trained once; read-only by agreement."""
    return trained(request.param, folder, tiny_train)


@pytest.fixture
def holdout(folder: Path, tiny_train: Callable[..., Ended], tmp_path: Path) -> Path:
    """A copy of its own."""
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


def blocks(text: str, language: str) -> str:
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return block


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+", cell)]


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
    text, summary = (run / card.NAME).read_text(), read_json(run / "summary.json")
    compare([run], by_diagnosis=True, out=tmp_path)
    rows = [row for row in read_csv(tmp_path / "table.csv") if row["status"] != "baseline"]
    by = {(row["diagnosis"], row.get("class", "all")): row for row in rows}

    def check(cell: str, row: dict[str, str], metric: str) -> None:
        digits = 1 if metric == "hd95" else 3
        ends = [float(row[f"{metric}{end}"] or "nan") for end in ("", "_low", "_high")]
        said = numbers(cell)
        assert len(said) == (1 if np.isnan(ends[1]) or row["n"] == "1" else 3)
        assert said == pytest.approx(ends[: len(said)], abs=0.50001 * 10**-digits)

    metadata, scores, *parts = tables(text)
    assert {row["metric"] for row in scores} == set(METRICS) == summary["test"].keys()
    for row in scores:
        metric = row["metric"]
        value, tolerance = summary["test"][metric], 0.0501 if metric == "hd95" else 0.000501
        assert numbers(row["this network"])[0] == pytest.approx(value, abs=tolerance)
        check(row["this network"], by["all", "all"], metric)
        for name, own in summary["baselines"].items():
            assert float(row[name]) == pytest.approx(own[metric], abs=tolerance)
    is_multiclass = "classes" in summary
    if is_multiclass:
        with_classes, *parts = parts
        assert {row["class"] for row in with_classes} == summary["classes"].keys()
        for row in with_classes:
            own = summary["classes"][row["class"]]
            for metric in list(row)[2:]:
                assert numbers(row[metric])[0] == pytest.approx(own[metric], abs=0.000501)
                check(row[metric], by["all", row["class"]], metric)
    diagnoses = {diagnosis for diagnosis, _ in by} - {"all"}
    (of_diagnoses,) = parts if len(diagnoses) > 1 else ([],)
    assert len(of_diagnoses) == (len(diagnoses) if len(diagnoses) > 1 else 0)
    for row in of_diagnoses:
        assert row["n"] == by[row["diagnosis"], "all"]["n"]
        for metric in list(row)[2:]:
            check(row[metric], by[row["diagnosis"], "all"], metric)

    dice: dict[str, list[float]] = {}
    for case in read_csv(run / "test_cases.csv"):
        dice.setdefault(case["id"], []).append(float(case["dice_per_image"]))
    means = {id: np.mean(own[is_multiclass:]) for id, own in dice.items()}
    worst = re.findall(r"`(\w+)`(?: \([^)]*\))? (\d\.\d{3})", text.partition("The worst:")[2])
    lowest = sorted(means.values())[: card.WORST]
    assert [float(value) for _, value in worst] == pytest.approx(lowest, abs=0.000501)
    assert all(float(value) == pytest.approx(means[id], abs=0.000501) for id, value in worst)
    assert f"median {np.median([*means.values()]):.3f}" in text
    assert len(metadata) == 9
    assert f"{summary['parameters']:,} parameters, " in text
    assert f"{summary['multiply_adds'] * 1e-9:.3g} G multiply-adds" in text
    assert "**Caution:** intervals over fewer than 50 cases are too narrow" in text
    assert "] (an interval that is too narrow: they are few); the best trivial" in text


def test_what_it_says_of_the_run_is_true_and_nothing_is_left_open(
    run: Path, cache_dir: Path
) -> None:
    text, record = (run / card.NAME).read_text(), read_json(run / "run.json")
    split, kind = read_json(run / "splits.json"), run.name
    assert text == card.model_card(run)  # finished by now
    assert not PLACEHOLDERS.search(text), PLACEHOLDERS.search(text)
    assert len(text.splitlines()) <= 105
    _, front, body = text.split("---\n", 2)
    tags = yaml.safe_load(front)["tags"]
    assert ("ph2" in tags) == (kind != "classes") == ("PH2 is of one hospital" in body)
    assert ("synthetic-data" in tags) == (kind == "classes") == ("nothing about patients" in body)
    sizes = [len(split[part]) or "none" for part in ("train", "val", "test")]
    assert "{} to train on, {} to choose on (val), {} to test".format(*sizes) in body
    for sure in ("data_fingerprint", "split_hash"):
        assert record[sure] in body
    assert record["start"][:10] in body
    assert ", 1 thread`" in body
    assert record["versions"]["torch"] in body
    assert "]: " not in body
    assert "](" not in body  # no link, so no dead one
    for file in re.findall(r"`([\w/]+\.(?:png|json|yaml|diff))`", body):
        assert (run / file).is_file()
    for private in (str(run.parent), str(cache_dir), record["machine"]["host"] + " "):
        assert private not in body
    for line in ("Split: holdout, ", "of the highest `val/dice_per_image_net`, on ", "rate stays"):
        assert (line in body) == (kind != "fold"), line
    said = {
        "holdout": ("focal loss: `focal(gamma=1.5)`", ", on 2 cases of val."),
        "fold": (
            *("Split: fold 1 of 4", "(one of 4 folds)", "last epoch, 2; nothing was chosen"),
            *("8 flips and quarter turns", "largest piece", "holes are filled", "At most one"),
            "Augmentation: rotate, scale, shift, brightness, contrast, saturation, elastic 0.02 (",
            "schedule `StepLR(step_size=1)`",
        ),
        "classes": (
            *("(`skin`, `lesion`, `dark_corner`)", "most probable class", "(drawn by seglab)"),
            *("means over `lesion` and `dark_corner`", "The test loss was looked at in every"),
            "at most 2 epochs",
        ),
    }
    for of, lines in said.items():
        for line in lines:
            assert (line in body) == (of == kind), line


def test_its_python_and_its_commands_run_as_they_stand(
    run: Path,
    script: Callable[..., Ended],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_ph2: Path,
) -> None:
    text = (run / card.NAME).read_text()
    shutil.copytree(run, tmp_path / run.name)  # commands write below it
    (tmp_path / "pictures").mkdir()
    picture = Image.open(next(tiny_ph2.rglob("IMD003.bmp")))
    for name in ("picture.jpg", "pictures/picture.png"):
        picture.save(tmp_path / name)
    Image.open(tmp_path / "picture.jpg").save(tmp_path / "pictures" / "picture.png")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    code = blocks(text, "python")
    assert len(code.splitlines()) == 6
    exec(code, found)
    is_multiclass = run.name == "classes"
    assert found["prob"].shape == ((3,) * is_multiclass) + picture.size[::-1]
    assert found["prob"].dtype == np.float32
    assert found["mask"].dtype == (np.uint8 if is_multiclass else bool)

    first, *commands = blocks(text, "bash").splitlines()
    assert first == f"RUN={run.name}  # put before it where it lies"
    names = []
    for command in commands:
        python, file, *arguments = shlex.split(command.replace("$RUN", run.name), comments=True)
        assert python == "python"
        names.append(Path(file).stem)
        assert (REPO / file).is_file()
        if names[-1] == "reproduce" and run.name != "fold":
            arguments.append("--check")  # trains nothing
        ended = script(names[-1], *arguments)
        assert ended.code == 0, ended.err
    assert names == ["predict", "export", "evaluate", "reproduce"]
    mask = np.asarray(Image.open("predictions/masks/picture.png"))
    assert np.array_equal(mask if is_multiclass else mask > 0, found["mask"])
    assert (tmp_path / run.name / "network.onnx").is_file()


def test_an_older_run_and_one_that_died_before_its_card_get_one(
    holdout: Path, tiny_train: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (holdout / card.NAME).read_text()
    (holdout / card.NAME).unlink()
    edit(holdout / "run.json", lambda record: record.update(status="running", end=None))
    edit(holdout / "run.json", lambda record: record.pop("resumed", None))
    assert card.model_card(holdout) == whole
    older = holdout.with_name("older")
    shutil.copytree(holdout, older)
    where = [*SOON, *RUNS["holdout"]]
    config = yaml.safe_load((holdout / "config.yaml").read_text())
    old_dir, moved = config["run_dir"], str(holdout)
    text = (holdout / "config.yaml").read_text().replace(old_dir, moved)
    (holdout / "config.yaml").write_text(text)
    for checkpoint in (holdout / "checkpoints").iterdir():
        checkpoint.unlink()  # of the place it was copied from
    ended = tiny_train(holdout, *where)
    assert ended.code == 0, ended.err
    again = (holdout / card.NAME).read_text()
    assert "This run was interrupted and gone on with 1 time" in again
    assert tables(again)[1:] == tables(whole)[1:]

    def forget(summary: dict[str, Any]) -> None:
        for key in ("calibration", "threshold", "multiply_adds"):
            del summary[key]
        for values in (summary["test"], *summary["baselines"].values()):
            for metric in ("hd95", "surface_dice"):
                del values[metric]

    edit(older / "summary.json", forget)
    (older / "data.json").unlink()
    edit(older / "run.json", lambda r: [r.pop(k) for k in ("git", "machine", "modules", "device")])
    edit(older / "config.yaml", lambda c: [c.pop("inference"), c["data"].pop("classes")])
    rows = [
        {k: v for k, v in row.items() if k not in ("hd95", "surface_dice")}
        for row in read_csv(older / "test_cases.csv")
    ]
    write_csv(older / "test_cases.csv", rows)
    text = card.model_card(older)
    assert not PLACEHOLDERS.search(text)
    assert [row["metric"] for row in tables(text)[1]] == list(METRICS[:8])
    assert "above 0.5 |" in text
    for left_out in ("Patients", "commit", "multiply-adds", "on CPU"):
        assert left_out in whole
        assert left_out not in text

    (holdout / card.NAME).unlink()
    edit(holdout / "run.json", lambda record: record.update(status="running"))
    monkeypatch.setattr(results, "_LARGEST", 10)
    ended = tiny_train(holdout, *where)
    assert (ended.code, (holdout / card.NAME).exists()) == (0, False)
    assert f"{card.NAME} is left out: {holdout}" in ended.err


def test_where_weights_patients_and_code_come_from(holdout: Path) -> None:
    encoder = {"_target_": "seglab.networks.EncoderUNet", "encoder": "resnet34", "freeze": 2}

    def said(model: dict[str, Any], weights: str | None = None) -> str:
        edit(holdout / "config.yaml", lambda config: config.update(model=model))
        modules = {"model.weights": weights} if weights else {}
        edit(holdout / "run.json", lambda record: record.update(modules=modules))
        return card.model_card(holdout)

    text = said(encoder | {"weights": None, "freeze": 0})
    assert "# U-Net over ResNet-34, trained on `PH2Dataset`" in text
    assert "| weights | from scratch |" in text
    assert "pretrained'" not in text
    text = said(encoder | {"weights": "imagenet"}, "ab12")
    assert "ImageNet's, as published (SHA-256 `ab12`), of its 5 halvings the first 2 frozen" in text
    assert "and the extra 'pretrained'" in text
    text = said(encoder | {"weights": "/home/jane/nevi.pth"}, "cd34")
    assert "the encoder's are those of `nevi.pth` (SHA-256 `cd34`)" in text
    assert "jane" not in text
    text = said({"_target_": "lib.nets.Net", "inner": {"_target_": "lib.Block", "n": 3}, "a": {}})
    assert "| network | `Net(inner=Block, inner.n=3)`, " in text
    assert "| weights |" not in text  # of a library's network nothing is known
    assert text.count(" --trust lib  #") == 4
    assert "trust=('lib',))" in text

    assert "Patients are not named" in text
    edit(holdout / "data.json", lambda data: data["files"].update({"../who.csv": "ab"}))
    edit(holdout / "run.json", lambda r: r["git"].update(commit="a1b2c3", dirty=True))
    edit(holdout / "run.json", lambda r: r.update(device="cuda"))
    edit(holdout / "run.json", lambda r: r["machine"].update(cuda=["NVIDIA H100"]))
    text = card.model_card(holdout)
    assert "those of one patient, as far as `who.csv` names patients" in text
    assert "commit `a1b2c3`, with uncommitted changes (`code.diff`)" in text
    assert "on CUDA `NVIDIA H100`" in text
    edit(holdout / "run.json", lambda r: r.update(directory=str(holdout.parent.parent)))
    assert f"RUN={holdout.parent.name}/holdout\n" in card.model_card(holdout)
    edit(holdout / "config.yaml", lambda c: c["data"]["split"].update(file="/x/mine.json"))
    edit(holdout / "splits.json", lambda s: s["train"].append("ISIC_1"))
    text = card.model_card(holdout)
    assert "Split: as `mine.json` has it. Pictures" in text
    assert "PH2 is of" not in text  # other pictures in its layout
    assert "\nMarks `lesion` in pictures." in text
    pairs = {"_target_": "seglab.data.cases.pairs_cases"}
    edit(holdout / "config.yaml", lambda c: c["data"].update(cases=pairs))
    assert "\nMarks what its training masks mark, called `lesion`, in" in card.model_card(holdout)


class Seen(HTMLParser):
    """What a reader of a page sees, and what a browser would build."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data


def render(text: str) -> Seen:
    return Seen(markdown(text, extensions=["tables", "fenced_code"]))


@given(
    st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=30)
)
def test_a_name_of_any_characters_is_text_in_a_cell_and_in_a_line(name: str) -> None:
    page = f"| a | b |\n|:--|--:|\n| {card._name(name)} | {card._plain(name)} |\n"
    page += f"\n- It is {card._name(name)}, {card._plain(name)}.\n"
    seen = render(page)
    assert seen.rows == [["a", "b"], [name, name]]
    assert f"It is {name}, {name}." in seen.text
    assert {*seen.tags} <= {*re.findall(r"\w+", "table thead tbody tr th td ul li code p")}


HOSTILE = (
    "x`|</td><img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "a\n```\n# b | [c](http://d)",
    "![i](http://www.d/e.png)\\|",
    "`" * 9,
    "| --- |",
    "y" * 5000,
)


def test_hostile_names_are_nothing_but_text(holdout: Path) -> None:
    benign = render(card.model_card(holdout).split("---\n", 2)[2])
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
    edit(holdout / "data.json", lambda data: data["files"].update({f"{bad}.csv": "x"}))
    edit(holdout / "summary.json", lambda s: s["baselines"].update({bad: s["baselines"]["otsu"]}))
    hostile = holdout.with_name("a\n```\n# `b`<img>")
    holdout.rename(hostile)
    text = card.model_card(hostile)
    seen = render(text.split("---\n", 2)[2])
    assert {*seen.tags} == {*benign.tags}
    assert seen.tags.count("h2") == benign.tags.count("h2")
    assert seen.tags.count("h1") == 1
    assert not re.search(r"<[^ ]|\]\(", re.sub(r"^```(.|\n)*?^```$", "", text, flags=re.M))
    assert {len(row) for row in seen.rows} == {2, 7, 5}  # facts, baselines with one more, parts
    assert re.search(r"^RUN='a\?```\?# `b`<img>'  # put before", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) < 5000


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("run.json", None, "no run directory"),
        ("summary.json", None, "not trained to its end"),
        ("summary.json", '{"val": {}, "test": {}, "seconds": {"training_steps": 1}}', "damaged"),
        ("splits.json", '{"sha256": {}, "train": 3}', "damaged"),
        ("data.json", "[1]", "damaged"),
        ("run.json", '{"status": "finished", "machine": 3}', "damaged"),
        ("config.yaml", "a: &x 1\nb: *x", "damaged"),
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
        card.model_card(holdout)
    assert "\n" not in str(caught.value)
    assert (name if named != "no run directory" else "run.json") in str(caught.value)


def test_what_it_knows_by_heart_is_so() -> None:
    defaults = inspect.signature(Augment).parameters
    assert [n for n, p in defaults.items() if p.default not in (0, False)] == list(card.ON)
    assert {f"seglab.losses.{name}" for name in card._LOSSES} == ALLOWED_TARGETS["task.loss"]
    assert all(callable(getattr(losses, name)) for name in card._LOSSES)
    assert card._LAYOUTS.keys() == ALLOWED_TARGETS["data.cases"]
    assert {*card._NETWORKS, card._OVER_ENCODER} == ALLOWED_TARGETS["model"]
    assert {*card._LOOKS_ONLY, card._WATCHES_TEST} < ALLOWED_TARGETS["callbacks.*"]
    assert card._MEANS.keys() == {*METRICS}
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert project["license"] == "MIT"
