"""The cache: what direct reading gives, built once, never half, made anew when files change."""

import hashlib
import json
import logging
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import wait_until, write_tiny_classes
from PIL import Image

from seglab.core.errors import InputError
from seglab.data import cache as cache_module
from seglab.data.cache import Cache, hash_files, open_cache
from seglab.data.cases import Case, read_pair, with_classes
from seglab.data.classes import Classes
from seglab.data.layouts import find_cases
from seglab.data.resizing import to_network_size

N, SIZE = 6, 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_pairs: Callable[..., Path]) -> Path:
    """Read-only by agreement."""
    return write_pairs(tmp_path_factory.mktemp("pairs") / "data", N)


@pytest.fixture
def own_data(tmp_path: Path, write_pairs: Callable[..., Path]) -> Path:
    """To be changed."""
    return write_pairs(tmp_path / "own", N)


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


def folders(cache_dir: Path) -> list[Path]:
    return sorted(path for path in cache_dir.iterdir() if path.is_dir())


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def assert_is_direct_reading(cache: Cache, cases: list[Case], size: int = SIZE) -> None:
    assert cache.images.dtype == cache.masks.dtype == np.uint8
    assert cache.images.shape == (len(cases), size, size, 3)
    assert cache.masks.shape == (len(cases), size, size)
    for row, case in enumerate(cases):
        image, mask = to_network_size(*read_pair(case), size)
        assert np.array_equal(cache.images[row], image)
        assert np.array_equal(cache.masks[row], mask.astype(np.uint8))


def test_the_cache_holds_what_direct_reading_gives(data: Path, cache_dir: Path) -> None:
    cases = find_cases(data)[::-1]
    cache = open_cache(cases, SIZE, str(cache_dir))
    assert_is_direct_reading(cache, cases)
    assert set(np.unique(cache.masks)) == {0, 1}
    assert isinstance(cache.images, np.memmap) and isinstance(cache.masks, np.memmap)
    assert not cache.images.flags.writeable
    assert cache.groups == list(range(N))
    for case in cases:
        files = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (case.image, case.mask)]
        expected = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        assert cache.sha256[case.id] == expected
    assert list(cache.sha256) == [case.id for case in cases]


def test_the_same_files_are_cached_once(
    data: Path,
    own_data: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "seglab.data.cache")
    first = open_cache(find_cases(data), SIZE, cache_dir)
    (folder,) = folders(cache_dir)
    before = times(folder)
    monkeypatch.setattr(cache_module, "decode_pair", lambda case: pytest.fail("read again"))
    for root in (data, own_data):
        second = open_cache(find_cases(root), SIZE, cache_dir)
        assert np.array_equal(second.images, first.images)
        assert (second.groups, second.sha256) == (first.groups, first.sha256)
    assert times(folder) == before and folders(cache_dir) == [folder]
    assert [record.getMessage() for record in caplog.records] == [f"cache built: {folder}"]


@pytest.mark.parametrize("subfolder", ["images", "masks"])
def test_a_changed_file_gives_another_cache(
    subfolder: str, own_data: Path, cache_dir: Path
) -> None:
    cases = find_cases(own_data)
    first = open_cache(cases, SIZE, cache_dir)
    path = own_data / subfolder / "p03.png"
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    second = open_cache(cases, SIZE, cache_dir)
    assert {p for p in first.files if first.files[p] != second.files[p]} == {path}
    assert {id for id in first.sha256 if first.sha256[id] != second.sha256[id]} == {"p03"}
    assert_is_direct_reading(second, cases)
    assert not np.array_equal(getattr(second, subfolder), getattr(first, subfolder))


def test_size_ids_classes_and_version_are_part_of_the_key(
    data: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = find_cases(data)
    open_cache(cases, SIZE, cache_dir)
    # What a table says is not in the arrays.
    open_cache([replace(cases[0], diagnosis="melanoma"), *cases[1:]], SIZE, cache_dir)
    assert len(folders(cache_dir)) == 1
    assert_is_direct_reading(open_cache(cases, SIZE + 5, cache_dir), cases, SIZE + 5)
    open_cache([replace(cases[0], id="other"), *cases[1:]], SIZE, cache_dir)
    assert len(folders(cache_dir)) == 3
    multiclass_cases = find_cases(write_tiny_classes(tmp_path / "classes", n=2))
    for n, names in enumerate((("skin", "disc", "square"), ("a", "b", "c", "d")), 4):
        cache = open_cache(with_classes(multiclass_cases, Classes(names)), SIZE, cache_dir)
        assert cache.masks.max() == 2 and len(folders(cache_dir)) == n
    for n, values in enumerate(("nonzero", (1,), (2,)), 6):
        chosen = with_classes(cases, Classes(lesion_values=values))
        open_cache(chosen, SIZE, cache_dir)
        assert len(folders(cache_dir)) == n
    monkeypatch.setattr(cache_module, "VERSION", cache_module.VERSION + 1)
    open_cache(cases, SIZE, cache_dir)
    assert len(folders(cache_dir)) == 9


def test_images_masks_and_tables_are_hashed(own_data: Path) -> None:
    table = own_data / "metadata.csv"
    table.write_text("id,patient_id\n")
    cases = [replace(case, tables=(table,)) for case in find_cases(own_data)]
    paths = [*own_data.glob("*/*.png"), table]
    expected = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert hash_files(cases) == expected
    cases[2].mask.unlink()
    with pytest.raises(InputError, match=f"{cases[2].mask}: cannot be read"):
        hash_files(cases)


def test_a_cache_directory_that_cannot_be_written_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"{tmp_path}/file/cache: .*data.cache_dir="):
        open_cache(find_cases(data), SIZE, tmp_path / "file" / "cache")


