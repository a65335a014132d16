"""prepare_ph2.py: archives and folders, whole and damaged."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.tiny import Ended, write_tiny_ph2

Script = Callable[..., Ended]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A PH2 of ten cases in a folder of its own, as an archive would hold it."""
    return write_tiny_ph2(tmp_path / "source" / "PH2Dataset", 10)


def packed(source: Path, file: Path) -> Path:
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for path in sorted(source.parent.rglob("*")):
                archive.write(path, path.relative_to(source.parent))
    else:
        with tarfile.open(file, "w:gz" if file.name.endswith("gz") else "w") as archive:
            archive.add(source, source.name)
    return file


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["PH2Dataset.zip", "PH2Dataset.tar.gz", "misnamed.rar"])
def test_an_archive_is_unpacked_and_checked(
    name: str, source: Path, script: Script, tmp_path: Path
) -> None:
    out = tmp_path / "data" / "PH2Dataset"
    ended = script("prepare_ph2", packed(source, tmp_path / name), "--out", out)
    assert ended.code == 0, ended.err
    assert tree(out) == tree(source)
    assert [p.name for p in out.parent.iterdir()] == [
        "PH2Dataset"
    ]  # nothing half-unpacked beside it
    assert "10 good cases" in ended.out
    assert "   4 common nevus" in ended.out
    assert "   2 melanoma" in ended.out
    assert f"data.root={out}" in ended.out


def test_a_rar_is_handed_to_whatever_extractor_is_there(
    source: Path, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "PH2Dataset.rar"
    archive.write_bytes(b"Rar!\x1a\x07\x00" + b"x" * 100)
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    out = tmp_path / "out"
    ended = script("prepare_ph2", archive, "--out", out)
    assert ended.code == 1
    assert "none of unar, unrar, bsdtar, 7zz, 7z is installed" in ended.err

    def install(name: str, body: str) -> None:
        program = tools / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    install("unar", "echo damaged archive >&2; exit 2")
    ended = script("prepare_ph2", archive, "--out", out)
    assert ended.code == 1
    assert "unar: damaged archive" in ended.err
    assert not out.exists()
    # 'unrar x -idq ARCHIVE FOLDER/': the next one is tried.
    install("unrar", f'/bin/cp -r "{source}" "$4"')
    ended = script("prepare_ph2", archive, "--out", out)
    assert ended.code == 0, ended.err
    assert tree(out) == tree(source)


def test_it_downloads_where_nothing_is_named(source: Path, script: Script, tmp_path: Path) -> None:
    url = packed(source, tmp_path / "there.zip").as_uri()
    out = tmp_path / "data" / "PH2Dataset"
    assert script("prepare_ph2", "--out", out, "--url", url).code == 0
    assert tree(out) == tree(source)
    # Once more: what is there is checked, nothing is fetched.
    assert script("prepare_ph2", "--out", out, "--url", "http://127.0.0.1:9/none").code == 0


def test_a_failed_download_says_what_to_do(script: Script, tmp_path: Path) -> None:
    ended = script("prepare_ph2", "--out", tmp_path / "out", "--url", "http://127.0.0.1:9/none")
    assert ended.code == 1
    (line,) = ended.err.strip().splitlines()
    assert line.startswith("error: http://127.0.0.1:9/none: cannot be downloaded")
    assert "prepare_ph2.py PH2Dataset.rar" in line
    assert not list(tmp_path.iterdir())


def test_a_folder_is_checked_where_it_is(source: Path, script: Script) -> None:
    before = tree(source)
    images = source / "PH2 Dataset images"
    shutil.rmtree(images / "IMD007")
    (images / "IMD003" / "IMD003_lesion" / "IMD003_lesion.bmp").unlink()
    (images / "IMD005" / "IMD005_Dermoscopic_Image" / "IMD005.bmp").write_bytes(b"BM")
    ended = script("prepare_ph2", source)
    assert ended.code == 1
    assert "7 good cases" in ended.out
    assert "1 listed cases without a folder" in ended.out
    assert "cut short: IMD007\n" in ended.out
    assert "errors: 2\n" in ended.out  # both of them, not the first
    assert "IMD003 has no mask" in ended.out
    assert "IMD005.bmp: cannot be read as an image" in ended.out
    assert before.keys() >= tree(source).keys()


def test_nothing_is_overwritten(source: Path, script: Script, tmp_path: Path) -> None:
    archive = packed(source, tmp_path / "PH2Dataset.zip")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    ended = script("prepare_ph2", archive, "--out", tmp_path / "out")
    assert ended.code == 1
    assert "already there" in ended.err
    assert (tmp_path / "out" / "mine").read_text() == "kept"


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04 cut short"])
def test_what_is_no_archive_is_refused(content: bytes, script: Script, tmp_path: Path) -> None:
    (tmp_path / "PH2Dataset.zip").write_bytes(content)
    ended = script("prepare_ph2", tmp_path / "PH2Dataset.zip", "--out", tmp_path / "out")
    assert ended.code == 1
    assert ended.err.startswith(f"error: {tmp_path / 'PH2Dataset.zip'}: ")
    assert [p.name for p in tmp_path.iterdir()] == ["PH2Dataset.zip"]


def test_an_archive_of_something_else_is_refused(script: Script, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    ended = script("prepare_ph2", tmp_path / "other.zip", "--out", tmp_path / "out")
    assert ended.code == 1
    assert "holds no folder 'PH2 Dataset images'" in ended.err
    assert script("prepare_ph2", tmp_path / "nowhere.rar").code == 1
