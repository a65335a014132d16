"""Synthetic cases: what is drawn, PH2's formats on disk, a folder that is whole or not there."""

import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.layouts import image_path, mask_path
from helpers.tiny import HEADER, REPO
from PIL import Image
from scipy.ndimage import distance_transform_edt
from skimage.measure import perimeter

from seglab.core.errors import InputError
from seglab.data import synthetic
from seglab.data.masks import read_mask
from seglab.data.synthetic import DARK_CORNERS, DIAGNOSES, synthetic_cases
from seglab.data.synthetic_drawing import draw_case

N = 6


def draw(seed: int, index: int, diagnosis: int) -> tuple[np.ndarray, np.ndarray]:
    """A case with its lesion's mask."""
    image, classes, _ = draw_case(seed, index, diagnosis)
    return image, classes == 1


@pytest.fixture(scope="module")
def drawn() -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
    """Five cases of each diagnosis."""
    return {diagnosis: [draw(0, i, diagnosis) for i in range(5)] for diagnosis in range(3)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set") / "synthetic"
    synthetic_cases(root, N, seed=0)
    return root


def contents(root: Path) -> dict[str, bytes]:
    files = (file for file in root.rglob("*") if file.is_file())
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in files}


def touches_frame(mask: np.ndarray) -> bool:
    return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())


def mean_by_diagnosis(drawn: dict, measure) -> list[float]:
    return [float(np.mean([measure(*case) for case in drawn[d]])) for d in range(3)]


def test_arguments_alone_determine_a_case() -> None:
    image, mask = draw(3, 1, 1)
    np.random.seed(1)
    draw(3, 0, 0)
    second_image, second_mask = draw(3, 1, 1)
    assert np.array_equal(image, second_image)
    assert np.array_equal(mask, second_mask)


def test_types_sizes_and_areas(drawn: dict) -> None:
    shapes = set()
    for image, mask in sum(drawn.values(), []):
        assert image.dtype == np.uint8
        assert mask.dtype == bool
        assert image.shape == (*mask.shape, 3)
        assert 553 <= mask.shape[0] <= 577
        assert 761 <= mask.shape[1] <= 769
        assert 0.03 <= mask.mean() <= 0.98
        shapes.add(mask.shape)
    assert len(shapes) > 1


def test_diagnoses_differ_in_size_outline_and_colours(drawn: dict) -> None:
    nevus, atypical, melanoma = mean_by_diagnosis(drawn, lambda _, mask: mask.mean())
    assert nevus < atypical < melanoma
    assert melanoma > 2 * nevus

    def raggedness(_: np.ndarray, mask: np.ndarray) -> float:
        return perimeter(mask) / np.sqrt(mask.sum())

    nevus, atypical, melanoma = mean_by_diagnosis(drawn, raggedness)
    assert nevus < 0.95 * atypical
    assert nevus < 0.9 * melanoma

    def colourfulness(image: np.ndarray, mask: np.ndarray) -> float:
        inside = image[mask].astype(float)
        return (inside / inside.sum(1, keepdims=True).clip(1)).std(0).sum()

    nevus, atypical, melanoma = mean_by_diagnosis(drawn, colourfulness)
    assert max(nevus, atypical) < melanoma


def test_a_lesion_is_visible_where_its_mask_says(drawn: dict) -> None:
    for image, mask in sum(drawn.values(), []):
        # Either side of the border, where light and skin are the same.
        depth, way = distance_transform_edt(mask), distance_transform_edt(~mask)
        within = image[(depth > 12) & (depth < 25)]
        around = image[(way > 12) & (way < 25)]
        assert np.median(around, 0).mean() - np.median(within, 0).mean() > 7


def test_files_are_ph2s(root: Path) -> None:
    names = [f"SYN{i:03d}" for i in range(1, N + 1)]
    pictures = [path(Path(), name).as_posix() for name in names for path in (image_path, mask_path)]
    assert sorted(contents(root)) == sorted([*pictures, "PH2_dataset.txt", "synthetic.json"])
    for i, name in enumerate(names):
        image, mask = draw(0, i, DIAGNOSES[i % 5])
        for path, bits in ((image_path(root, name), 24), (mask_path(root, name), 1)):
            head = path.read_bytes()[:34]
            assert head[:2] == b"BM"
            width, height, planes, depth, compression = struct.unpack("<iiHHI", head[18:34])
            assert (height, width) == mask.shape
            assert (planes, depth, compression) == (1, bits, 0)
        assert np.array_equal(np.asarray(Image.open(image_path(root, name))), image)
        saved = np.asarray(Image.open(mask_path(root, name)))
        assert saved.dtype == bool
        assert np.array_equal(saved, mask)


