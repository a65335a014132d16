"""predict.py: what it writes, for pictures and networks of every kind."""

import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.measure
from helpers.processes import Process
from helpers.tiny import Ended, wait_until, written
from PIL import Image

from seglab.core.files import hash_file, read_csv, write_atomic
from seglab.data.images import read_image
from seglab.data.layouts import find_cases
from seglab.data.masks import read_mask
from seglab.inference.evaluate import evaluate
from seglab.inference.image_files import find_images
from seglab.inference.manifest import KINDS, Manifest
from seglab.inference.models import load_model
from seglab.inference.predict import predict


def state(out: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in out.rglob("*") if p.is_file()}


def test_nothing_but_masks_is_written_unasked(
    predicting_runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = script("predict", predicting_runs[0], pictures, "--out", out)
    assert (ended.code, ended.err.splitlines()[-1]) == (0, f"{out}: 4 predicted, 0 there already")
    names = ["a/deep/one", "a/one", "b/three", "b/two"]
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {
        *("manifest.json", *(f"masks/{name}.png" for name in names))
    }
    manifest = json.loads((out / "manifest.json").read_text())
    assert sorted(manifest["images"]) == names
    model = load_model(predicting_runs[0])
    assert manifest["networks"] == [*model.sha256] and manifest["threshold"] == model.threshold
    assert manifest["inference"] == asdict(model.inference)
    assert manifest["images"]["a/one"] == {
        "sha256": hash_file(pictures / "a" / "one.png"),
        "instances": [],
        "quality": None,
    }


def test_every_kind_is_what_it_says(
    predicting_runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kinds = ["--probabilities", "--overlays", "--instances", "--cutouts"]
    ended = script("predict", predicting_runs[1], pictures, "--out", out, *kinds)
    assert ended.code == 0, ended.err
    files, model = written(out), load_model(predicting_runs[1])
    assert len(files) == 5 * 4
    rows = read_csv(out / "instances.csv")
    for name, path in find_images([pictures]).items():
        image = read_image(path)
        prob = model.probabilities(image)[0]
        mask = prob > model.threshold
        images = {kind: files[f"{kind}/{name}.png"] for kind in KINDS}
        assert np.array_equal(images["masks"], mask * 255)
        assert abs(images["probabilities"] / 65535 - prob).max() <= 0.5 / 65535 + 1e-7
        assert images["overlays"].shape == image.shape
        assert np.array_equal(images["cutouts"], np.dstack([image, mask * np.uint8(255)]))
        assert np.array_equal(images["instances"] > 0, mask)
        measured = [row for row in rows if row["image"] == name]
        regions = skimage.measure.regionprops(images["instances"].astype(int), prob)
        assert [int(row["area"]) for row in measured] == [int(region.area) for region in regions]
        for row, region in zip(measured, regions, strict=True):
            assert float(row["mean_probability"]) == pytest.approx(region.intensity_mean, rel=1e-5)


def test_started_again_it_goes_on(
    predicting_runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["predict", predicting_runs[0], pictures, "--out", out, "--instances"]
    assert script(*command).code == 0
    before, table = state(out), (out / "instances.csv").read_text()
    (out / "masks" / "a" / "one.png").unlink()
    (out / "instances.csv").unlink()
    ended = script(*command)
    assert ended.err.splitlines()[-1] == f"{out}: 1 predicted, 3 there already"
    after = state(out)
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed == {"one.png", "instances.csv", "manifest.json"}
    assert (out / "instances.csv").read_text() == table
    # What a killed process wrote after it had last saved the manifest is predicted again.
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["images"]["b/two"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    ended = script(*command)
    assert ended.err.splitlines()[-1] == f"{out}: 1 predicted, 3 there already"
    assert (out / "instances.csv").read_text() == table


def test_other_networks_and_settings_need_overwrite(
    predicting_runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["predict", predicting_runs[0], pictures, "--out", out, "--cutouts"]
    assert script(*command).code == 0
    before = state(out)
    for options, key in (
        (["--with", predicting_runs[1], "--no-largest-component", "--no-fill-holes"], "networks"),
        (["--no-tta"], "inference"),
        (["--background", pictures / "a" / "one.png"], "background"),
        (["--overlays"], "outputs"),
    ):
        ended = script(*command, *options)
        (line,) = ended.err.splitlines()
        assert ended.code == 1 and "--overwrite" in line
        assert line.startswith(f"error: {out / 'manifest.json'}: is of other {key}: ")
    assert {file: s for file, s in state(out).items() if file.name != ".lock"} == before
    # With it, nothing of the former network stays, of images that are not predicted now either.
    other = ["predict", predicting_runs[1], pictures / "b", "--out", out, "--overwrite"]
    assert script(*other).code == 0
    assert sorted(written(out)) == ["masks/three.png", "masks/two.png"]
    # An image that has changed since is skipped.
    Image.open(pictures / "b" / "two.jpg").rotate(180).save(pictures / "b" / "two.jpg")
    ended = script("predict", predicting_runs[1], pictures / "b", "--out", out)
    assert ended.code == 1
    skipped, line = ended.err.splitlines()
    assert skipped.startswith("skipped: ") and "was made of another version" in skipped
    assert line == "error: 1 skipped, see above; 0 predicted, 1 there already"
    assert script(*other).code == 0


@pytest.mark.parametrize("content", [None, "no JSON", '{"images": {}}'])
def test_files_of_others_are_never_deleted(
    content: str | None,
    predicting_runs: tuple[Path, Path],
    pictures: Path,
    script: Callable[..., Ended],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    files = {out / "masks" / "two.png": "precious"}
    if content is not None:
        files[out / "manifest.json"] = content
    for file, text in files.items():
        file.write_text(text)
    for options in ([], ["--overwrite"]):
        ended = script("predict", predicting_runs[0], pictures / "b", "--out", out, *options)
        (line,) = ended.err.splitlines()
        assert ended.code == 1 and line.startswith(f"error: {out}/")
        assert {file: file.read_text() for file in out.rglob("*") if file.is_file()} == files


def test_bad_files_are_said_and_skipped(
    predicting_runs: tuple[Path, Path],
    pictures: Path,
    script: Callable[..., Ended],
    tmp_path: Path,
) -> None:
    (pictures / "cut.png").write_bytes((pictures / "a" / "one.png").read_bytes()[:500])
    (pictures / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(pictures / "pipe.png")
    reasons = {
        "cut.png": "cannot be read as an image",
        "gone.png": "no such file",
        "pipe.png": "no such file",
        "notes.txt": "cannot be read as an image",
    }
    images = [pictures, pictures / "notes.txt"]
    ended = script("predict", predicting_runs[1], *images, "--out", tmp_path / "out")
    *lines, last = ended.err.splitlines()
    assert ended.code == 1
    assert last == "error: 4 skipped, see above; 4 predicted, 0 there already"
    for (name, reason), line in zip(sorted(reasons.items()), lines, strict=True):
        assert line.startswith("skipped: ") and name in line and reason in line
    assert len(written(tmp_path / "out")) == 4


def test_what_was_predicted_into_the_folder_of_pictures_is_no_picture(
    predicting_runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    names = sorted(find_images([pictures]))
    for out, options in (
        (pictures, []),
        (pictures, []),
        (pictures / "a" / "more", ["--overlays", "--probabilities", "--instances"]),
        (tmp_path / "out", []),
    ):
        ended = script("predict", predicting_runs[1], pictures, "--out", out, *options)
        assert ended.code == 0, ended.err
        assert sorted(json.loads((out / "manifest.json").read_text())["images"]) == names
    assert "left out, as seglab predict has written them: " in ended.err
    assert f"{pictures}/a/more/" in ended.err and "and 19 more" in ended.err
    ended = script("predict", predicting_runs[1], pictures / "masks", "--out", tmp_path / "new")
    assert ended.code == 1 and "no image in it" in ended.err.splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_other_images_and_files_stay(
    predicting_runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["predict", predicting_runs[1], "--out", out, "--instances"]
    assert script(*command, pictures / "a").code == 0
    other, stale = out / ".last.ckpt.1234.partial", out / "masks" / ".one.png.1234.partial"
    other.touch()
    stale.touch()
    assert script(*command, pictures / "b").code == 0
    assert {row["image"] for row in read_csv(out / "instances.csv")} == {
        *("deep/one", "one", "three", "two")
    }
    assert other.exists() and not stale.exists()


def test_a_background_shows_where_the_mask_is_not(
    predicting_runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    behind = tmp_path / "green.png"
    Image.new("RGB", (300, 30), (0, 200, 0)).save(behind)
    out = tmp_path / "out"
    command = ["predict", predicting_runs[0], pictures / "a", "--out", out, "--background"]
    assert script(*command, behind).code == 0
    for name, path in find_images([pictures / "a"]).items():
        image = read_image(path)
        cut, mask = written(out)[f"cutouts/{name}.png"], written(out)[f"masks/{name}.png"] > 0
        assert mask.any() and not mask.all()
        assert np.array_equal(cut[mask], image[mask])
        assert (cut[~mask] == (0, 200, 0)).all()
    ended = script(*command, "no.png")
    assert ended.code == 1 and ended.err.startswith("error: no.png: no such file")


def test_a_bounded_number_of_images_is_in_work_at_once(
    predicting_runs: tuple[Path, Path],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_work, most, both = set[int](), [0], threading.Barrier(2)

    def read(path: Path) -> np.ndarray:
        in_work.add(threading.get_ident())
        most.append(len(in_work))
        both.wait(60)  # for another image that is in work, too
        return read_image(path)

    add = Manifest.add

    def finish(self: Manifest, name: str, **record: Any) -> None:
        add(self, name, **record)
        in_work.remove(threading.get_ident())

    monkeypatch.setattr("seglab.inference.predict.WORKERS", 2)
    monkeypatch.setattr("seglab.inference.predict.read_image", read)
    monkeypatch.setattr(Manifest, "add", finish)
    assert predict(predicting_runs[:1], [pictures], tmp_path / "out")["predicted"] == 4
    assert max(most) == 2 and not in_work


def test_the_order_is_that_of_names_whichever_image_is_finished_first(
    predicting_runs: tuple[Path, Path],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("a/aaa.png", "zzz.png"):
        (pictures / name).write_bytes(b"damaged")
    last_is_read = threading.Event()

    def read(path: Path) -> np.ndarray:
        if path.name == "zzz.png":
            last_is_read.set()
        if path.name == "aaa.png":
            assert last_is_read.wait(60)
        return read_image(path)

    monkeypatch.setattr("seglab.inference.predict.WORKERS", 2)
    monkeypatch.setattr("seglab.inference.predict.read_image", read)
    counts = predict(predicting_runs[:1], [pictures], tmp_path / "out", ["quality"])
    assert counts == {"predicted": 4, "there": 0, "skipped": 2}
    skipped = [line for line in caplog.messages if line.startswith("skipped: ")]
    assert ["aaa.png" in line for line in skipped] == [True, False]
    names = ["a/deep/one", "a/one", "b/three", "b/two"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [*manifest["images"]] == names
    assert [row["picture"] for row in read_csv(tmp_path / "out" / "quality.csv")] == names


def test_a_full_disk_costs_only_what_was_in_work(
    predicting_runs: tuple[Path, Path],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"

    def write(path: Path, content: bytes) -> None:
        if path.name == "three.png" and path.parent.parent.name == "masks":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_atomic(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("seglab.inference.predict.WORKERS", 2)
        patch.setattr("seglab.inference.predict.write_atomic", write)
        with pytest.raises(OSError, match="No space left") as raised:
            predict(predicting_runs[:1], [pictures], out, ["overlays"])
    assert raised.value.filename == str(out / "masks" / "b" / "three.png")
    # All before it are finished; of what is listed, everything is there.
    finished = json.loads((out / "manifest.json").read_text())["images"]
    assert {"a/deep/one", "a/one"} <= finished.keys() <= {"a/deep/one", "a/one", "b/two"}
    masks = {name for name in written(out) if name.startswith("masks/")}
    assert masks == {f"masks/{name}.png" for name in finished}
    assert not [*out.rglob("*.partial")]
    counts = predict(predicting_runs[:1], [pictures], out, ["overlays"])
    assert counts == {"predicted": 4 - len(finished), "there": len(finished), "skipped": 0}


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_ended_midway_it_goes_on(
    signum: signal.Signals,
    forks: Any,
    predicting_runs: tuple[Path, Path],
    tiny_ph2: Path,
    tmp_path: Path,
) -> None:
    many, out = tmp_path / "many", tmp_path / "out"
    many.mkdir()
    for i in range(60):
        shutil.copy(find_cases(tiny_ph2)[0].image, many / f"{i:02}.bmp")
    arguments = [predicting_runs[0], many, "--out", out, "--instances", "--overlays"]
    process = Process(forks, tmp_path / "log", "predict", arguments)
    wait_until(lambda: len(list(out.glob("masks/*.png"))) >= 5)
    process.send(signum)
    ended = process.wait(60)
    assert ended.code == (130 if signum == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in ended.err
    done = list(out.glob("masks/*.png"))
    assert 5 <= len(done) < 60
    for file in done:  # whole, and with all that belongs to it
        assert np.asarray(Image.open(file)).size
        assert (out / "instances" / file.name).exists() and (out / "overlays" / file.name).exists()
    resumed = Process(forks, tmp_path / "log2", "predict", arguments).wait()
    assert resumed.code == 0, resumed.err
    if signum == signal.SIGINT:
        existing = int(resumed.err.split(" there already")[0].rsplit(" ", 1)[1])
        assert len(done) - 1 <= existing <= len(done)
    assert len(written(out)) == 180
    names = {p.name for p in out.rglob("*") if p.is_file()}
    assert names == {f"{i:02}.png" for i in range(60)} | {"instances.csv", "manifest.json"}
    assert {row["image"] for row in read_csv(out / "instances.csv")} == {
        f"{i:02}" for i in range(60)
    }


def test_evaluate_and_predict_agree(
    predicting_runs: tuple[Path, Path], tiny_ph2: Path, tmp_path: Path
) -> None:
    same = {"largest_component": True, "fill_holes": True}
    summary = evaluate(predicting_runs, tiny_ph2, tmp_path / "scored", **same)
    predict(predicting_runs, [tiny_ph2 / "PH2 Dataset images"], tmp_path / "out", **same)
    rows = {row["id"]: row for row in read_csv(tmp_path / "scored" / "test_cases.csv")}
    assert len(rows) == summary["n"] == 20
    masks = {Path(name).stem: mask for name, mask in written(tmp_path / "out").items()}
    for case in find_cases(tiny_ph2):
        mask, target = masks[case.id], read_mask(case.mask)
        true_positives = np.count_nonzero(mask & (target * np.uint8(255)))
        false_positives = np.count_nonzero(mask) - true_positives
        row = rows[case.id]
        assert [true_positives, false_positives] == [int(row["tp"]), int(row["fp"])]
