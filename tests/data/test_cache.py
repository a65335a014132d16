"""The cache: what direct reading gives, built once, never half, made anew when files change."""

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import write_tiny_classes
from PIL import Image

from seglab.core.errors import InputError
from seglab.core.files import hash_file
from seglab.data import cache as cache_module
from seglab.data.cache import Cache, hash_cases, hash_files, open_cache
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
    cases = find_cases(data)
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


def test_rows_follow_the_cases(data: Path, cache_dir: Path) -> None:
    cases = find_cases(data)[::-1]
    assert_is_direct_reading(open_cache(cases, SIZE, cache_dir), cases)
    assert_is_direct_reading(open_cache(cases[1:], SIZE, cache_dir), cases[1:])


def test_equal_pictures_are_grouped(own_data: Path, cache_dir: Path) -> None:
    image = Image.open(own_data / "images" / "p01.png")
    mask = Image.open(own_data / "masks" / "p01.png")
    image.transpose(Image.Transpose.ROTATE_90).save(own_data / "images" / "p04.png")
    mask.transpose(Image.Transpose.ROTATE_90).save(own_data / "masks" / "p04.png")
    cache = open_cache(find_cases(own_data), SIZE, cache_dir)
    assert cache.groups == [0, 1, 2, 3, 1, 5]


def test_a_second_opening_builds_nothing(
    data: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "seglab.data.cache")
    cases = find_cases(data)
    first = open_cache(cases, SIZE, cache_dir)
    (folder,) = folders(cache_dir)
    assert [record.getMessage() for record in caplog.records] == [f"cache built: {folder}"]
    before = times(folder) | {cache_dir / "hashes.json": 0}
    before = {path: path.stat().st_mtime_ns for path in before}
    monkeypatch.setattr(cache_module, "read_pair", lambda case: pytest.fail("read again"))
    monkeypatch.setattr(cache_module, "hash_file", lambda path: pytest.fail("hashed again"))
    second = open_cache(cases, SIZE, cache_dir)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert folders(cache_dir) == [folder]
    assert np.array_equal(second.images, first.images)
    assert (second.groups, second.sha256) == (first.groups, first.sha256)
    assert second.files == first.files
    assert len(caplog.records) == 1


def test_the_same_files_elsewhere_share_a_cache(
    data: Path, own_data: Path, cache_dir: Path
) -> None:
    first = open_cache(find_cases(data), SIZE, cache_dir)
    (folder,) = folders(cache_dir)
    before = times(folder)
    second = open_cache(find_cases(own_data), SIZE, cache_dir)
    assert second.sha256 == first.sha256
    assert folders(cache_dir) == [folder]
    assert times(folder) == before


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_changed_file_gives_another_cache(part: str, own_data: Path, cache_dir: Path) -> None:
    cases = find_cases(own_data)
    first = open_cache(cases, SIZE, cache_dir)
    kept = first.images.copy(), first.masks.copy()
    path = own_data / part / "p03.png"
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    second = open_cache(cases, SIZE, cache_dir)
    assert len(folders(cache_dir)) == 2
    assert second.files != first.files
    assert {id for id in first.sha256 if first.sha256[id] != second.sha256[id]} == {"p03"}
    assert_is_direct_reading(second, cases)
    assert not np.array_equal(getattr(second, part), getattr(first, part))
    assert np.array_equal(first.images, kept[0])
    assert np.array_equal(first.masks, kept[1])


