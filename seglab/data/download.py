"""Downloads and unpacks PH2."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import urllib.request
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from seglab.core.errors import InputError

# Behind the page of the ADDI project, University of Porto.
URL = "https://www.dropbox.com/s/k88qukc20ljnbuo/PH2Dataset.rar?dl=1"

# Python unpacks zip and tar, and RAR needs one of these: arguments by program.
EXTRACTORS = {
    "unar": ["-quiet", "-no-directory", "-output-directory", "{folder}", "{archive}"],
    "unrar": ["x", "-idq", "{archive}", "{folder}/"],
    "bsdtar": ["-xf", "{archive}", "-C", "{folder}"],
    "7zz": ["x", "-bso0", "-bsp0", "-o{folder}", "{archive}"],
    "7z": ["x", "-bso0", "-bsp0", "-o{folder}", "{archive}"],
}


def unpack_ph2(archive: str | Path, out: str | Path) -> None:
    """Unpacks PH2 into a folder, completely or not at all.

    Args:
        archive: RAR, zip or tar.
        out: Folder to create; it will hold 'PH2 Dataset images'.

    Raises:
        InputError: `out` exists, no program can unpack the archive, or PH2 is not in it.
    """
    archive, out = Path(archive), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already there; check it with prepare_ph2.py {out}, or delete it")
    if not archive.is_file():
        raise InputError(f"{archive}: no such file; expected PH2Dataset.rar or a folder")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _extract(archive, partial)
        images = next(partial.rglob("PH2 Dataset images"), None)
        if images is None:
            raise InputError(f"{archive}: holds no folder 'PH2 Dataset images'; is it PH2's?")
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            out.rmdir()
        images.parent.rename(out)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
        raise InputError(
            f"{archive}: cannot be unpacked ({error}); is the download complete?"
        ) from error
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); name another --out"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def download(url: str, file: str | Path) -> None:
    """Downloads a file, completely or not at all, with a progress bar.

    Args:
        url: Address of the file.
        file: Path to write it to.

    Raises:
        InputError: The download failed.
    """
    file = Path(file)
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as reply, partial.open("wb") as target:
            size = int(reply.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, unit="B", unit_scale=True, disable=None) as bar:
                while block := reply.read(1 << 20):
                    target.write(block)
                    bar.update(len(block))
        if size and partial.stat().st_size != size:
            raise OSError(f"{partial.stat().st_size} of {size} bytes came")
        partial.replace(file)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{url}: cannot be downloaded ({error}); fetch PH2Dataset.rar with a browser and name "
            "it: python scripts/prepare_ph2.py PH2Dataset.rar"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _extract(archive: Path, folder: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zip_file:
            return zip_file.extractall(folder)
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar_file:
            return tar_file.extractall(folder, filter="data")
    failures = []
    for name, arguments in EXTRACTORS.items():
        program = shutil.which(name)
        if program is None:
            continue
        filled = [a.format(archive=archive.absolute(), folder=folder) for a in arguments]
        done = subprocess.run([program, *filled], capture_output=True, text=True)
        if done.returncode == 0 and any(folder.iterdir()):
            return
        output = (done.stderr or done.stdout).strip().splitlines()
        failures.append(f"{name}: {output[-1] if output else f'exit code {done.returncode}'}")
    if failures:
        raise InputError(
            f"{archive}: cannot be unpacked ({'; '.join(failures)}); is the download complete?"
        )
    raise InputError(
        f"{archive}: Python cannot unpack it, and none of {', '.join(EXTRACTORS)} is installed; "
        "install one, or unpack it yourself and name the folder"
    )
