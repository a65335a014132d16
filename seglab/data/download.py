"""Downloads and unpacks PH2."""

import shutil
import subprocess
import urllib.request
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from seglab.core.commands import format_command
from seglab.core.errors import InputError
from seglab.data.ph2 import find_ph2_images
from seglab.data.scan import list_files

# Behind the page of the ADDI project, University of Porto.
URL = "https://www.dropbox.com/s/k88qukc20ljnbuo/PH2Dataset.rar?dl=1"

# Programs that unpack RAR, with their arguments; the first that is installed is used.
EXTRACTORS = {
    "unar": ["-quiet", "-no-directory", "-output-directory", "{folder}", "{archive}"],
    "unrar": ["x", "-idq", "{archive}", "{folder}/"],
    "bsdtar": ["-xf", "{archive}", "-C", "{folder}"],
    "7zz": ["x", "-bso0", "-bsp0", "-o{folder}", "{archive}"],
    "7z": ["x", "-bso0", "-bsp0", "-o{folder}", "{archive}"],
}


def unpack_ph2(archive: str | Path, out: str | Path) -> None:
    """Unpacks PH2 into a new folder, completely or not at all.

    Args:
        archive: ZIP, or RAR if a program is installed that unpacks it. PH2 may lie in any folder.
        out: The new folder, which then holds the folder of the case folders.

    Raises:
        InputError: `out` exists, the archive cannot be unpacked, or PH2 is not in it.
    """
    archive, out = Path(archive), Path(out)
    if out.exists():
        command = format_command("prepare", out)
        raise InputError(f"{out}: already there; check it with {command}, or delete it")
    if not archive.is_file():
        raise InputError(f"{archive}: no such file; expected PH2Dataset.rar or a folder")
    if is_web_page(archive):
        raise InputError(
            f"{archive}: this is a web page, not an archive; delete it, and fetch PH2Dataset.rar "
            "with a browser"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=".unpacking") as folder:
            unpacked = Path(folder, "unpacked")
            unpacked.mkdir()
            _extract(archive, unpacked)
            images = find_ph2_images(list_files(unpacked))
            if images is None:
                raise InputError(
                    f"{archive}: holds no folder like IMD003/IMD003_Dermoscopic_Image; is it PH2's?"
                )
            (unpacked if images == unpacked else images.parent).rename(out)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); name another --out"
        ) from error


def download(url: str, file: str | Path) -> None:
    """Downloads a file, completely or not at all; raises an InputError if that fails."""
    file = Path(file)
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as reply, partial.open("wb") as target:
            size = int(reply.headers.get("Content-Length") or 0)
            with tqdm.wrapattr(reply, "read", size or None, disable=None) as body:
                shutil.copyfileobj(body, target)
        if size and partial.stat().st_size != size:
            raise OSError(f"{partial.stat().st_size} of {size} bytes came")
        if is_web_page(partial):
            raise OSError("a web page came instead of an archive")
        partial.replace(file)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{url}: cannot be downloaded ({error}); fetch PH2Dataset.rar with a browser and name "
            f"it: {format_command('prepare', 'PH2Dataset.rar')}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def is_web_page(file: Path) -> bool:
    """Returns whether a file holds HTML, such as a login page saved under an archive's name."""
    with file.open("rb") as opened:
        start = opened.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype", b"<html", b"<?xml"))


def _extract(archive: Path, folder: Path) -> None:
    """Unpacks an archive into a folder; a RAR with the first of the programs that is installed."""
    if zipfile.is_zipfile(archive):
        try:
            with zipfile.ZipFile(archive) as zipped:
                # Finder adds a second tree of files that describe the first.
                names = [name for name in zipped.namelist() if not name.startswith("__MACOSX/")]
                zipped.extractall(folder, names)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise InputError(
                f"{archive}: cannot be unpacked ({error}); is the download complete? delete it to "
                "fetch it again"
            ) from error
        return
    name = next(filter(shutil.which, EXTRACTORS), None)
    if name is None:
        raise InputError(
            f"{archive}: none of {', '.join(EXTRACTORS)} is installed; install one, or unpack it "
            "yourself and name the folder"
        )
    arguments = [a.format(archive=archive.absolute(), folder=folder) for a in EXTRACTORS[name]]
    done = subprocess.run([name, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip().splitlines()
        reason = output[-1] if output else f"exit code {done.returncode}"
        raise InputError(
            f"{archive}: {name} cannot unpack it ({reason}); is the download complete? delete it "
            "to fetch it again"
        )