def test_size_diagnosis_and_version_are_part_of_the_key(
    data: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = find_cases(data)
    first = open_cache(cases, SIZE, cache_dir)
    larger = open_cache(cases, SIZE + 5, cache_dir)
    assert_is_direct_reading(larger, cases, SIZE + 5)
    assert larger.files == first.files
    other = [replace(cases[0], diagnosis="melanoma"), *cases[1:]]
    open_cache(other, SIZE, cache_dir)  # what a table says is not in the arrays
    assert len(folders(cache_dir)) == 2
    renamed = [replace(cases[0], id="other"), *cases[1:]]
    open_cache(renamed, SIZE, cache_dir)
    assert len(folders(cache_dir)) == 3
    monkeypatch.setattr(cache_module, "VERSION", cache_module.VERSION + 1)
    open_cache(cases, SIZE, cache_dir)
    assert len(folders(cache_dir)) == 4


def test_known_files_are_not_read_again(
    own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = find_cases(own_data)
    index = tmp_path / "hashes.json"
    before = hash_files(cases, index)
    assert set(before) == {p for case in cases for p in (case.image, case.mask)}
    path = cases[2].mask
    assert before[path] == hashlib.sha256(path.read_bytes()).hexdigest()
    read = []
    monkeypatch.setattr(cache_module, "hash_file", lambda p: read.append(p) or hash_file(p))
    assert hash_files(cases, index) == before
    assert read == []
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    # Size and time of change as they were: the system's own time gives it away.
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = hash_files(cases, index)
    assert read == [path]
    assert {p for p in after if after[p] != before[p]} == {path}
    ids = [hash_cases(cases, files) for files in (before, after)]
    assert {id for id in ids[0] if ids[0][id] != ids[1][id]} == {"p02"}
    assert hash_files(cases) == after
    assert len(read) == 1 + 2 * N  # without an index all is read


def test_tables_are_hashed_too(own_data: Path) -> None:
    table = own_data / "metadata.csv"
    table.write_text("id,patient_id\n")
    cases = [replace(case, tables=(table,)) for case in find_cases(own_data)]
    assert hash_files(cases)[table] == hashlib.sha256(table.read_bytes()).hexdigest()


@pytest.mark.parametrize("content", ["{", "\xff", "[]", '{"file": 5}'])
def test_a_damaged_index_is_made_anew(content: str, data: Path, cache_dir: Path) -> None:
    cases = find_cases(data)
    expected = open_cache(cases, SIZE, cache_dir)
    index = cache_dir / "hashes.json"
    whole = json.loads(index.read_text())
    index.write_text(content, "latin-1")
    cache = open_cache(cases, SIZE, cache_dir)
    assert cache.sha256 == expected.sha256
    assert np.array_equal(cache.images, expected.images)
    assert json.loads(index.read_text()) == whole
    assert len(folders(cache_dir)) == 1


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_bad_file_leaves_no_cache(part: str, own_data: Path, cache_dir: Path) -> None:
    cases = find_cases(own_data)
    path = own_data / part / "p03.png"
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
        with pytest.raises(InputError) as caught:
            read()
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "28 x 22" in message  # width first, as people say it
        assert "29 x 22" in message
        assert "\n" not in message
    assert folders(cache_dir) == []


def test_caches_may_be_deleted_at_any_time(data: Path, cache_dir: Path) -> None:
    cases = find_cases(data)
    first = open_cache(cases, SIZE, cache_dir)
    expected = first.images.copy()
    (folder,) = folders(cache_dir)
    shutil.rmtree(folder)
    assert np.array_equal(open_cache(cases, SIZE, cache_dir).images, expected)
    shutil.rmtree(cache_dir)
    assert_is_direct_reading(open_cache(cases, SIZE, cache_dir), cases)
    assert np.array_equal(first.images, expected)  # what is open stays readable


OPEN_WHEN_TOLD = """
import hashlib, logging, sys, time
from seglab.data import cache
from seglab.data.layouts import find_cases

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
real = cache.read_pair

def slow(case):
    time.sleep(0.3 if case.id == "p00" else 0)
    return real(case)

cache.read_pair = slow
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

real = cache.read_pair

def hang(case):
    if case.id == "p03":
        Path(sys.argv[4]).touch()
        time.sleep(600)
    return real(case)

cache.read_pair = hang
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
    end = time.monotonic() + 60
    while not reached.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
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
    assert sorted(path.name for path in folder.iterdir()) == [
        "groups.json",
        "images.npy",
        "masks.npy",
    ]


def test_caches_of_other_classes_are_others(tmp_path: Path) -> None:
    three = Classes(("skin", "disc", "square"))
    root = write_tiny_classes(tmp_path / "data", n=2)
    cases = find_cases(root)
    cache = open_cache(with_classes(cases, three), 24, tmp_path / "cache")
    assert {*np.unique(cache.masks)} <= {0, 1, 2} and cache.masks.max() == 2
    more = Classes((*three.names, "more"))
    open_cache(with_classes(cases, more), 24, tmp_path / "cache")
    assert len([*(tmp_path / "cache").glob("*-24")]) == 2
