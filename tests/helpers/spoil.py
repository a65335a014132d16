"""Damages run directories on purpose."""

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml

from seglab.runs.checkpoints import ChecksummedCheckpointIO

BEST = "checkpoints/best.ckpt"
Change = Callable[[dict[str, Any]], object]


class Payload:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return Path.touch, (Path(self.path),)


def change_config(run: Path, change: Change) -> None:
    file = run / "config.yaml"
    config = yaml.safe_load(file.read_text())
    change(config)
    file.write_text(yaml.safe_dump(config, sort_keys=False))


def change_checkpoint(run: Path, change: Change) -> None:
    content = torch.load(run / BEST, weights_only=True)
    change(content)
    ChecksummedCheckpointIO().save_checkpoint(content, run / BEST)


def change_stored_config(run: Path, file: str, change: Change) -> None:
    """Changes one of the two files that hold a run's config."""
    if file == BEST:
        change_checkpoint(run, lambda content: change(content["seglab"]["config"]))
    else:
        change_config(run, change)


def put_at(key: str, value: Any) -> Change:
    """Returns a change that puts a value at 'a.b.c'; the last key may be new."""
    *path, last = key.split(".")

    def put(config: dict[str, Any]) -> None:
        for section in path:
            config = config[section]
        config[last] = value

    return put


def to_archive(content: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def to_pickle(content: Any) -> bytes:
    return pickle.dumps(content)


def add_checksum(archive: bytes) -> bytes:
    """Adds a hash that is right for the archive, as `ChecksummedCheckpointIO` writes it."""
    body = archive[:-2]
    comment = b"seglab sha256 " + hashlib.sha256(body).hexdigest().encode()
    return body + len(comment).to_bytes(2, "little") + comment


# What `damage` inserts into a file.
PIECES = (b"", b"\0", b"\xff", b"\n", b'"', b",", b"{", b"[" * 2000, b": ", b"9" * 5000, b"NaN")
TOKENS = (b"null", b"[]", b"-1", b"1e999", b"true", b'"x"', b"{}", b"${oc.env:HOME}", b"&a [*a]")


def damage(random: Random, content: bytes) -> bytes:
    """Returns a file's content with one random change."""
    start, length = random.randrange(len(content)), random.choice((0, 1, 4, 100))
    kind = random.choice(("cut", "piece", "token", "flip", "repeat"))
    if kind == "cut":
        return content[:start]
    if kind == "repeat":
        return content[: start + length] + content[start:]
    if kind == "flip":
        changed = bytearray(content)
        changed[start] ^= random.randrange(1, 256)
        return bytes(changed)
    new = random.choice(PIECES if kind == "piece" else TOKENS)
    return content[:start] + new + content[start + length :]
