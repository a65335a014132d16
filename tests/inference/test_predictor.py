"""From networks to masks: test-time augmentation, thresholds, cleaning, ensembles, whole runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.measure
import torch
from helpers.tiny import Ended, skip_figures, write_ph2_case
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from omegaconf import DictConfig

import seglab.training.case_pictures
import seglab.training.summary
from seglab.config import DEFAULT_INFERENCE, INFERENCE_KEYS, Inference, check_values
from seglab.core.errors import InputError
from seglab.data.cases import Case
from seglab.data.classes import ONE_CLASS
from seglab.data.images import read_image, read_mask
from seglab.data.layouts import ph2_cases
from seglab.inference.models import mean_predictor
from seglab.inference.postprocessing import Predictor, clean
from seglab.inference.predictor import make_predictor, tune_threshold
from seglab.inference.scoring import score_cases
from seglab.networks import UNet
from seglab.runs.checkpoints import hash_weights, load_network, read_checkpoint
from seglab.runs.opening import load_run_network, open_run
from seglab.training.train import train

ON = [f"inference.{key}=true" for key in INFERENCE_KEYS]
CLEAN = {"largest_component": True, "fill_holes": True}
CLEANING = Inference(**CLEAN)


@pytest.fixture(scope="module")
def net() -> UNet:
    torch.manual_seed(0)
    return UNet(width=4, depth=2)


def test_tta_is_the_mean_of_eight_passes(net: UNet) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    plain, tta = make_predictor(net, 32), make_predictor(net, 32, tta=True)
    passes = []
    for k in range(4):
        passes.append(np.rot90(plain(np.rot90(image, k).copy())[0], -k))
        mirrored = np.rot90(image[:, ::-1], k).copy()
        passes.append(np.rot90(plain(mirrored)[0], -k)[:, ::-1])
    spread = np.ptp(passes, axis=0)
    assert spread.max() > 0.01
    np.testing.assert_allclose(tta(image)[0], np.mean(passes, axis=0), rtol=0, atol=1e-6)
    # So a turned picture has the turned prediction, and nothing depends on what was seen before.
    for turned in (np.rot90(image), image[::-1], image.transpose(1, 0, 2)):
        assert abs(plain(turned.copy()) - plain(image)).max() > 0.01
    turned = np.rot90(tta(image)[0])[None]
    np.testing.assert_allclose(tta(np.rot90(image).copy()), turned, atol=1e-6)
    np.testing.assert_allclose(tta(image[::-1].copy()), tta(image)[:, ::-1], atol=1e-6)
    assert np.array_equal(tta(image), tta(image))


def test_tta_of_an_equivariant_network_is_its_plain_prediction() -> None:
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 1, 1)
    image = np.random.default_rng(0).integers(0, 256, (21, 34, 3), np.uint8)
    plain, tta = (make_predictor(net, 16, tta=tta)(image) for tta in (False, True))
    assert tta.shape == (1, 21, 34) and tta.dtype == np.float32
    assert np.ptp(plain) > 0.02
    np.testing.assert_allclose(tta, plain, rtol=0, atol=1e-6)


def test_an_ensemble_has_the_mean_probability() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    fixed: list[Predictor] = [
        lambda image, p=p: np.full((1, *image.shape[:2]), p, np.float32) for p in (0.2, 0.9, 0.7)
    ]
    mean = mean_predictor(fixed)(image)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, np.full((1, 2, 3), 0.6), rtol=1e-6)
    # One is an ensemble too, bit for bit.
    prob = np.random.default_rng(0).random((1, 2, 3), np.float32)
    assert np.array_equal(mean_predictor([lambda image: prob])(image), prob)


def drawn(*lines: str) -> np.ndarray:
    return np.array([[character == "#" for character in line] for line in lines])


def test_clean_by_hand() -> None:
    # A ring that is closed by corners alone, a dot in it, and a blob of more pixels than the ring.
    mask = drawn(
        ".#....####",
        "#.#...####",
        ".#........",
        "......#..#",
    )
    largest = drawn(
        "......####",
        "......####",
        "..........",
        "..........",
    )
    filled = mask.copy()
    filled[1, 1] = True
    assert np.array_equal(clean(mask), mask)
    assert np.array_equal(clean(mask, largest_component=True), largest)
    assert np.array_equal(clean(mask, fill_holes=True), filled)
    # The picture's edge encloses nothing.
    open_to_the_edge = drawn("#.#", "#.#", "###")
    assert np.array_equal(clean(open_to_the_edge, **CLEAN), open_to_the_edge)
    # A blob of 49 pixels in a ring of 40, such as a lens leaves: filled, it would be all there is.
    blob = np.pad(np.ones((7, 7), bool), 2)
    ring = np.pad(np.zeros((9, 9), bool), 1, constant_values=True)
    assert np.array_equal(clean(blob | ring, **CLEAN), blob)
    assert clean(blob | ring, fill_holes=True).all()
    # Of equal ones the topmost; of none, none.
    assert np.array_equal(clean(drawn("...", "#.#"), **CLEAN), drawn("...", "#.."))
    for value in (False, True):
        assert np.array_equal(clean(np.full((2, 3), value), **CLEAN), np.full((2, 3), value))


def cleaned(mask: np.ndarray, largest_component: bool, fill_holes: bool) -> np.ndarray:
    """By scikit-image."""
    if largest_component and mask.any():
        regions = skimage.measure.label(mask, connectivity=2)
        areas = [region.area for region in skimage.measure.regionprops(regions)]
        mask = regions == 1 + int(np.argmax(areas))
    if fill_holes:
        outside = skimage.measure.label(np.pad(~mask, 1, constant_values=True), connectivity=1)
        mask = (outside != outside[0, 0])[1:-1, 1:-1]
    return mask


@given(
    arrays(bool, st.tuples(*[st.integers(1, 9)] * 2), elements=st.booleans()),
    st.booleans(),
    st.booleans(),
)
def test_clean_is_scikit_images(mask: np.ndarray, largest: bool, fill: bool) -> None:
    before = mask.copy()
    ours = clean(mask, largest, fill)
    assert ours.dtype == bool
    assert np.array_equal(ours, cleaned(mask, largest, fill))
    assert np.array_equal(mask, before)
    assert np.array_equal(clean(ours, largest, fill), ours)


def pictures_of(folder: Path, masks: list[np.ndarray]) -> list[Case]:
    for i, mask in enumerate(masks):
        image = np.full((*mask.shape, 3), i, np.uint8)
        write_ph2_case(folder, f"IMD{i:03}", image, mask)
    return ph2_cases(folder)


def answering(probs: list[np.ndarray]) -> Predictor:
    return lambda image: probs[image[0, 0, 0]][None].astype(np.float32)


@pytest.mark.parametrize("inference", [DEFAULT_INFERENCE, CLEANING], ids=["plain", "cleaned"])
@pytest.mark.parametrize("default", [0.5, 0.42])
def test_the_threshold_is_the_best_of_all(
    default: float, inference: Inference, tmp_path: Path
) -> None:
    random = np.random.default_rng(3)
    masks = [random.random((14, 17 + i)) < 0.3 for i in range(5)]
    masks[4][:] = False
    # On the thresholds' own values too: these pixels are background.
    probs = [
        np.round(0.5 * random.random(mask.shape) + 0.25 * mask, 2 if i % 2 else 6)
        for i, mask in enumerate(masks)
    ]
    cases = pictures_of(tmp_path, masks)
    predict = answering(probs)
    dice = {}
    for threshold in [*(k * 5 / 100 for k in range(1, 20)), default]:
        own = []
        for prob, mask in zip(probs, masks, strict=True):
            pred = prob.astype(np.float32) > np.float32(threshold)
            pred = cleaned(pred, True, True) if inference.fill_holes else pred
            both = pred.sum() + mask.sum()
            own.append(2 * (pred & mask).sum() / both if both else 1.0)
        dice[threshold] = np.mean(own)
    found = tune_threshold(predict, cases, default, inference)
    assert type(found) is float
    assert dice[found] == pytest.approx(max(dice.values()), abs=1e-12)
    assert sum(value > max(dice.values()) - 1e-9 for value in dice.values()) == 1
    scored = score_cases(predict, cases, found, inference).values
    assert scored["dice_per_image"] == pytest.approx(dice[found], abs=1e-12)


def test_of_equal_thresholds_the_nearest_is_taken(tmp_path: Path) -> None:
    lesion = np.zeros((4, 4), bool)
    lesion[1:3, 1:3] = True
    cases = pictures_of(tmp_path, [lesion, np.zeros((4, 4), bool)])
    sure = answering([lesion * 1.0, np.zeros((4, 4))])
    for default in (0.5, 0.33, 0.97):
        assert tune_threshold(sure, cases, default, DEFAULT_INFERENCE) == default
    # A lesion that is found below 0.48, and a false alarm up to 0.52: 0.45 and 0.55 are as good.
    torn = answering([lesion * 0.48, lesion * 0.52])
    assert tune_threshold(torn, cases, 0.5, DEFAULT_INFERENCE) == 0.45
    assert tune_threshold(torn, cases, 0.53, DEFAULT_INFERENCE) == 0.53
    assert tune_threshold(torn, cases, 0.51, DEFAULT_INFERENCE) == 0.55


def test_scores_are_of_cleaned_masks_and_calibration_of_probabilities(tmp_path: Path) -> None:
    lesion = np.zeros((12, 12), bool)
    lesion[2:8, 2:8] = True
    prob = lesion * 0.9
    prob[4, 4], prob[11, 11] = 0.1, 0.9
    cases = pictures_of(tmp_path, [lesion])
    rough, cleaned = (
        score_cases(answering([prob]), cases, 0.5, inference)
        for inference in (DEFAULT_INFERENCE, CLEANING)
    )
    pixels = [[s.rows[0][k] for k in ("tp", "fp", "fn", "tn")] for s in (rough, cleaned)]
    assert pixels == [[35, 1, 1, 107], [36, 0, 0, 108]]
    assert (cleaned.values["hd95"], cleaned.values["surface_dice"]) == (0, 1)
    assert rough.values["surface_dice"] < 1
    assert np.array_equal(rough.calibration, cleaned.calibration)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("inference.tta=1", "inference.tta=1: expected true or false"),
        ("inference.fill_holes=null", "inference.fill_holes=None: expected true or false"),
        ("+inference.holes=true", "inference.holes: unknown config key"),
        ("~inference.tta", "inference.tta: missing"),
        ("inference=null", "inference=None: expected keys"),
    ],
)
def test_bad_values_are_named(
    override: str, said: str, tiny_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        check_values(tiny_config(tmp_path / "run", override))
    assert str(caught.value).startswith(said)


def test_a_threshold_needs_val(
    tiny_config: Callable[..., DictConfig], runs: tuple[Path, Path], tmp_path: Path
) -> None:
    choose = ["inference.tune_threshold=true", "monitor=null"]
    with pytest.raises(InputError, match=r"tune_threshold=true: .*data\.split\.val=0"):
        check_values(tiny_config(tmp_path / "run", *choose, "data.split.val=0"))
    split = json.loads((runs[0] / "splits.json").read_text())
    split["train"] += split.pop("val")
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({**split, "val": []}))
    with pytest.raises(InputError, match=r"splits.json: holds no val for .*tune_threshold"):
        train(tiny_config(tmp_path / "run", *choose, f"data.split.file={file}"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


ON4 = [*ON, "data.batch_size=4"]
OFF24 = ["data.size=24", "seed=1", "trainer.max_epochs=6"]
PLAIN = ["logger=none", "callbacks.pictures=null", "task.optimizer.lr=0.02", "data.split.val=0.3"]


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


def cases_of(run: Path, part: str) -> list[Case]:
    split = json.loads((run / "splits.json").read_text())
    root = json.loads((run / "data.json").read_text())["root"]
    by_id = {case.id: case for case in ph2_cases(root)}
    return [by_id[id] for id in split[part]]


def test_a_run_scores_by_its_checkpoints_threshold(
    runs: tuple[Path, Path], script: Callable[..., Ended], tmp_path: Path
) -> None:
    on, off = runs
    assert summary_of(off)["threshold"] == 0.5
    net, metadata = load_network(on / "checkpoints" / "best.ckpt")
    predict = make_predictor(net, 32, tta=True)
    chosen = tune_threshold(predict, cases_of(on, "val"), 0.5, CLEANING)
    assert summary_of(on)["threshold"] == metadata["threshold"] == open_run(on).threshold == chosen
    assert chosen != 0.5
    for part in ("val", "test"):
        values = score_cases(predict, cases_of(on, part), chosen, CLEANING).values
        assert {k: v for k, v in summary_of(on)[part].items() if k[-4:] != "_net"} == values
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
        again, stored = summary_of(out), summary_of(run)
        assert again["inference"] == used
        assert again["threshold"] == stored["threshold"]
        assert again["run"] == str(run) and "runs" not in again
        same = again["test"] == stored["test"] and again["calibration"] == stored["calibration"]
        assert same == (not options)
        tables = [(folder / "test_cases.csv").read_bytes() for folder in (out, run)]
        assert tables[0] == tables[1] or options


def test_an_ensemble_of_runs(
    runs: tuple[Path, Path], tiny_ph2: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    on, off = runs
    ended = script("evaluate", on, off, "--out", tmp_path / "refused")
    (line,) = ended.err.splitlines()
    assert ended.code == 1
    assert line.startswith(f"error: {off}: cleans its masks otherwise than {on} (inference.")
    assert "say --largest-component or --no-largest-component" in line

    options = ["--largest-component", "--fill-holes"]
    ended = script("evaluate", on, off, *options, "--out", tmp_path / "two")
    assert ended.code == 0, ended.err
    found = summary_of(tmp_path / "two")
    assert found["runs"] == [str(on), str(off)] and "run" not in found
    assert found["inference"] == {"tta": [True, False], **CLEAN}
    threshold = (summary_of(on)["threshold"] + 0.5) / 2
    assert found["threshold"] == pytest.approx(threshold, rel=1e-15)
    first = make_predictor(load_run_network(open_run(on))[0], 32, tta=True)
    second = make_predictor(load_run_network(open_run(off))[0], 24)

    def mean(image: np.ndarray) -> np.ndarray:
        return ((first(image).astype(float) + second(image)) / 2).astype(np.float32)

    expected = score_cases(mean, cases_of(on, "test"), found["threshold"], CLEANING)
    assert found["test"] == pytest.approx(expected.values, rel=1e-6)
    assert found["n"] == len(expected.rows) and found["trained_on"] == 0

    # Beside the first run's own evaluations, where nothing is said.
    assert script("evaluate", on).code == 0
    (out,) = (on / "evaluations").iterdir()
    assert summary_of(out)["test"] == summary_of(on)["test"]
    ended = script("evaluate", on, f"{on}/.")
    assert ended.code == 1 and ended.err.endswith("given twice; expected runs that differ\n")
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
    (line,) = ended.err.splitlines()
    assert ended.code == 1
    assert line.startswith(f"error: {fold}: has other test cases than {runs[1]}; ")
    assert "--data" in line
    used = [{c.id for part in ("train", "val") for c in cases_of(r, part)} for r in (runs[1], fold)]
    assert len(used[0] | used[1]) > max(map(len, used))
    for trained, names in ((used[0], [runs[1]]), (used[0] | used[1], [runs[1], fold])):
        out = tmp_path / f"of{len(names)}"
        assert script("evaluate", *names, "--data", tiny_ph2, "--out", out).code == 0
        assert (summary_of(out)["n"], summary_of(out)["trained_on"]) == (20, len(trained))


def test_the_worst_cases_come_first(
    tiny_config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figures: dict[str, tuple[dict[str, list[np.ndarray]], list[str]]] = {}

    def save(path: Path, columns: Any, names: Any, **_: Any) -> None:
        figures[path.name] = columns, names

    monkeypatch.setattr(seglab.training.case_pictures, "save_cases", save)
    run = tmp_path / "run"
    split = ["data.split.test=0.6", "data.split.val=0.2", "trainer.max_epochs=1"]
    train(tiny_config(run, *PLAIN, *split, "inference.fill_holes=true"))
    test = cases_of(run, "test")
    assert len(test) == 12
    net, _ = load_network(run / "checkpoints" / "best.ckpt")
    predict = make_predictor(net, 32)
    scored = score_cases(predict, test, 0.5, Inference(fill_holes=True))
    dice = [row["dice_per_image"] for row in scored.rows]
    columns, names = figures["worst.png"]
    order = np.argsort(dice, kind="stable")[:10]
    assert [name.split("\n")[0] for name in names] == [test[i].id for i in order]
    assert names[0].split("\n")[1:] == [test[order[0]].diagnosis, f"Dice {min(dice):.3f}"]
    assert list(columns) == ["image", "target", "prediction", "probability", "errors"]
    for row, i in enumerate(order):
        image, mask = read_image(test[i].image), read_mask(test[i].mask)
        prob = predict(image)[0]
        pred = cleaned(prob > 0.5, False, True)
        masks = [ONE_CLASS.palette[m.astype(int)] for m in (mask, pred)]
        pictures = image, *masks, prob
        for title, picture in zip(columns, pictures, strict=False):
            assert np.array_equal(columns[title][row], picture), title
    shown = [name.split("\n")[0] for name in figures["predictions.png"][1]]
    assert shown == [case.id for case in test[:5]]


def values_of(run: Path) -> list[Any]:
    summary, best = summary_of(run), run / "checkpoints" / "best.ckpt"
    return [
        *(summary[key] for key in ("val", "test", "threshold", "best_epoch")),
        *(read_checkpoint(best)["seglab"]["threshold"], hash_weights(best)),
        (run / "test_cases.csv").read_bytes(),
    ]


@pytest.mark.parametrize("name", ["tune_threshold", "set_threshold", "score_cases"])
@pytest.mark.parametrize("lost", [False, True], ids=["", "last.ckpt lost"])
def test_a_run_stopped_while_it_chooses_ends_as_if_it_had_not_been(
    name: str,
    lost: bool,
    runs: tuple[Path, Path],
    tiny_train: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    run, command = tmp_path / "run", [*PLAIN, *ON4]
    skip_figures(monkeypatch)
    with monkeypatch.context() as patched:

        def stop(*args: Any, **kwargs: Any) -> Any:
            raise KeyboardInterrupt

        patched.setattr(seglab.training.summary, name, stop)
        assert tiny_train(run, *command).code == 130
    stored = read_checkpoint(run / "checkpoints" / "best.ckpt")["seglab"]["threshold"]
    assert (stored == 0.5) == (name != "score_cases")
    if lost:
        (run / "checkpoints" / "last.ckpt").unlink()
    ended = tiny_train(run, *command)
    assert ended.code == 0, ended.err
    assert "going on after step" in ended.err
    assert values_of(run) == values_of(runs[0])
