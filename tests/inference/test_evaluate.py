"""evaluate.py, for runs and ensembles; the threshold and scores that training leaves."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layouts import mask_path
from helpers.spoil import change_checkpoint, change_config, put_at
from helpers.tiny import Ended, write_tiny_ph2
from PIL import Image

import seglab.training.summary
from seglab.core.files import read_csv, read_json, write_json
from seglab.data.cases import Case
from seglab.data.layouts import find_cases
from seglab.inference.models import load_model
from seglab.inference.postprocessing import Prediction
from seglab.inference.predictor import make_predictor, tune_threshold
from seglab.inference.scoring import score_cases
from seglab.runs.checkpoints import hash_weights, load_network, load_run_network, read_checkpoint
from seglab.runs.records import open_run
from seglab.schema import INFERENCE_KEYS, Inference

ON = [f"inference.{key}=true" for key in INFERENCE_KEYS]
CLEAN = {"largest_component": True, "fill_holes": True}
POSTPROCESSING = Inference(**CLEAN)
ON4 = [*ON, "data.batch_size=4"]
OFF24 = ["data.size=24", "seed=1", "trainer.max_epochs=6"]
PLAIN = ["logger=none", "callbacks.pictures=null", "task.optimizer.lr=0.02", "data.split.val=0.3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def runs(folder: Path, tiny_train: Callable[..., Ended]) -> tuple[Path, Path]:
    """One with everything on, and one with everything off, at other sizes; read-only."""
    on, off = folder / "on", folder / "off"
    if not on.exists():
        for run, overrides in ((on, ON4), (off, OFF24)):
            ended = tiny_train(run, *PLAIN, *overrides)
            assert ended.code == 0, ended.err
    return on, off


def summary_of(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())


def set_status(run: Path, status: str) -> None:
    write_json(run / "run.json", read_json(run / "run.json") | {"status": status})


def cases_of(run: Path, subset: str) -> list[Case]:
    split = json.loads((run / "splits.json").read_text())
    root = json.loads((run / "data.json").read_text())["root"]
    by_id = {case.id: case for case in find_cases(root)}
    return [by_id[id] for id in split[subset]]


def test_tables_hold_evaluations_beside_runs(
    runs: tuple[Path, Path], script: Callable[..., Ended], tmp_path: Path
) -> None:
    on, off = runs
    other = write_tiny_ph2(tmp_path / "other", n=6)
    out = tmp_path / "evaluations"
    assert script("evaluate", off, "--data", other, "--out", out / "one").code == 0
    # Differs in nothing but how it was trained.
    plainly = ("--no-tta", "--no-largest-component", "--no-fill-holes")
    assert script("evaluate", on, *plainly, "--data", other, "--out", out / "two").code == 0
    plain = ("--no-largest-component", "--no-fill-holes")
    both = (on, off, *plain)
    assert script("evaluate", *both, "--data", other, "--out", out / "both").code == 0
    assert script("evaluate", on, "--no-tta", "--out", out / "own").code == 0
    table = tmp_path / "table"
    ended = script("compare", on, off, out, "--metrics", "all", "--out", table)
    assert ended.code == 0, ended.err
    rows = {row["run"]: row for row in read_csv(table / "runs.csv")}
    by_label = {row["label"]: row for row in read_csv(table / "table.csv")}
    for name in ("one", "two", "both", "own"):
        (run,) = (run for run in rows if run.endswith(name))
        line, scores = by_label[rows[run]["row"]], summary_of(out / name)["test"]
        assert (line["status"], line["parameters"]) == ("evaluated", "")
        for metric, value in scores.items():
            assert float(line[metric]) == pytest.approx(value, abs=1e-12)
    assert "scores are of the mean probability of 2 networks" in ended.out
    assert f"all cases of {other.name}" in ended.out
    assert by_label[rows[run]["row"]]["runs"] == "1" and len(by_label) >= 6
    assert {row["n"] for row in by_label.values()} == {"6", str(len(cases_of(on, "test")))}
    ended = script("predict", out / "one", other, "--out", tmp_path / "masks")
    assert ended.code != 0 and "holds scores alone, and no network" in ended.err


def test_a_run_scores_by_its_checkpoints_threshold(
    runs: tuple[Path, Path], script: Callable[..., Ended], tmp_path: Path
) -> None:
    on, off = runs
    assert summary_of(off)["threshold"] == 0.5
    net, metadata = load_network(on / "checkpoints" / "best.ckpt")
    predict = make_predictor(net, 32, tta=True)
    chosen = tune_threshold(predict, cases_of(on, "val"), 0.5, POSTPROCESSING)
    assert summary_of(on)["threshold"] == metadata["threshold"] == open_run(on).threshold == chosen
    assert chosen != 0.5
    for subset in ("val", "test"):
        values = score_cases(predict, cases_of(on, subset), chosen, POSTPROCESSING).values
        assert {k: v for k, v in summary_of(on)[subset].items() if k[-4:] != "_net"} == values
    assert open_run(on).config["inference"] == asdict(Inference(True, True, True, True))
    assert open_run(off).config["inference"] == asdict(Inference())
    for run, options, used in (
        (on, [], {"tta": True, **CLEAN}),
        (off, [], {key: False for key in INFERENCE_KEYS if key != "tune_threshold"}),
        (on, ["--no-tta", "--no-fill-holes"], {"tta": False, **CLEAN, "fill_holes": False}),
        (off, ["--tta", "--largest-component"], {"tta": True, **CLEAN, "fill_holes": False}),
    ):
        out = tmp_path / f"{run.name}{len(options)}"
        ended = script("evaluate", run, *options, "--out", out)
        assert ended.code == 0, ended.err
        evaluated, stored = summary_of(out), summary_of(run)
        assert evaluated["inference"] == [used | {"tune_threshold": run == on}]
        assert evaluated["threshold"] == stored["threshold"]
        assert evaluated["runs"] == [str(run)]
        same = (
            evaluated["test"] == stored["test"]
            and evaluated["calibration"] == stored["calibration"]
        )
        assert same == (not options)
        tables = [(folder / "test_cases.csv").read_bytes() for folder in (out, run)]
        assert tables[0] == tables[1] or options
        attributes = [(folder / "case_attributes.csv").read_bytes() for folder in (out, run)]
        assert attributes[0] == attributes[1]


def test_an_ensemble_of_runs(
    runs: tuple[Path, Path], tiny_ph2: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    on, off = runs
    ended = script("evaluate", on, off, "--out", tmp_path / "refused")
    (line,) = ended.err.splitlines()
    assert ended.code == 1
    assert line.startswith(f"error: {off}") and "--no-largest-component" in line

    options = ["--largest-component", "--fill-holes"]
    ended = script("evaluate", on, off, *options, "--out", tmp_path / "two")
    assert ended.code == 0, ended.err
    found = summary_of(tmp_path / "two")
    assert found["runs"] == [str(on), str(off)]
    assert found["inference"] == [
        {"tta": is_on, "tune_threshold": is_on, **CLEAN} for is_on in (True, False)
    ]
    threshold = (summary_of(on)["threshold"] + 0.5) / 2
    assert found["threshold"] == pytest.approx(threshold, rel=1e-15)
    first = make_predictor(load_run_network(open_run(on))[0], 32, tta=True)
    second = make_predictor(load_run_network(open_run(off))[0], 24)

    def mean(image: np.ndarray) -> Prediction:
        probs = [predict(image).prob.astype(float) for predict in (first, second)]
        return Prediction(lambda: (sum(probs) / 2).astype(np.float32))

    expected = score_cases(mean, cases_of(on, "test"), found["threshold"], POSTPROCESSING)
    assert found["test"] == pytest.approx(expected.values, rel=1e-6)
    assert found["n"] == len(expected.rows) and found["trained_on"] == 0
    assert script("evaluate", on).code == 0
    (out,) = (on / "evaluations").iterdir()
    assert summary_of(out)["test"] == summary_of(on)["test"]
    shutil.rmtree(on / "evaluations")


def test_an_ensemble_of_folds_scores_other_cases(
    runs: tuple[Path, Path],
    tiny_train: Callable[..., Ended],
    tiny_ph2: Path,
    script: Callable[..., Ended],
    tmp_path: Path,
) -> None:
    fold = tmp_path / "fold"
    assert tiny_train(fold, *PLAIN, "data.split.fold=1", "data.split.folds=3").code == 0
    ended = script("evaluate", runs[1], fold)
    assert ended.code == 1
    assert ended.err.startswith(f"error: {fold}: has other test cases than {runs[1]}; ")
    used = [
        {c.id for subset in ("train", "val") for c in cases_of(r, subset)} for r in (runs[1], fold)
    ]
    assert len(used[0] | used[1]) > max(map(len, used))
    for trained, names in ((used[0], [runs[1]]), (used[0] | used[1], [runs[1], fold])):
        out = tmp_path / f"of{len(names)}"
        assert script("evaluate", *names, "--data", tiny_ph2, "--out", out).code == 0
        assert (summary_of(out)["n"], summary_of(out)["trained_on"]) == (20, len(trained))


def test_a_sweep_is_the_ensemble_of_its_finished_runs(
    runs: tuple[Path, Path],
    tiny_ph2: Path,
    script: Callable[..., Ended],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sweep, off = tmp_path / "sweep", runs[1]
    for seed in "123":
        shutil.copytree(off, sweep / seed)
        change_config(sweep / seed, put_at("seed", int(seed)))
    set_status(sweep / "3", "interrupted")
    change_checkpoint(sweep / "2", put_at("seglab.threshold", 0.25))
    image = cases_of(off, "test")[0].image
    with caplog.at_level("WARNING"):
        load_model(sweep)
    assert f"{sweep}: 2 of 3 runs are finished, and used" in caplog.text
    model, one = load_model(sweep, tta=True), load_model(off, tta=True)
    assert (model.threshold, len(model.sha256)) == (0.375, 2)
    assert np.array_equal(model.probabilities(image), one.probabilities(image))
    for name, paths in (("sweep", [sweep]), ("runs", [sweep / "1", sweep / "2"])):
        out = tmp_path / name / "evaluated"
        assert script("evaluate", *paths, "--data", tiny_ph2, "--out", out).code == 0
    tables = [
        read_csv(tmp_path / name / "evaluated" / "test_cases.csv") for name in ("sweep", "runs")
    ]
    assert tables[0] == tables[1]
    # The members are equal, so their masks at one threshold are.
    assert {row["view_dice"] for row in tables[0]} == {"1.0"}
    assert {row["view_dice"] for row in read_csv(off / "test_cases.csv")} == {""}
    assert all(0 < float(row["view_dice"]) < 1 for row in read_csv(runs[0] / "test_cases.csv"))
    change_config(sweep / "2", put_at("task.optimizer.lr", 9))
    ended = script("evaluate", sweep)
    assert f"{sweep}: 2 and 1 differ in task.optimizer.lr; expected " in ended.err
    for run in "12":
        set_status(sweep / run, "failed")
    assert "holds no finished run" in script("evaluate", sweep).err


def test_pictures_of_training_are_found_in_another_format(
    runs: tuple[Path, Path],
    script: Callable[..., Ended],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the run directory alone, wherever its data is."""
    run, root = Path(shutil.copytree(runs[1], tmp_path / "run")), tmp_path / "saved"
    change_config(run, put_at("data.root", "/nowhere"))
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    by_subset = {subset: cases_of(runs[1], subset) for subset in ("train", "val", "test")}
    for subset, cases in by_subset.items():
        for i, case in enumerate(cases):
            image, mask = Image.open(case.image), Image.open(case.mask)
            if i % 2:
                image, mask = (x.transpose(Image.Transpose.ROTATE_90) for x in (image, mask))
            image.save(root / "images" / f"{subset}{i:02}.jpg", quality=95)
            mask.save(root / "masks" / f"{subset}{i:02}.png")
    ended = script("evaluate", run, "--data", root, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    n = len(by_subset["train"]) + len(by_subset["val"])
    assert (summary_of(tmp_path / "out")["n"], summary_of(tmp_path / "out")["trained_on"]) == (
        20,
        n,
    )
    line = f"{n} of these 20 cases, or nearly the same pictures, were used in training "
    assert f"{line}(train00, train01, train02, train03, train04 and {n - 5} more): " in caplog.text

    for file in root.glob("*/train*"):
        file.unlink()  # of train
    (run / "thumbnails.npy").unlink()
    ended = script("evaluate", run, "--data", root)
    assert ended.code == 1 and f"{run}/thumbnails.npy: no such file" in ended.err
    assert not (run / "evaluations").exists()


def test_odd_masks_of_other_data_are_told(
    runs: tuple[Path, Path],
    script: Callable[..., Ended],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = write_tiny_ph2(tmp_path / "other", 3)
    for id in ("IMD000", "IMD002"):
        Image.new("1", Image.open(mask_path(root, id)).size).save(mask_path(root, id))
    ended = script("evaluate", runs[1], "--data", root, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    warnings = summary_of(tmp_path / "out")["warnings"]
    assert warnings == caplog.messages
    assert warnings[0].startswith("2 of 3 masks (IMD000, IMD002) are empty ")
    assert warnings[1].startswith("3 cases are few: ")
    # The pictures are those of the tiny PH2.
    seen = {case.id for subset in ("train", "val") for case in cases_of(runs[1], subset)}
    names = [id for id in ("IMD000", "IMD001", "IMD002") if id in seen]
    assert warnings[2].startswith(f"{len(names)} of these 3 cases, or nearly the same pictures, ")
    assert f"({', '.join(names)})" in warnings[2]


def test_data_that_was_moved(
    runs: tuple[Path, Path], tiny_ph2: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    run, moved = Path(shutil.copytree(runs[1], tmp_path / "a 'run'")), tmp_path / "moved to"
    shutil.copytree(tiny_ph2, moved)
    change_config(run, put_at("data.root", str(tmp_path / "gone")))
    for name, options in (("evaluate", ["--out", tmp_path / "out"]), ("export", [])):
        ended = script(name, run, *options)
        assert ended.code == 1
        assert ended.err.startswith(f"error: {tmp_path / 'gone'}: no such folder; ")
        # The command in the message can be pasted.
        command = shlex.split(re.search("(?<=: )python .* FOLDER", ended.err)[0])
        assert command[1].endswith(f"scripts/{name}.py")
        ended = script(name, *command[2:-1], moved)
        assert ended.code == 0, ended.err
    evaluated, stored = summary_of(tmp_path / "out"), summary_of(run)
    assert (evaluated["test"], evaluated["n"]) == (stored["test"], 2)
    assert evaluated["data"] == str(moved)
    ended = script("evaluate", run, "--moved-to", run)
    assert ended.code == 1 and f"error: {run} holds no" in ended.err
    (moved / cases_of(runs[1], "test")[0].image.relative_to(tiny_ph2)).unlink()
    ended = script("evaluate", run, "--moved-to", moved)
    assert ended.code == 1 and "IMD" in ended.err
    ended = script("evaluate", run, "--moved-to", moved, "--data", moved)
    assert ended.code == 2 and "not allowed with" in ended.err


def test_a_test_case_that_has_changed_is_named(
    runs: tuple[Path, Path], tiny_ph2: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    run, root = tmp_path / "run", tmp_path / "data"
    shutil.copytree(runs[1], run)
    shutil.copytree(tiny_ph2, root)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(tiny_ph2), str(root)))
    case = cases_of(run, "test")[0]
    (root / case.mask.relative_to(tiny_ph2)).write_bytes(case.image.read_bytes())
    ended = script("evaluate", run)
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith(f"error: {root}: case {case.id} has changed since")


def values_of(run: Path) -> list[Any]:
    summary, best = summary_of(run), run / "checkpoints" / "best.ckpt"
    return [
        *(summary[key] for key in ("val", "test", "threshold", "best_epoch")),
        *(read_checkpoint(best)["seglab"]["threshold"], hash_weights(best)),
        (run / "test_cases.csv").read_bytes(),
    ]


@pytest.mark.parametrize("name", ["tune_threshold", "set_threshold", "score_sets"])
def test_a_run_stopped_while_it_chooses_ends_as_if_it_had_not_been(
    name: str,
    runs: tuple[Path, Path],
    tiny_train: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    run, command = tmp_path / "run", [*PLAIN, *ON4]
    with monkeypatch.context() as patched:

        def stop(*args: Any, **kwargs: Any) -> Any:
            raise KeyboardInterrupt

        patched.setattr(seglab.training.summary, name, stop)
        assert tiny_train(run, *command).code == 130
    stored = read_checkpoint(run / "checkpoints" / "best.ckpt")["seglab"]["threshold"]
    assert (stored == 0.5) == (name != "score_sets")
    ended = tiny_train(run, *command)
    assert ended.code == 0, ended.err
    assert "going on after step" in ended.err
    assert values_of(run) == values_of(runs[0])


def test_masks_of_any_suffix(
    tiny_train: Callable[..., Ended], tiny_ph2: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    """Found by train, check, evaluate and evaluate --data alike."""
    root = tmp_path / "data"
    for i, case in enumerate(find_cases(tiny_ph2)):
        for file, name in ((case.image, f"images/{i}.bmp"), (case.mask, f"masks/{i} by hand.bmp")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / name)
    checked = script("prepare_ph2", "--check", root)
    assert checked.code == 1
    assert f"{root}/masks/0 by hand.bmp is there: rename it, or set data.mask_suffix" in checked.out
    override, option = "data.mask_suffix=' by hand'", "--mask-suffix= by hand"
    checked = script("prepare_ph2", "--check", root, option)
    assert checked.code == 0
    assert checked.out.endswith(f'data=pairs data.root={root} "{override}"\n')
    data = ["data=default", f"data.root={root}"]
    run = tmp_path / "run"
    trained = tiny_train(run, *data, override, "logger=none", "trainer.max_epochs=1")
    assert trained.code == 0, trained.err
    assert script("evaluate", run, "--out", tmp_path / "own").code == 0
    assert "--data, which is missing" in script("evaluate", run, option).err
    ended = script("evaluate", run, "--data", root)
    assert ended.code == 1 and "--mask-suffix" in ended.err
    ended = script("evaluate", run, "--data", root, option, "--out", tmp_path / "all")
    assert ended.code == 0, ended.err
    assert summary_of(tmp_path / "all")["n"] == 20
