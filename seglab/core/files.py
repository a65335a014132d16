"""Reads and writes files; a written file is complete or not there."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from seglab.core.errors import InputError

PARTIAL = ".partial"


def expand_user(path: str | Path) -> Path:
    """Returns a path with the home folder for ~; of a user that is not there the name stays.

    Raises an InputError for an empty text, as of a variable that is not set: it is no folder.
    """
    if path == "":
        raise InputError("an empty path; expected a file or folder, '.' for the current one")
    return Path(os.path.expanduser(path))  # noqa: PTH111


def write_atomic(path: str | Path, content: str | bytes | memoryview, flush: bool = True) -> None:
    """Writes a file beside `path`, then renames it: a reader sees the old file or the new one.

    Args:
        path: File to write.
        content: All of it; text is written as UTF-8.
        flush: Wait until it is on the disk, where a power cut cannot undo it.

    Raises:
        OSError: It cannot be written; what was there stays. Its `filename` is `path`.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    try:
        with name_file_in_errors(path):
            with partial.open("wb") as file:
                file.write(data)
                if flush:
                    file.flush()
                    os.fsync(file.fileno())
            partial.replace(path)
            if flush:
                _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def flush_to_disk(path: str | Path) -> None:
    """Waits until a file that was written without `flush` is on the disk."""
    path = Path(path)
    with name_file_in_errors(path), path.open("rb") as file:
        os.fsync(file.fileno())
    _sync_folder(path.parent)


@contextmanager
def create_folder(folder: Path) -> Iterator[Path]:
    """Creates a folder whose content appears completely or not at all; the caller holds a lock.

    Yields:
        The partial folder to fill, which is renamed to `folder` at the end. What a killed process
        left there is removed first.
    """
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rmdir()  # not every system renames a folder over an empty one
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def link_atomic(source: str | Path, target: str | Path) -> None:
    """Makes `target` another name of a file, or a copy where the file system has no links.

    Both are in one folder, and only ever replaced as a whole, as by `write_atomic`.
    """
    source, target = Path(source), Path(target)
    partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(source)
    except OSError:  # such as exFAT
        write_atomic(target, source.read_bytes())
    else:
        partial.replace(target)


@contextmanager
def name_file_in_errors(path: str | Path) -> Iterator[None]:
    """Makes an OSError of the body name a file; a full disk is often noticed without a name."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_partial(folder: str | Path) -> None:
    """Removes partial files of killed processes, at any depth of a folder that nobody writes to."""
    for file in Path(folder).rglob(f".*.[0-9]*{PARTIAL}"):
        file.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Writes plain containers; floats keep their full precision."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # Bytes of a path that are not UTF-8 become JSON's \udc80 to \udcff.
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def read_json(path: str | Path) -> Any:
    """Reads a JSON file; raises an InputError if it is missing or no JSON."""
    return _parse(path, "JSON", json.loads)


def read_lines(path: str | Path) -> list[str]:
    """Reads the lines of a text file; raises an InputError if it is missing or no UTF-8."""
    return _parse(path, "text", lambda text: text.removeprefix("\ufeff").splitlines())


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Reads the rows of a CSV file; raises an InputError if it is missing or no CSV."""
    return _parse(path, "CSV", lambda text: list(csv.DictReader(io.StringIO(text, newline=""))))


def write_csv(path: str | Path, rows: Iterable[Mapping[str, Any]], flush: bool = True) -> None:
    """Writes rows under the union of their columns, in order of appearance, as `write_atomic`."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue(), flush)


@contextmanager
def lock_folder(folder: Path, refusal: str, wait: bool = False) -> Iterator[None]:
    """Makes a folder and locks it for this process; the lock of a killed process is released.

    Args:
        folder: Folder that gets the file .lock.
        refusal: Message of the InputError if another process holds the lock.
        wait: Whether to wait for that process instead.
    """
    lock = FileLock(folder / ".lock", blocking=wait)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(refusal) from None
    except OSError as error:
        raise InputError(
            f"{folder}: the directory cannot be written ({error.strerror}); name another"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / ".lock").unlink()  # while it is held: a waiting process then opens a new one
        lock.release()


def is_utf8(path: str | Path) -> bool:
    """Returns whether a path can be written to JSON: Python marks other bytes by surrogates."""
    return not re.search(r"[\ud800-\udfff]", str(path))


def refuse_non_utf8(key: str, path: object) -> None:
    """Raises an InputError that names the config key if a path cannot be written to JSON."""
    if not is_utf8(str(path)):
        text = os.fsencode(str(path)).decode("utf-8", "backslashreplace")
        raise InputError(f"{key}={text}: a name in it is not UTF-8; rename that folder")


def hash_file(path: str | Path) -> str:
    """Returns the SHA-256 of a file's content."""
    with name_file_in_errors(path), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """Returns the SHA-256 of plain containers, by their JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _parse(path: str | Path, kind: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, OSError, RecursionError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as {kind} ({error}); restore it") from error


def _sync_folder(folder: Path) -> None:
    """Writes a folder's entries to disk, so that a power cut cannot undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
