"""predict.py: what it writes, for pictures and networks of every kind."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import skimage.measure
from helpers.tiny import ONE_THREAD, REPO, Ended, wait_until, written
from PIL import Image

from seglab.core.files import hash_file
from seglab.data.images import read_image, read_mask
from seglab.data.layouts import find_cases
from seglab.inference.evaluate import evaluate
from seglab.inference.image_files import find_images
from seglab.inference.manifest import KINDS
from seglab.inference.models import open_model
from seglab.inference.predict import predict


@pytest.fixture
def runs(predicting_runs: tuple[Path, Path]) -> tuple[Path, Path]:
    return predicting_runs


def state(out: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in out.rglob("*") if p.is_file()}


def test_masks_score_what_the_run_scored(
    runs: tuple[Path, Path], script: Callable[..., Ended], tiny_ph2: Path, tmp_path: Path
) -> None:
    cases = {case.id: case for case in find_cases(tiny_ph2)}
    for run in runs:
        out = tmp_path / run.name
        ended = script("predict", run, tiny_ph2, "--out", out)
        assert ended.code == 0, ended.err
        with (run / "test_cases.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 2
        for row in rows:
            image = cases[row["id"]].image
            (name,) = [n for n in written(out) if n.endswith(f"/{image.stem}.png")]
            assert "Dermoscopic" in name  # folders are kept: the lesion's has the same depth
            mask, target = written(out)[name], read_mask(cases[row["id"]].mask)
            assert mask.shape == target.shape and mask.dtype == np.uint8
            assert set(np.unique(mask)) <= {0, 255}
            tp, fp, fn = (
                int(np.count_nonzero(m))
                for m in (
                    mask & (target * np.uint8(255)),
                    (mask > 0) & ~target,
                    (mask == 0) & target,
                )
            )
            assert [tp, fp, fn] == [int(row[k]) for k in ("tp", "fp", "fn")]


def test_nothing_but_masks_is_written_unasked(
    runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = script("predict", runs[0], pictures, "--out", out)
    assert (ended.code, ended.err.splitlines()[-1]) == (0, f"{out}: 4 predicted, 0 there already")
    names = ["a/deep/one", "a/one", "b/three", "b/two"]
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        *("manifest.json", *(f"masks/{name}.png" for name in names))
    ]
    manifest = json.loads((out / "manifest.json").read_text())
    assert sorted(manifest["images"]) == names
    model = open_model(runs[0])
    assert manifest["networks"] == [*model.sha256] and manifest["threshold"] == model.threshold
    assert manifest["inference"] == asdict(model.inference)
    assert manifest["images"]["a/one"] == {
        "sha256": hash_file(pictures / "a" / "one.png"),
        "outputs": ["masks"],
        "instances": [],
    }


def test_every_kind_is_what_it_says(
    runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kinds = ["--probabilities", "--overlays", "--instances", "--cutouts"]
    ended = script("predict", runs[1], pictures, "--out", out, *kinds)
    assert ended.code == 0, ended.err
    files, model = written(out), open_model(runs[1])
    assert len(files) == 5 * 4
    with (out / "instances.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name, path in find_images([pictures], out).items():
        image = read_image(path)
        prob = model.predict(image)[0]
        mask = prob > model.threshold
        of = {kind: files[f"{kind}/{name}.png"] for kind in KINDS}
        assert np.array_equal(of["masks"], mask * 255)
        assert of["probabilities"].dtype == np.uint16
        assert abs(of["probabilities"] / 65535 - prob).max() <= 0.5 / 65535 + 1e-7
        assert of["overlays"].shape == image.shape
        assert of["cutouts"].shape == (*mask.shape, 4)
        assert np.array_equal(of["cutouts"][..., :3], image)
        assert of["instances"].dtype == np.uint16
        assert np.array_equal(of["instances"] > 0, mask)
        own = [row for row in rows if row["image"] == name]
        regions = skimage.measure.regionprops(of["instances"].astype(int), prob)
        assert [int(row["area"]) for row in own] == [int(region.area) for region in regions]
        for row, region in zip(own, regions, strict=True):
            assert float(row["mean_probability"]) == pytest.approx(region.intensity_mean, rel=1e-5)
            assert row["touches_frame"] in ("True", "False")
    assert len(rows) == sum(files[f"instances/{n}.png"].max() for n in find_images([pictures], out))


def test_started_again_it_goes_on(
    runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["predict", runs[0], pictures, "--out", out, "--instances"]
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
    # Another kind of output is added to those that are there.
    ended = script(*command, "--overlays")
    assert (ended.code, len(written(out))) == (0, 12)
    # What a killed process wrote after it had last saved the manifest is predicted again.
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["images"]["b/two"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    ended = script(*command)
    assert ended.err.splitlines()[-1] == f"{out}: 1 predicted, 3 there already"
    assert (out / "instances.csv").read_text() == table


def test_other_networks_and_settings_need_overwrite(
    runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["predict", runs[0], pictures, "--out", out, "--cutouts"]
    assert script(*command).code == 0
    before = state(out)
    ensemble_of_two = ["--with", runs[1], "--no-largest-component", "--no-fill-holes"]
    background = ["--background", pictures / "a" / "one.png"]
    for other, key in (
        (["predict", runs[1], pictures, "--out", out], "networks"),
        ([*command, "--no-tta"], "inference"),
        ([*command, *ensemble_of_two], "networks"),
        ([*command, *background], "cutouts"),
    ):
        ended = script(*other)
        (line,) = ended.err.splitlines()
        assert ended.code == 1
        assert line.startswith(f"error: {out / 'manifest.json'}: is of other {key}: ")
        assert line.endswith(
            "replace what is there with --overwrite, or name another folder with --out"
        )
    assert {file: s for file, s in state(out).items() if file.name != ".lock"} == before
    # With it, nothing of the former network stays, of images that are not predicted now either.
    other = ["predict", runs[1], pictures / "b", "--out", out, "--overwrite"]
    assert script(*other).code == 0
    assert sorted(written(out)) == ["masks/three.png", "masks/two.png"]
    # An image that has changed since is skipped.
    Image.open(pictures / "b" / "two.jpg").rotate(180).save(pictures / "b" / "two.jpg")
    ended = script("predict", runs[1], pictures / "b", "--out", out)
    assert ended.code == 1
    skipped, line = ended.err.splitlines()
    assert skipped.startswith("skipped: ") and "was made of another version" in skipped
    assert line == "error: 1 skipped, see above; 0 predicted, 1 there already"
    assert script(*other).code == 0


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "no JSON",
        '{"images": {"../../precious": {"sha256": "", "outputs": ["masks"], "instances": []}}}',
        '{"images": {"x": {"sha256": "", "outputs": ["masks/../.."], "instances": []}}}',
        '{"images": {"x": {"sha256": "", "outputs": ["/"], "instances": []}}}',
    ],
)
def test_a_manifest_of_others_deletes_nothing(
    content: str,
    runs: tuple[Path, Path],
    pictures: Path,
    script: Callable[..., Ended],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out" / "deeper"
    out.mkdir(parents=True)
    precious = [tmp_path / "precious.png", tmp_path / "out" / "x.png", out / "x.png"]
    for file in precious:
        file.write_text("precious")
    (out / "manifest.json").write_text(content)
    ended = script("predict", runs[0], pictures / "b", "--out", out)
    (line,) = ended.err.splitlines()
    assert ended.code == 1 and line.startswith(f"error: {out / 'manifest.json'}: ")
    ended = script("predict", runs[0], pictures / "b", "--out", out, "--overwrite")
    assert ended.code == 0, ended.err
    assert all(file.read_text() == "precious" for file in precious)


def bad_files(root: Path) -> dict[str, str]:
    """Writes bad pictures of every kind; returns what is said of each."""
    (root / "cut.png").write_bytes((root / "a" / "one.png").read_bytes()[:500])
    (root / "empty.jpg").touch()
    (root / "text.bmp").write_text("not a picture")
    (root / "huge.png").write_bytes(huge())
    (root / "gone.png").symlink_to("nowhere.png")
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(root / "nan.tif")
    return {
        "cut.png": "cannot be read as an image",
        "empty.jpg": "empty file",
        "text.bmp": "cannot be read as an image",
        "huge.png": "exceeds limit",
        "gone.png": "no such file",
        "nan.tif": "pixel values outside",
    }


def huge() -> bytes:
    """A PNG of a few bytes whose header claims 100,000 x 100,000 pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_bad_files_are_said_and_skipped(
    runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    said = bad_files(pictures)
    ended = script("predict", runs[1], pictures, pictures / "notes.txt", "--out", tmp_path / "out")
    *lines, last = ended.err.splitlines()
    assert ended.code == 1
    n = len(said) + 1
    assert last == f"error: {n} skipped, see above; 4 predicted, 0 there already"
    assert len(lines) == n
    for name, reason in {**said, "notes.txt": "cannot be read as an image"}.items():
        (line,) = [line for line in lines if name in line]
        assert line.startswith("skipped: ") and reason in line
    assert len(written(tmp_path / "out")) == 4


def test_what_is_no_file_is_skipped_at_once(
    runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    os.mkfifo(pictures / "pipe.png")
    long = pictures / f"{'n' * 246}.png"  # what is written beside it for a while is longer
    shutil.copy(pictures / "a" / "one.png", long)
    out = tmp_path / "out"
    ended = script("predict", runs[1], pictures, os.devnull, "--out", out)
    *lines, last = ended.err.splitlines()
    assert ended.code == 1 and len(lines) == 3
    assert last == "error: 3 skipped, see above; 4 predicted, 0 there already"
    assert any("pipe.png: cannot be read (no file)" in line for line in lines)
    assert any("null: cannot be read (no file)" in line for line in lines)
    assert any("File name too long" in line for line in lines)
    for option in ("--background", "--with"):
        ended = script("predict", runs[1], pictures, "--out", out, option, pictures / "pipe.png")
        assert ended.code == 1 and "pipe.png: " in ended.err
    assert not list(out.rglob("*.partial"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_skipped(
    runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    (pictures / "b").chmod(0)
    ended = script("predict", runs[1], pictures, "--out", tmp_path / "out")
    (pictures / "b").chmod(0o755)
    assert ended.code == 1
    assert "1 skipped, see above; 2 predicted" in ended.err


def test_nothing_of_others_is_touched(
    runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    others = [out / "run" / ".last.ckpt.1234.partial", out / "masks" / ".one.2backup.partial"]
    for file in others:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("of others")
    stale = out / "masks" / ".one.png.1234.partial"
    stale.write_text("half a mask")
    (out / "instances.csv").write_text("mine,precious\n")
    command = ["predict", runs[1], pictures / "a", "--out", out, "--instances"]
    ended = script(*command)
    (line,) = ended.err.splitlines()
    assert ended.code == 1 and line.startswith(f"error: {out / 'instances.csv'}: is there already")
    (out / "instances.csv").unlink()
    assert script(*command).code == 0
    assert all(file.read_text() == "of others" for file in others) and not stale.exists()
    # Other pictures' rows stay, as their masks do.
    assert script("predict", runs[1], pictures / "b", "--out", out, "--instances").code == 0
    with (out / "instances.csv").open() as file:
        assert {row["image"] for row in csv.DictReader(file)} == {"deep/one", "one", "three", "two"}


def test_a_background_shows_where_the_mask_is_not(
    runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    behind = tmp_path / "green.png"
    Image.new("RGB", (300, 30), (0, 200, 0)).save(behind)
    out = tmp_path / "out"
    ended = script("predict", runs[0], pictures / "a", "--background", behind, "--out", out)
    assert ended.code == 0, ended.err
    for name, path in find_images([pictures / "a"], out).items():
        image = read_image(path)
        cut, mask = written(out)[f"cutouts/{name}.png"], written(out)[f"masks/{name}.png"] > 0
        assert cut.shape == image.shape
        inside, outside = eroded(mask), eroded(~mask)
        assert inside.any() and outside.any()
        assert np.array_equal(cut[inside], image[inside])
        assert (cut[outside] == (0, 200, 0)).all()
    ended = script("predict", runs[0], pictures / "a", "--background", "no.png", "--out", out)
    assert ended.code == 1 and ended.err.startswith("error: no.png: cannot be read (no such file)")


def eroded(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_erosion

    return binary_erosion(mask, iterations=3, border_value=1)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_ended_midway_it_goes_on(
    signum: signal.Signals, runs: tuple[Path, Path], tiny_ph2: Path, tmp_path: Path
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for i in range(60):
        for case in find_cases(tiny_ph2)[:1]:
            shutil.copy(case.image, many / f"{i:02}.bmp")
    out = tmp_path / "out"
    command = [sys.executable, str(REPO / "scripts" / "predict.py"), str(runs[0]), str(many)]
    command += ["--out", str(out), "--instances", "--overlays"]
    process = subprocess.Popen(
        command, env=os.environ | ONE_THREAD, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: len(list(out.glob("masks/*.png"))) >= 5)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if signum == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in err
    done = list(out.glob("masks/*.png"))
    assert 5 <= len(done) < 60
    for file in done:  # whole, and with all that belongs to it
        assert np.asarray(Image.open(file)).size
        assert (out / "instances" / file.name).exists() and (out / "overlays" / file.name).exists()
    again = subprocess.run(command, env=os.environ | ONE_THREAD, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    if signum == signal.SIGINT:
        there = int(again.stderr.split(" there already")[0].rsplit(" ", 1)[1])
        assert len(done) - 1 <= there <= len(done)
    assert len(written(out)) == 180
    names = {p.name for p in out.rglob("*") if p.is_file()}
    assert names == {f"{i:02}.png" for i in range(60)} | {"instances.csv", "manifest.json"}
    with (out / "instances.csv").open() as file:
        assert {row["image"] for row in csv.DictReader(file)} == {f"{i:02}" for i in range(60)}


def test_evaluate_and_predict_agree_on_an_ensemble(
    runs: tuple[Path, Path], tiny_ph2: Path, tmp_path: Path
) -> None:
    same = {"largest_component": True, "fill_holes": True}
    summary = evaluate(runs, tiny_ph2, tmp_path / "scored", **same)
    predict(runs, [tiny_ph2 / "PH2 Dataset images"], tmp_path / "out", **same)
    with (tmp_path / "scored" / "test_cases.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert len(rows) == summary["n"] == 20
    files = {Path(name).stem: mask for name, mask in written(tmp_path / "out").items()}
    for id, row in rows.items():
        assert np.count_nonzero(files[id]) == int(row["tp"]) + int(row["fp"])
