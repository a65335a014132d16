"""prepare_ph2.py: archives and folders, whole and damaged."""

import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.layouts import image_path, mask_path
from helpers.tiny import Ended, write_tiny_ph2

Script = Callable[..., Ended]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A PH2 of ten cases in a folder of its own, as an archive would hold it."""
    return write_tiny_ph2(tmp_path / "source" / "PH2Dataset", 10)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "PH2Dataset.rar"
    path.write_bytes(b"Rar!\x1a\x07\x00" + b"x" * 100)
    return path


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Installs programs as shell scripts; no others can be found."""
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))

    def install(name: str, body: str) -> None:
        program = tools / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return install


def copy_to(argument: int, source: Path) -> str:
    """Body of a program that unpacks `source` into the folder that is its n-th argument."""
    return f'/bin/cp -r "{source}" "${argument}"'


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_an_archive_is_unpacked_and_checked(
    source: Path,
    archive: Path,
    install: Callable[[str, str], None],
    script: Script,
    tmp_path: Path,
) -> None:
    install("unrar", copy_to(4, source))
    out = tmp_path / "data" / "PH2Dataset"
    ended = script("prepare_ph2", archive, "--out", out)
    assert ended.code == 0, ended.err
    assert tree(out) == tree(source)
    assert [*out.parent.iterdir()] == [out]  # nothing half-unpacked beside it
    for words in ("10 good cases", "   4 common nevus", "   2 melanoma", f"data.root={out}"):
        assert words in ended.out


def test_what_cannot_be_unpacked_is_refused(
    archive: Path, install: Callable[[str, str], None], script: Script, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def refused(words: str, archive: Path = archive) -> None:
        ended = script("prepare_ph2", archive, "--out", out)
        assert ended.code == 1
        assert ended.err.startswith(f"error: {archive}: ") and words in ended.err
        assert not out.exists() and not [*tmp_path.glob(".*")]

    refused("no such file", tmp_path / "nowhere.rar")
    refused("none of unar, unrar, bsdtar, 7zz, 7z is installed")
    install("unar", "echo damaged archive >&2; exit 2")
    refused("unar cannot unpack it (damaged archive)")
    install("unar", f'echo nothing > "{tmp_path}/readme.txt"')
    refused("holds no folder like IMD003/IMD003_Dermoscopic_Image")


def write_zip(path: Path, source: Path, prefix: str) -> Path:
    """A ZIP of `source` below a folder of the archive, as macOS' Finder writes it."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(source.rglob("*.*")):
            inside = Path(prefix, file.relative_to(source))
            archive.writestr(f"__MACOSX/{inside.parent}/._{inside.name}", b"\0" * 120)
            archive.write(file, inside.as_posix())
    return path


@pytest.mark.parametrize("prefix", ["PH2Dataset/", "", "download/PH2 (1)/"])
def test_a_zip_needs_no_program(
    prefix: str, source: Path, install: Callable[..., None], script: Script, tmp_path: Path
) -> None:
    archive = write_zip(tmp_path / "PH2.zip", source, prefix)
    out = tmp_path / "out"
    ended = script("prepare_ph2", archive, "--out", out)
    assert ended.code == 0, ended.err
    assert tree(out) == tree(source)
    assert "10 good cases" in ended.out


@pytest.mark.parametrize("name", ["PH2_Dataset_images", "cases"])
def test_an_archive_of_other_folders(
    name: str, source: Path, install: Callable[..., None], script: Script, tmp_path: Path
) -> None:
    (source / "PH2 Dataset images").rename(source / name)
    for i, prefix in enumerate(("", name)):
        archive = write_zip(tmp_path / "PH2.rar", source / name, prefix)
        ended = script("prepare_ph2", archive, "--out", tmp_path / f"out{i}")
        assert ended.code == 0, ended.err
        assert "10 good cases" in ended.out


def test_a_cut_zip_is_refused_and_none_leaves_its_folder(
    source: Path, script: Script, tmp_path: Path
) -> None:
    archive = write_zip(tmp_path / "PH2.zip", source, "../PH2")
    assert script("prepare_ph2", archive, "--out", tmp_path / "a" / "out").code == 0
    assert [*(tmp_path / "a").iterdir()] == [tmp_path / "a" / "out"]
    content = bytearray(archive.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 500] = bytes(500)
    archive.write_bytes(content)
    ended = script("prepare_ph2", archive, "--out", tmp_path / "out")
    assert ended.code == 1 and ended.err.count("\n") == 1
    assert f"{archive}: cannot be unpacked" in ended.err
    assert not (tmp_path / "out").exists()


PAGES = [
    b"<!DOCTYPE html><html><body>Sign in to continue</body></html>",
    b"\xef\xbb\xbf\r\n <HTML lang='pt'>",
]


@pytest.mark.parametrize("page", PAGES)
def test_a_web_page_is_no_archive(
    page: bytes, source: Path, script: Script, tmp_path: Path
) -> None:
    out, kept = tmp_path / "data" / "PH2Dataset", tmp_path / "data" / "PH2Dataset.rar"
    login = tmp_path / "login.rar"
    login.write_bytes(page)
    ended = script("prepare_ph2", login, "--out", out)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert f"{login}: this is a web page, not an archive" in ended.err and login.exists()
    ended = script("prepare_ph2", "--out", out, "--url", login.as_uri())
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "a web page came instead of an archive" in ended.err
    assert not kept.exists()
    # One that was kept is fetched again.
    shutil.copy(login, kept)
    archive = write_zip(tmp_path / "PH2.zip", source, "PH2Dataset")
    assert script("prepare_ph2", "--out", out, "--url", archive.as_uri()).code == 0
    assert kept.read_bytes() == archive.read_bytes()


def test_it_downloads_where_nothing_is_named(
    source: Path,
    archive: Path,
    install: Callable[[str, str], None],
    script: Script,
    tmp_path: Path,
) -> None:
    install("bsdtar", copy_to(4, source))
    out = tmp_path / "data" / "PH2Dataset"
    assert script("prepare_ph2", "--out", out, "--url", archive.as_uri()).code == 0
    assert tree(out) == tree(source)
    assert out.with_name("PH2Dataset.rar").read_bytes() == archive.read_bytes()
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
    shutil.rmtree(source / "PH2 Dataset images" / "IMD007")
    mask_path(source, "IMD003").unlink()
    image_path(source, "IMD005").write_bytes(b"BM")
    ended = script("prepare_ph2", source)
    assert ended.code == 1
    assert "7 good cases" in ended.out
    assert "errors: 2\n" in ended.out and "warnings: 1\n" in ended.out
    assert before.keys() >= tree(source).keys()


def test_nothing_is_overwritten(archive: Path, script: Script, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    ended = script("prepare_ph2", archive, "--out", tmp_path / "out")
    assert ended.code == 1
    assert "already there" in ended.err
    assert (tmp_path / "out" / "mine").read_text() == "kept"