def test_table_is_ph2s(root: Path) -> None:
    table = (root / "PH2_dataset.txt").read_bytes()
    table.decode("ascii")
    assert table.count(b"\n") == table.count(b"\r\n")
    lines = table.split(b"\r\n")
    assert lines[0] == HEADER.encode()
    row = re.compile(
        rb"\|\| (SYN\d{3}) \|\| ([A-Za-z ]{22}) \|\| {18}([012]) \|\| {9}([012]) "
        rb"\| {14}[ A][TAP] \| {12}[ A][TAP] \| {7}[AP] \| {16}[AP] \| {17}[AP] "
        rb"\|\| ([1-6 ]{16}) \|\|"
    )
    for i, line in enumerate(lines[1 : N + 1]):
        assert len(line) == 176
        match = row.fullmatch(line)
        assert match, line
        assert match[1] == b"SYN%03d" % (i + 1)
        assert int(match[3]) == DIAGNOSES[i % 5]
        colors = match[5].strip().split(b"  ")
        assert colors == sorted(set(colors))
    assert lines[N + 1 : N + 4] == [b"", b"", b"Legends for Clinical Diagnosis: "]
    assert lines[-1] == b"   6 - Black."
    assert len(lines) == N + 26


def test_a_set_is_drawn_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in root.rglob("*")}

    before = times()
    # Without a lock, so that a set on a read-only disk will do.
    for name in ("draw_case", "FileLock"):
        monkeypatch.setattr(synthetic, name, lambda *_: pytest.fail("drawn again"))
    synthetic_cases(str(root), N, seed=0)
    assert times() == before


@pytest.mark.parametrize("n, seed", [(N + 1, 0), (N, 1)])
def test_a_set_with_other_settings_is_refused(root: Path, n: int, seed: int) -> None:
    before = contents(root)
    settings = f"'n': {N}, 'seed': 0, .*'n': {n}, 'seed': {seed}"
    with pytest.raises(InputError, match=f"^{root.resolve()}: .*{settings}.*data.root"):
        synthetic_cases(root, n, seed)
    assert contents(root) == before


@pytest.mark.parametrize("marker", [None, "{", "[]"])
def test_a_folder_with_something_else_is_refused(tmp_path: Path, marker: str | None) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    if marker is not None:
        (tmp_path / "synthetic.json").write_text(marker)
    with pytest.raises(InputError, match=re.escape(str(tmp_path.resolve()))):
        synthetic_cases(tmp_path, 1)
    assert (tmp_path / "thesis.txt").read_text() == "dear"


@pytest.mark.parametrize("n, seed", [(0, 0), (1, -1)])
def test_settings_out_of_range(tmp_path: Path, n: int, seed: int) -> None:
    with pytest.raises(InputError, match="expected an integer"):
        synthetic_cases(tmp_path / "root", n, seed)
    assert not any(tmp_path.iterdir())


def test_processes_that_start_at_once_draw_one_set(
    root: Path, tmp_path: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    code = (
        "import sys; from seglab.data.synthetic import synthetic_cases; "
        "synthetic_cases(sys.argv[1], 6, 0)"
    )
    shared = tmp_path / "deep" / "set"
    processes = [start_python(code, shared) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    # Bit for bit what this process has drawn.
    assert contents(shared) == contents(root)
    assert not [path for path in shared.parent.iterdir() if path.is_dir() and path != shared]


def test_a_killed_process_leaves_no_set_and_no_obstacle(
    tmp_path: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    code = (
        "import os, sys; from seglab.data import synthetic; "
        "os.rename = lambda *_: os._exit(9); "
        "synthetic.synthetic_cases(sys.argv[1], 2, 7)"
    )
    root = tmp_path / "set"
    assert start_python(code, root).wait(timeout=120) == 9
    assert not root.exists()
    (stale,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (stale / "half.bmp").write_bytes(b"BM")
    synthetic_cases(root, 1, seed=0)
    assert not stale.exists()
    pictures = [path(Path(), "SYN001").as_posix() for path in (image_path, mask_path)]
    assert contents(root).keys() == {*pictures, "PH2_dataset.txt", "synthetic.json"}


def test_dark_corners_are_a_third_class(tmp_path: Path) -> None:
    cases = synthetic_cases(tmp_path / "set", n=6, dark_corners=True)
    config = REPO / "conf" / "data" / "synthetic_corners.yaml"
    assert f"classes: [{', '.join(DARK_CORNERS.names)}]" in config.read_text()
    masks = [read_mask(case.mask, DARK_CORNERS) for case in cases]
    assert {*np.unique(np.concatenate([mask.ravel() for mask in masks]))} == {0, 1, 2}
    plain = synthetic_cases(tmp_path / "plain", n=6)
    for mask, case, binary in zip(masks, cases, plain, strict=True):
        assert np.array_equal(mask == 1, read_mask(binary.mask))
        assert case.image.read_bytes() == binary.image.read_bytes()
    with pytest.raises(InputError, match="holds"):
        synthetic_cases(tmp_path / "plain", n=6, dark_corners=True)