def test_a_bad_file_leaves_no_cache(own_data: Path, cache_dir: Path) -> None:
    cases = find_cases(own_data)
    path = own_data / "masks" / "p03.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=re.escape(f"{path}: ")):
        open_cache(cases, SIZE, cache_dir)
    assert folders(cache_dir) == []
    path.write_bytes(whole)
    assert_is_direct_reading(open_cache(cases, SIZE, cache_dir), cases)


def test_a_mask_of_another_size_is_refused(own_data: Path, cache_dir: Path) -> None:
    path = own_data / "masks" / "p02.png"
    Image.new("1", (28, 22)).save(path)
    cases = find_cases(own_data)
    for read in (lambda: read_pair(cases[2]), lambda: open_cache(cases, SIZE, cache_dir)):
        with pytest.raises(InputError, match=f"{path}: the mask is 28 x 22 pixels, its image 29"):
            read()


def test_caches_may_be_deleted_at_any_time(data: Path, cache_dir: Path) -> None:
    cases = find_cases(data)
    first = open_cache(cases, SIZE, cache_dir)
    expected = first.images.copy()
    (folder,) = folders(cache_dir)
    (folder / "masks.npy").write_bytes(b"")
    with pytest.raises(InputError, match=f"{folder}: damaged cache .*; delete it"):
        open_cache(cases, SIZE, cache_dir)
    shutil.rmtree(cache_dir)
    assert_is_direct_reading(open_cache(cases, SIZE, cache_dir), cases)
    assert np.array_equal(first.images, expected)  # what is open stays readable


OPEN_WHEN_TOLD = """
import hashlib, logging, sys, time
from seglab.data import cache
from seglab.data.layouts import find_cases

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
real = cache.decode_pair

def slow(case):
    time.sleep(0.3 if case.id == "p00" else 0)
    return real(case)

cache.decode_pair = slow
cases = find_cases(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
opened = cache.open_cache(cases, int(sys.argv[3]), sys.argv[2])
print("content", hashlib.sha256(opened.images.tobytes() + opened.masks.tobytes()).hexdigest())
"""


def test_processes_that_start_at_once_build_once(
    data: Path, cache_dir: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    processes = [start_python(OPEN_WHEN_TOLD, data, cache_dir, SIZE) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        while process.stdout.readline() not in ("ready\n", ""):
            pass
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = "".join(process.communicate(timeout=60)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert said.count("cache built: ") == 1
    cases = find_cases(data)
    cache = open_cache(cases, SIZE, cache_dir)
    assert_is_direct_reading(cache, cases)
    content = hashlib.sha256(cache.images.tobytes() + cache.masks.tobytes()).hexdigest()
    assert re.findall(r"^content (\w+)$", said, re.MULTILINE) == [content] * 2
    assert len(folders(cache_dir)) == 1


HANG_IN_MID_BUILD = """
import sys, time
from pathlib import Path
from seglab.data import cache
from seglab.data.layouts import find_cases

real = cache.decode_pair

def hang(case):
    if case.id == "p03":
        Path(sys.argv[4]).touch()
        time.sleep(600)
    return real(case)

cache.decode_pair = hang
cache.open_cache(find_cases(sys.argv[1]), int(sys.argv[3]), sys.argv[2])
"""


def test_a_killed_process_leaves_nothing_that_is_taken_for_a_cache(
    data: Path,
    cache_dir: Path,
    tmp_path: Path,
    start_python: Callable[..., subprocess.Popen[str]],
) -> None:
    reached = tmp_path / "reached"
    process = start_python(HANG_IN_MID_BUILD, data, cache_dir, SIZE, reached)
    wait_until(reached.exists)
    (partial,) = folders(cache_dir)
    assert partial.name.endswith(".partial")
    process.kill()
    assert process.wait(timeout=10) == -signal.SIGKILL
    assert folders(cache_dir) == [partial]
    assert (partial / "images.npy").exists()

    (partial / "left over").touch()
    cases = find_cases(data)
    assert_is_direct_reading(open_cache(cases, SIZE, cache_dir), cases)
    (folder,) = folders(cache_dir)
    assert {path.name for path in folder.iterdir()} == {
        "checks.json",
        "groups.json",
        "thumbnails.npy",
        "images.npy",
        "masks.npy",
    }
