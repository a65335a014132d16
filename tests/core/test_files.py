"""Files are whole or not there; CSV and JSON give back what went in."""

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seglab.core.errors import InputError
from seglab.core.files import (
    hash_json,
    link_atomic,
    read_csv,
    read_json,
    write_atomic,
    write_csv,
    write_json,
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def test_content_is_what_was_handed_in(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.bin", b"\x00\r\n\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\r\n\xff"
    write_atomic(str(tmp_path / "a.bin"), "naevus: n\u00e6vus\n")
    assert (tmp_path / "a.bin").read_bytes() == b"naevus: n\xc3\xa6vus\n"
    write_atomic(tmp_path / "a.bin", "")
    assert (tmp_path / "a.bin").read_bytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_readers_see_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    # Ends when it has seen both files often, or one that is neither.
    code = (
        "import collections, sys; from pathlib import Path\n"
        "print('ready', flush=True); seen = collections.Counter()\n"
        "while len(seen) < 2 or min(seen.values()) < 10:\n"
        "    data = Path(sys.argv[1]).read_bytes()\n"
        "    assert len(data) == 500_000 and len(set(data)) == 1, (len(data), set(data))\n"
        "    seen[data[:1]] += 1"
    )
    path = tmp_path / "file"
    contents = [letter * 500_000 for letter in (b"a", b"b")]
    write_atomic(path, contents[0])
    command = [sys.executable, "-c", code, str(path)]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    writes, end = 0, time.monotonic() + 120
    while reader.poll() is None and time.monotonic() < end:
        writes += 1
        write_atomic(path, contents[writes % 2])
    reader.kill()
    assert reader.wait() == 0
    assert writes > 1


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"old": 1})
    content: Any = b"new"

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "write":
        content = 3  # no bytes: fails when the file is open
    elif step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, step, fail)
    with pytest.raises((OSError, TypeError)):
        write_atomic(path, content)
    monkeypatch.undo()
    assert read_json(path) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


@settings(deadline=None, max_examples=30)
@given(plain)
def test_json_comes_back_as_it_was(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "value.json"
        write_json(path, value)
        assert read_json(path) == value
        assert json.loads(path.read_bytes()) == value
        assert path.read_bytes().endswith(b"\n")


def test_files_that_are_no_json_are_named(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    with pytest.raises(InputError, match="no such file") as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: ")
    for content in (b"", b'{"a": 1', b"[1, 2,]", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as JSON") as caught:
            read_json(str(path))
        assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_json(tmp_path)


def test_csv_columns_are_the_union_in_order_of_appearance(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    rows = [{"epoch": 1, "b": 2.5}, {"epoch": 2, "a": 'x, "y"\nz', "b": 3}, {"c": None}]
    write_csv(path, iter(rows))
    assert path.read_text().splitlines()[0] == "epoch,b,a,c"
    assert read_csv(path) == [
        {"epoch": "1", "b": "2.5", "a": "", "c": ""},
        {"epoch": "2", "b": "3", "a": 'x, "y"\nz', "c": ""},
        {"epoch": "", "b": "", "a": "", "c": ""},
    ]
    assert b"\r" not in path.read_bytes()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=5))
def test_csv_keeps_floats_to_the_last_bit(values: list[float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "values.csv"
        write_csv(path, [{"id": i, "value": value} for i, value in enumerate(values)])
        back = [float(row["value"]) for row in read_csv(path)]
    assert back == values
    assert [math.copysign(1, x) for x in back] == [math.copysign(1, x) for x in values]


def test_hash_is_that_of_canonical_json() -> None:
    value = {"b": [2, 3.5], "a": {"z": None, "y": "\u00e6"}}
    text = '{"a": {"y": "\\u00e6", "z": null}, "b": [2, 3.5]}'
    assert hash_json(value) == hashlib.sha256(text.encode()).hexdigest()
    # Stored in files, so it may not change with the code.
    assert hash_json([42, {}]) == "4619ff32e3572ed299f500804f573bb47d1ff89541750904f8ef82cde9720997"


@pytest.mark.parametrize("has_links", [True, False])
def test_a_link_keeps_what_the_file_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *args, **kwargs: Path("/does/not").stat())
    best, last = tmp_path / "best", tmp_path / "last"
    write_atomic(best, "first")
    write_atomic(last, "old")
    link_atomic(best, last)
    assert (best.samefile(last), last.read_text()) == (has_links, "first")
    write_atomic(best, "second")
    assert last.read_text() == "first"
    assert {path.name for path in tmp_path.iterdir()} == {"best", "last"}


def test_json_keeps_names_that_are_not_utf8(tmp_path: Path) -> None:
    """In UTF-8, so that any program can read it."""
    name = os.fsdecode(b"l\xe4sion")
    write_json(tmp_path / "a.json", {name: "läsion"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {name: "läsion"}
    assert read_json(tmp_path / "a.json") == {name: "läsion"}
