"""A damaged file of any kind is read, or refused by its name; nothing else ever happens.

Mutants of real files are made by a seeded generator, and read in a process of their own: a crash,
a hang or a full memory is then the failure of one mutant. A failure is told with kind and number
of its mutant and what was done to which seed, and

    python tests/test_fuzz.py KIND NUMBER FOLDER

makes and reads it again, from the seeds that the test has left in FOLDER.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import queue
import re
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time
import traceback
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from helpers.tiny import Ended
from PIL import Image

from seglab.core.errors import InputError

SECONDS = 10  # for one mutant, by a clock on the wall
MEMORY = 1000  # MB that reading one mutant may add
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures memory by /proc")
# What may be asked for at all: more ends in a MemoryError, not in a dead machine.
ROOM = 6 * 2**30
EXTREMES = (0, 1, 2, 127, 255, 256, 2**15, 2**16 - 1, 100_000, 2**31 - 1, 2**31, 2**32 - 1)

Change = Callable[[Random, bytes], tuple[bytes, str]]


# What is done to bytes.


def at(r: Random, content: bytes) -> int:
    """A position; every third one is in the first bytes, where headers are."""
    return r.randrange(max(1, min(len(content), 96) if r.random() < 0.3 else len(content)))


def flip(r: Random, content: bytes) -> tuple[bytes, str]:
    out, where = bytearray(content), [at(r, content) for _ in range(r.choice((1, 1, 2, 8, 64)))]
    for position in where if content else ():
        out[position] ^= r.randrange(1, 256)
    return bytes(out), f"flip {where[:8]}"


def cut(r: Random, content: bytes) -> tuple[bytes, str]:
    end = at(r, content)
    return content[:end], f"cut at {end}"


def insert(r: Random, content: bytes) -> tuple[bytes, str]:
    start, n = at(r, content), r.choice((1, 2, 4, 100, 5000))
    new = r.choice((bytes(n), b"\xff" * n, r.randbytes(n)))
    return content[:start] + new + content[start:], f"insert {n} at {start}"


def remove(r: Random, content: bytes) -> tuple[bytes, str]:
    start, n = at(r, content), r.choice((1, 2, 4, 100, 1000))
    return content[:start] + content[start + n :], f"remove {n} at {start}"


def repeat(r: Random, content: bytes) -> tuple[bytes, str]:
    start, n, times = at(r, content), r.choice((1, 4, 100, 1000)), r.choice((1, 2, 50))
    block = content[start : start + n]
    return content[:start] + block * times + content[start:], f"repeat {n} at {start}, {times}"


def swap(r: Random, content: bytes) -> tuple[bytes, str]:
    n = r.choice((1, 4, 64, 512))
    a, b = sorted((at(r, content), at(r, content)))
    b = max(b, a + n)
    parts = (content[:a], content[b : b + n], content[a + n : b], content[a : a + n])
    return b"".join((*parts, content[b + n :])), f"swap {n} at {a} and {b}"


def blank(r: Random, content: bytes) -> tuple[bytes, str]:
    start, n = at(r, content), r.choice((1, 4, 16, 256))
    new = r.choice((b"\0", b"\xff", b" ")) * len(content[start : start + n])
    return content[:start] + new + content[start + n :], f"blank {n} at {start}"


def extreme(r: Random, content: bytes) -> tuple[bytes, str]:
    return put(r, content, at(r, content), r.choice(("<H", "<I", ">H", ">I", "<Q", ">Q")))


def put(r: Random, content: bytes, position: int, form: str) -> tuple[bytes, str]:
    """Writes an extreme number of a struct's form."""
    size = struct.calcsize(form)
    value = r.choice(EXTREMES) % 2 ** (8 * size)
    new = struct.pack(form, value)
    return content[:position] + new + content[position + size :], f"{form}{value} at {position}"


BYTES: tuple[Change, ...] = (flip, cut, insert, remove, repeat, swap, blank, extreme)


def any_bytes(r: Random, content: bytes) -> tuple[bytes, str]:
    return r.choice(BYTES)(r, content)


# What is done to pictures, where the format is known.


def bmp_field(r: Random, content: bytes) -> tuple[bytes, str]:
    fields = {2: "<I", 10: "<I", 14: "<I", 18: "<I", 22: "<I", 26: "<H", 28: "<H", 30: "<I"}
    position = r.choice((*fields, 34, 46))
    return put(r, content, position, fields.get(position, "<I"))


def png_chunk(r: Random, content: bytes) -> tuple[bytes, str]:
    """Changes that the checksums do not give away."""
    chunks, start = [], 8
    while start + 12 <= len(content):
        n = int.from_bytes(content[start : start + 4], "big")
        chunks.append((content[start + 4 : start + 8], content[start + 8 : start + 8 + n]))
        start += 12 + n
    if not chunks:
        return content, "nothing"
    i = r.randrange(len(chunks))
    name, body = chunks[i]
    what = r.choice(("size", "size", "body", "pixels", "drop", "double", "swap", "new", "length"))
    if what == "size":
        chunks[0] = (b"IHDR", put(r, chunks[0][1], *r.choice(((0, ">I"), (4, ">I"))))[0])
        if r.random() < 0.3:  # depth, colour, compression, filter, interlacing
            head = bytearray(chunks[0][1])
            head[r.randrange(8, 13)] = r.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            chunks[0] = (b"IHDR", bytes(head))
    elif what == "body":
        chunks[i] = (name, any_bytes(r, body)[0])
    elif what == "pixels":
        data = b"".join(body for name, body in chunks if name == b"IDAT")
        rest = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
        data = zlib.compress(any_bytes(r, zlib.decompress(data))[0])
        chunks = [*rest[:-1], (b"IDAT", data), *rest[-1:]]
    elif what == "drop":
        del chunks[i]
    elif what == "double":
        chunks.insert(r.randrange(len(chunks)), chunks[i])
    elif what == "swap":
        j = r.randrange(len(chunks))
        chunks[i], chunks[j] = chunks[j], chunks[i]
    elif what == "new":
        names = b"tRNS PLTE iCCP zTXt iTXt tEXt gAMA eXIf acTL fcTL fdAT cHRM sBIT IEND".split()
        bomb = b"k\0\0" + zlib.compress(bytes(10**7))
        chunks.insert(
            r.randrange(len(chunks)), (r.choice(names), r.choice((bomb, r.randbytes(99))))
        )
    out = content[:8]
    for j, (name, body) in enumerate(chunks):
        length = r.choice(EXTREMES) if what == "length" and i == j else len(body)
        out += struct.pack(">I", length) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return out, f"chunk {i}: {what}"


def jpeg_segment(r: Random, content: bytes) -> tuple[bytes, str]:
    segments, start = [], 2
    while content[start : start + 1] == b"\xff" and content[start + 1 : start + 2] != b"\xda":
        n = int.from_bytes(content[start + 2 : start + 4], "big") + 2
        segments.append(content[start : start + n])
        start += n
    if not segments:
        return content, "nothing"
    rest, i = content[start:], r.randrange(len(segments))
    what = r.choice(("size", "body", "drop", "double", "swap", "length", "scan"))
    if what == "size":
        frames = [j for j, s in enumerate(segments) if s[1] in (0xC0, 0xC1, 0xC2)]
        i = r.choice(frames or [i])
        segments[i] = put(r, segments[i], *r.choice(((5, ">H"), (7, ">H"), (9, "<B"), (11, "<B"))))[
            0
        ]
    elif what == "body":
        segments[i] = segments[i][:4] + any_bytes(r, segments[i][4:])[0]
    elif what == "drop":
        del segments[i]
    elif what == "double":
        segments.insert(i, segments[i] * r.choice((1, 30)))
    elif what == "swap":
        j = r.randrange(len(segments))
        segments[i], segments[j] = segments[j], segments[i]
    elif what == "length":
        segments[i] = put(r, segments[i], 2, ">H")[0]
    else:
        rest = any_bytes(r, rest)[0]
    return content[:2] + b"".join(segments) + rest, f"segment {i}: {what}"


def tiff_tag(r: Random, content: bytes) -> tuple[bytes, str]:
    """Type, count or value of a tag of the first directory; Pillow writes them little-endian."""
    start = int.from_bytes(content[4:8], "little")
    n = int.from_bytes(content[start : start + 2], "little")
    if not 0 < n < 99:
        return content, "nothing"
    part, form = r.choice(((0, "<H"), (2, "<H"), (4, "<I"), (8, "<I"), (8, "<I")))
    return put(r, content, start + 2 + 12 * r.randrange(n) + part, form)


# What is done to text and to what is written as text.

TEXT_BITS = (
    *("|", "||", "\0", "\r", "\n", "\x85", "\x1c", '"', "'", ",", ";", "{", "[", "]", "}", ": "),
    *("\ufeff", "9" * 5000, "0x" + "f" * 5000, "1e999", "-", "NaN", "~", "*a", "&a [*a]", "!!set "),
    *("!!python/object/apply:os.abort []", "!!binary AAAA", "<<: ", "${oc.env:HOME}", "???", "#"),
    *(
        "[" * 5000,
        "{a: " * 500,
        "- " * 300,
        "\t",
        " " * 70,
        "../" * 9,
        "%YAML 9.9\n---\n",
        "\n...\n",
    ),
)


def text(r: Random, content: bytes) -> tuple[bytes, str]:
    what = r.choice(("bit", "line", "lines", "lines", "drop", "huge", "encoding", "bytes"))
    lines = content.splitlines(keepends=True) or [b""]
    i, j = r.randrange(len(lines)), r.randrange(len(lines))
    if what == "bit":
        bit, start = r.choice(TEXT_BITS), r.randrange(len(content) + 1)
        return content[:start] + bit.encode() + content[start:], f"insert {bit[:20]!r} at {start}"
    if what == "line":
        cells = re.split(rb"(\|+|,|:)", lines[i])
        k = r.randrange(len(cells))
        cells[k] = r.choice((b"", cells[k] * 2, r.choice(TEXT_BITS).encode()))
        lines[i] = b"".join(cells)
    elif what == "lines":
        lines[i], lines[j] = r.choice(((lines[j], lines[i]), (lines[i], lines[i]), (b"", lines[j])))
    elif what == "drop":
        del lines[i:j]
    elif what == "huge":
        lines[i] = lines[i].rstrip(b"\r\n") * r.choice((100, 10_000)) + b"\n"
        lines[i] = lines[i][-(2**20) :]
    elif what == "encoding":
        codec = r.choice(("utf-16", "utf-16-le", "utf-32", "utf-7", "cp500"))
        return content.decode("latin-1").encode(codec), codec
    else:
        return any_bytes(r, content)
    return b"".join(lines), f"{what} {i}, {j}"


def nested(n: int) -> list:
    out: list = []
    for _ in range(n):
        out = [out]
    return out


# In place of any value of a tree.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 33, 2**15, 2**31, 2**63, 2**64, -(2**70), 0.5, -0.5, 1e308),
    *(math.inf, -math.inf, math.nan, "", "x", "0", "0.5", "\0", "\ud800", "\n", "a" * 10**5),
    *("../../etc", "/dev/zero", "/nowhere", "~", "$HOME/x", "file:///tmp", "${oc.env:HOME}", "???"),
    *([], {}, [[]], [None], [1, "a"], {"": None}, {"a": {}}, nested(40), [0] * 2000),
    *({"_target_": "os.system", "_args_": ["true"]}, {"_target_": "seglab.networks.UNet"}, "cuda"),
)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a tree with every key or index in it."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from places(tree[key])


def change_tree(r: Random, tree: Any, values: tuple[Any, ...] = VALUES) -> str:
    """Replaces, moves, renames or removes a value, in place."""
    found = list(places(tree))
    (node, key), (other, other_key) = r.choice(found), r.choice(found)
    what = r.choice(("value", "value", "value", "other", "drop", "key"))
    if what == "value":
        value = r.choice(values)
        node[key] = value
        return f"{key} = {str(value)[:30]!r}"
    if what == "other":
        node[key] = json.loads(json.dumps(other[other_key], default=str))
    elif what == "drop":
        del node[key]
    elif isinstance(node, dict):
        node[r.choice(("x", "", "_target_", "_args_", "_partial_", 5))] = node.pop(key)
    return f"{what} {key}, {other_key}"


def json_tree(r: Random, content: bytes) -> tuple[bytes, str]:
    tree = json.loads(content)
    did = change_tree(r, tree)
    return json.dumps(tree).encode(), did


def yaml_tree(r: Random, content: bytes) -> tuple[bytes, str]:
    tree = yaml.safe_load(content)
    did = change_tree(r, tree)
    return yaml.safe_dump(tree, sort_keys=False).encode("utf-8", "surrogatepass"), did


def csv_tree(r: Random, content: bytes) -> tuple[bytes, str]:
    rows: list = list(csv.reader(io.StringIO(content.decode())))
    did = change_tree(r, rows, ("", "x", "nan", "1e999", "\0", '"', "a,b", "a\nb", "9" * 200_000))
    out = io.StringIO()
    csv.writer(out).writerows(row if isinstance(row, list) else [row] for row in rows)
    return out.getvalue().encode(), did


# What is done to zip archives: workbooks and checkpoints.


def packed(entries: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out.getvalue()


def unpacked(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


NUMBERS = (
    "0",
    "-1",
    "1048576",
    "2147483648",
    "99999999999999999999",
    "",
    "x",
    "1e9",
    "A1:XFD1048576",
)
LAUGHS = (
    '<!DOCTYPE x [<!ENTITY a "'
    + "ha" * 50
    + '">'
    + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]>"
)


def xml(r: Random, content: bytes) -> tuple[bytes, str]:
    what = r.choice(("number", "number", "tag", "tag", "entity", "bytes"))
    pattern = {"number": rb'(?<=")[A-Z]*\d[^"<]*(?=")|(?<=<v>)[^<]*', "tag": rb"<[^>]*>"}.get(what)
    if pattern is None:
        if what == "bytes":
            return any_bytes(r, content)
        body = content.partition(b"?>")[2] or content
        return LAUGHS.encode() + body.replace(b">", b">&i;", 2), "entities"
    found = list(re.finditer(pattern, content))
    if not found:
        return content, "nothing"
    match = r.choice(found)
    other = r.choice(found)[0] if what == "tag" else b""
    new = r.choice((b"", match[0] * 2, other)) if what == "tag" else r.choice(NUMBERS).encode()
    done = f"{what} {match[0][:30]!r} to {new[:30]!r}"
    return content[: match.start()] + new + content[match.end() :], done


def xlsx_entry(r: Random, content: bytes) -> tuple[bytes, str]:
    entries = unpacked(content)
    name = r.choice([n for n in entries if "sheet" in n or "shared" in n.lower()] or [*entries])
    name = r.choice((name, name, r.choice([*entries])))
    what = r.choice(("xml", "xml", "xml", "xml", "drop", "rename"))
    did = ""
    if what == "xml":
        entries[name], did = xml(r, entries[name])
    elif what == "drop":
        del entries[name]
    else:
        entries[r.choice(("x", "../" + name, name.upper()))] = entries.pop(name)
    return packed(entries, zipfile.ZIP_DEFLATED), f"{name}: {what} {did}"


def sealed(archive: bytes) -> bytes:
    """An archive with the seal that makes read_checkpoint believe it whole."""
    from seglab.runs.checkpoints import _SEAL

    body = archive[:-2]
    seal = _SEAL + hashlib.sha256(body).hexdigest().encode()
    return body + len(seal).to_bytes(2, "little") + seal


def unsealed(content: bytes) -> bytes:
    from seglab.runs.checkpoints import _SEAL_LENGTH

    return content[: -_SEAL_LENGTH - 2] + b"\0\0"


def seal_again(change: Change) -> Change:
    def changed(r: Random, content: bytes) -> tuple[bytes, str]:
        new, did = change(r, unsealed(content))
        return sealed(new), did

    return changed


def ckpt_pickle(r: Random, content: bytes) -> tuple[bytes, str]:
    """Damages the pickle or another entry, in an archive that stays one."""
    entries = unpacked(content)
    pickles = [name for name in entries if name.endswith("data.pkl")]
    name = r.choice((*pickles * 4, r.choice([*entries])))
    changes = (flip, flip, flip, *BYTES)
    entries[name], did = r.choice(changes)(r, entries[name])
    return packed(entries), f"{name}: {did}"


def ckpt_tree(r: Random, content: bytes) -> tuple[bytes, str]:
    """Changes a value, and writes the whole as torch does."""
    import torch

    tree = torch.load(io.BytesIO(content), weights_only=True)
    one = torch.ones(1)
    tensors = (
        *(one * math.nan, one * 1e38, torch.zeros(0), one.expand(10**9), one.long(), one.half()),
        *(torch.ones(3, 3).to_sparse(), torch.empty(5, device="meta"), one.to(torch.complex64)),
        *(torch.tensor(0.5), torch.tensor(True), torch.rand(3, 4).T),
    )
    if r.random() < 0.4:  # a weight, rather than one of the many numbers of an optimizer
        weights = tree["state_dict"]
        name = r.choice([*weights])
        scale = r.choice((math.nan, math.inf, 1e38, -1e38, 1e-40, -1, 0, 1e10))
        new = r.choice((*tensors, *VALUES, *[weights[name] * scale] * 20))
        weights[name] = new
        did = f"weight {name} = {str(new)[:40]!r}"
    elif r.random() < 0.7:
        did = change_tree(r, tree["seglab"], VALUES + tensors)
    else:
        did = change_tree(r, tree, VALUES + tensors)
    out = io.BytesIO()
    torch.save(tree, out)
    return out.getvalue(), did


# What reads a mutant: each returns, or raises InputError.


def read_picture(folder: Path, content: bytes) -> None:
    from seglab.data.images import read_image, read_mask

    path = folder / "mutant.bmp"
    path.write_bytes(content)
    image, mask = attempt(read_image, path), attempt(read_mask, path)
    if isinstance(image, np.ndarray):
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, image.shape
        assert image.size
    if isinstance(mask, np.ndarray):
        assert mask.dtype == np.uint8 and mask.ndim == 2 and mask.size, mask.shape
    errors = [found for found in (image, mask) if isinstance(found, InputError)]
    assert all(str(error).startswith(f"{path}: ") for error in errors), errors
    if len(errors) == 2:  # a photograph is no mask, and a mask of floats no image
        raise errors[0]


def attempt(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
    except InputError as error:
        return error


def read_table(name: str) -> Callable[[Path, bytes], None]:
    def read(folder: Path, content: bytes) -> None:
        from seglab.data.cases import UNKNOWN, Case
        from seglab.data.layouts import ph2_cases
        from seglab.data.tables import PH2_DIAGNOSES

        root = folder / f"with {name}"
        if not root.exists():
            shutil.copytree(folder / "seeds" / "data", root)
            if name.startswith("PH2"):
                (root / "PH2_dataset.txt").unlink()
        (root / name).write_bytes(content)
        cases = ph2_cases(root)
        assert cases and all(isinstance(case, Case) for case in cases)
        assert {case.diagnosis for case in cases} <= {*PH2_DIAGNOSES.values(), UNKNOWN}
        assert [case.id for case in cases] == sorted(case.id for case in cases)
        assert all(isinstance(case.patient, str) for case in cases)

    return read


def read_run(name: str) -> Callable[[Path, bytes], None]:
    def read(folder: Path, content: bytes) -> None:
        run = copy_of_run(folder)
        path = run / name
        whole = path.read_bytes()
        path.write_bytes(content)
        try:
            evaluated(run, None)
        finally:
            path.write_bytes(whole)

    return read


def evaluated(run: Path, data_root: Path | None) -> None:
    import seglab.inference.evaluate

    summary = seglab.inference.evaluate.evaluate(run, data_root, out=run.parent / "out")
    assert summary["n"] >= 1 and summary["trained_on"] >= 0
    pixels = summary["test"].pop("hd95")
    assert 0 <= pixels < np.inf
    assert all(0 <= value <= 1 for value in summary["test"].values()), summary["test"]


def read_split_file(folder: Path, content: bytes) -> None:
    """With a checkpoint that names the hash of this split: else it would be refused for that."""
    import torch

    from seglab.data.splits import read_split
    from seglab.runs.checkpoints import SealedCheckpoints

    run = copy_of_run(folder)
    split_file, best = run / "splits.json", run / "checkpoints" / "best.ckpt"
    whole = split_file.read_bytes(), best.read_bytes()
    split_file.write_bytes(content)
    try:
        checkpoint = torch.load(best, weights_only=True)
        checkpoint["seglab"]["split_hash"] = read_split(split_file).hash
        SealedCheckpoints().save_checkpoint(checkpoint, best)
        evaluated(run, folder / "seeds" / "data")
        evaluated(run, None)
    finally:
        split_file.write_bytes(whole[0])
        best.write_bytes(whole[1])


def read_checkpoint_file(folder: Path, content: bytes) -> None:
    import torch

    from seglab.runs.checkpoints import hash_weights, load_network

    path = folder / "mutant.ckpt"
    path.write_bytes(content)
    digest = attempt(hash_weights, path)
    assert isinstance(digest, InputError) or re.fullmatch("[0-9a-f]{64}", digest)
    net, metadata = load_network(path)
    assert isinstance(digest, str)
    assert isinstance(net, torch.nn.Module) and not net.training
    assert 0 < metadata["threshold"] < 1 and metadata["epoch"] >= 1
    assert isinstance(metadata["split_hash"], str) and metadata["classes"].names == ("lesion",)
    assert all(p.isfinite().all() for p in net.parameters())
    read_run("checkpoints/best.ckpt")(folder, content)


def copy_of_run(folder: Path) -> Path:
    run = folder / "run"
    if not run.exists():
        shutil.copytree(folder / "seeds" / "run", run)
    return run


def checked_open_run(path: str | Path, trust: tuple[str, ...] = ()) -> Any:
    from omegaconf import DictConfig
    from torch import nn

    from seglab.data.splits import Split
    from seglab.runs.opening import open_run

    run = open_run(path, trust)
    assert isinstance(run.net, nn.Module) and not run.net.training
    assert isinstance(run.config, DictConfig) and isinstance(run.record, dict)
    assert isinstance(run.split, Split) and 0 < run.threshold < 1
    for ids in (run.split.train, run.split.val, run.split.test):
        assert all(isinstance(id, str) for id in ids)
    return run


def read_record(name: str) -> Callable[[Path, bytes], None]:
    """For the files of a run that only its repetition reads."""

    def read(folder: Path, content: bytes) -> None:
        import seglab.training.reproduce
        from seglab.core.files import read_csv, read_json

        run, out = copy_of_run(folder), folder / "repeated"
        if not out.exists():
            shutil.copytree(folder / "seeds" / "run", out)
        path = run / name
        whole = path.read_bytes()
        path.write_bytes(content)
        try:
            found = read_csv(path) if path.suffix == ".csv" else read_json(path)
            assert path.suffix == ".json" or isinstance(found, list)
            assert seglab.training.reproduce.reproduce(run, check=True) in (0, 3, 4)
            assert seglab.training.reproduce.reproduce(run, out=out) in (0, 3, 4)
        finally:
            path.write_bytes(whole)

    return read


def prepare(replace: Callable[[Any, str, Any], None]) -> None:
    """Puts what is beside the point, or looks on, in place of what reads."""
    import seglab.inference.evaluate
    import seglab.runs.provenance
    import seglab.training.reproduce

    state = seglab.runs.provenance.read_code_state()  # git takes a tenth of a second
    replace(seglab.runs.provenance, "read_code_state", lambda: state)
    replace(seglab.training.reproduce, "train", lambda config: None)
    replace(seglab.inference.evaluate, "open_run", checked_open_run)


@dataclass(frozen=True)
class Kind:
    """How mutants are made and read.

    Attributes:
        seeds: Which files below `seeds`.
        changes: Of which each mutant gets one to three; without any, the seeds are read as they
            are.
        read: Called with a folder to work in and the mutant.
        share: Of all mutants.
    """

    seeds: str
    changes: tuple[Change, ...]
    read: Callable[[Path, bytes], None]
    share: float = 1


TEXTS = (text, text, any_bytes)
KINDS = {
    "bmp": Kind("images/*.bmp", (bmp_field, any_bytes, any_bytes), read_picture, 3),
    "png": Kind("images/*.png", (png_chunk, png_chunk, any_bytes), read_picture, 3),
    "jpeg": Kind("images/*.jpg", (jpeg_segment, jpeg_segment, any_bytes), read_picture, 3),
    "tiff": Kind("images/*.tif", (tiff_tag, tiff_tag, any_bytes), read_picture, 2),
    "other pictures": Kind("images/*.other", (any_bytes,), read_picture),
    "PH2_dataset.txt": Kind("*.txt", TEXTS, read_table("PH2_dataset.txt"), 2),
    "PH2_dataset.xlsx": Kind(
        "*.xlsx", (xlsx_entry,) * 4 + (any_bytes,), read_table("PH2_dataset.xlsx"), 2
    ),
    "patients.csv": Kind("*.csv", (*TEXTS, csv_tree), read_table("patients.csv")),
    "config.yaml": Kind("run/config.yaml", (*TEXTS, *(yaml_tree,) * 5), read_run("config.yaml"), 2),
    "run.json": Kind("run/run.json", (*TEXTS, *(json_tree,) * 5), read_run("run.json")),
    "splits.json": Kind("run/splits.json", (*TEXTS, *(json_tree,) * 5), read_split_file),
    "ckpt, seal broken": Kind("run/checkpoints/best.ckpt", BYTES, read_checkpoint_file),
    "ckpt, archive": Kind(
        "run/checkpoints/best.ckpt", tuple(map(seal_again, BYTES)), read_checkpoint_file
    ),
    "ckpt, pickle": Kind(
        "run/checkpoints/best.ckpt", (seal_again(ckpt_pickle),), read_checkpoint_file, 2
    ),
    "ckpt, content": Kind(
        "run/checkpoints/best.ckpt", (seal_again(ckpt_tree),), read_checkpoint_file, 3
    ),
    "picture bombs": Kind("bombs/*.picture", (), read_picture),
    "workbook bombs": Kind("bombs/*.workbook", (), read_table("PH2_dataset.xlsx")),
    "table bombs": Kind("bombs/*.table", (), read_table("PH2_dataset.txt")),
    "run.json, repeated": Kind("run/run.json", (json_tree,), read_record("run.json"), 0.3),
    "data.json, repeated": Kind("run/data.json", (text, json_tree), read_record("data.json"), 0.3),
    "summary.json, repeated": Kind(
        "run/summary.json", (text, json_tree, json_tree), read_record("summary.json"), 0.3
    ),
    "metrics.csv, repeated": Kind(
        "run/metrics.csv", (text, csv_tree, csv_tree), read_record("metrics.csv"), 0.3
    ),
}
# A second change would look for what the first has broken.
SINGLE = ("json", "yaml", "csv", "ckpt")


def mutant(folder: Path, kind: str, number: int) -> tuple[bytes, str]:
    """Makes a mutant, the same one every time, and says how."""
    r = Random(f"{kind} {number}")
    how = KINDS[kind]
    seeds = sorted((folder / "seeds").glob(how.seeds))
    seed = r.choice(seeds) if how.changes else seeds[number]
    content, did = seed.read_bytes(), [seed.name]
    if not how.changes:
        return content, seed.name
    many = 1 if any(word in kind for word in SINGLE) else r.choice((1, 1, 1, 2, 3))
    for i in range(many):
        try:
            content, what = r.choice(how.changes)(r, content)
            did.append(what)
        except Exception:  # what the first change has left may be of no form
            if i == 0:
                raise
    return content, "; ".join(did)


# The process that reads: lines of JSON tell what it begins and how that ended.


def work(folder: Path, jobs: Iterable[tuple[str, int]]) -> None:
    """Makes and reads mutants, and never raises."""
    import logging

    prepare(setattr)  # loads all, too, which else would be the first mutant's memory
    logging.disable()
    stray: list[str] = []
    sys.unraisablehook = lambda u: stray.append("".join(traceback.format_exception(u.exc_value)))
    Path(folder / "out").mkdir(exist_ok=True)
    limit = memory("VmSize") * 2**10 + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for kind, number in jobs:
        content, did = mutant(folder, kind, number)
        (folder / "mutant").write_bytes(content)
        print(json.dumps([kind, number, did]), flush=True)
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        began = time.perf_counter()
        try:
            KINDS[kind].read(folder, content)
            ended, why = "accepted", ""
        except InputError as error:
            ended, why = "refused", traceback.format_exc()
            wrong = fault(error, folder)
            ended = f"{wrong}: {error}" if wrong else ended
        except BaseException as error:
            ended, why = f"{type(error).__name__}: {str(error)[:500]}", traceback.format_exc()
        if kind == "ckpt, seal broken" and ended == "accepted":
            same = content == (folder / "seeds" / "run" / "checkpoints" / "best.ckpt").read_bytes()
            ended = "refused" if same else "a broken seal was accepted"
        if stray:
            ended, why = "an error where none can be caught", stray.pop()
        seconds, peak = time.perf_counter() - began, (memory("VmHWM") - before) / 2**10
        print(json.dumps([ended, seconds, peak, why[-3000:]]), flush=True)


def fault(error: InputError, folder: Path) -> str:
    """What is wrong with a refusal; empty where nothing is."""
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    if any(isinstance(cause, MemoryError) for cause in causes):
        return "memory was full"
    # A path that was mutated is named as it is now.
    if str(folder) not in str(error) and not str(error).startswith("/"):
        return "the message names no file"
    return "the message has several lines" if "\n" in str(error) else ""


def memory(key: str) -> int:
    """A value of /proc/self/status, in kB."""
    match = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert match
    return int(match[1])


@dataclass
class Tally:
    """What came of the mutants of a kind."""

    ended: Counter[str] = field(default_factory=Counter)
    seconds: float = 0
    slowest: float = 0
    peak: float = 0


class Failure(NamedTuple):
    kind: str
    number: int
    did: str
    what: str
    why: str

    def __str__(self) -> str:
        return f"\n{self.kind} {self.number} ({self.did}): {self.what}\n{self.why}"


def fuzz(folder: Path, jobs: list[tuple[str, int]]) -> tuple[dict[str, Tally], list[Failure]]:
    """Reads mutants in processes that may die."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    failures: list[Failure] = []
    while jobs:
        done = _one_process(folder, jobs, tallies, failures)
        jobs = jobs[done:]
    return tallies, failures


def _one_process(
    folder: Path,
    jobs: list[tuple[str, int]],
    tallies: dict[str, Tally],
    failures: list[Failure],
) -> int:
    """How many jobs one process got done, the one that it died of among them."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    errors = (folder / "stderr").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", __file__, str(folder)],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    listener = threading.Thread(target=_listen, args=(process.stdout, lines), daemon=True)
    listener.start()
    done, begun = 0, ["", -1, "start"]
    try:
        while done < len(jobs):
            try:
                line = lines.get(timeout=120 if not begun[0] else SECONDS)
            except queue.Empty:
                line = ""
            if not line:
                what = "died" if process.poll() is not None else f"hangs, more than {SECONDS} s"
                errors.seek(0)
                failures.append(Failure(*begun, what, errors.read()[-3000:]))
                tallies[begun[0]].ended["failed"] += 1
                keep(folder, *begun[:2])
                return max(1, done + 1) if begun[0] else len(jobs)
            told = json.loads(line)
            if len(told) == 3:
                begun = told
                continue
            ended, seconds, peak, why = told
            if peak > MEMORY:
                ended = f"took {peak:.0f} MB"
            if ended not in ("accepted", "refused"):
                failures.append(Failure(*begun, ended, why))
                keep(folder, *begun[:2])
                ended = "failed"
            tally = tallies[begun[0]]
            tally.ended[ended] += 1
            tally.seconds += seconds
            tally.slowest, tally.peak = max(tally.slowest, seconds), max(tally.peak, peak)
            done += 1
        process.wait(SECONDS)
        errors.seek(0)
        said = errors.read()
        if "Traceback" in said:
            failures.append(Failure("", 0, "", "a traceback on stderr", said[-3000:]))
        return done
    finally:
        process.kill()
        process.wait()
        errors.close()


def _listen(stream: Any, lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def keep(folder: Path, kind: str, number: int) -> None:
    (folder / "failed").mkdir(exist_ok=True)
    if (folder / "mutant").exists():
        shutil.copy(folder / "mutant", folder / "failed" / f"{kind.replace(' ', '_')}-{number}")


def table(tallies: dict[str, Tally]) -> str:
    lines = [f"{'kind':24} mutants accepted refused failed  slowest    peak"]
    for kind, t in tallies.items():
        counts = (t.ended["accepted"], t.ended["refused"], t.ended["failed"])
        lines.append(
            f"{kind:24}{sum(counts):8}{counts[0]:9}{counts[1]:8}{counts[2]:7}"
            f"{t.slowest:7.2f} s{t.peak:5.0f} MB"
        )
    total = sum((t.ended for t in tallies.values()), Counter[str]())
    seconds = sum(t.seconds for t in tallies.values())
    return "\n".join((*lines, f"{sum(total.values())} mutants, {dict(total)}, {seconds:.0f} s"))


# Seeds: one of each form that a file may have.

SHEET, SHARED = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"


def seed_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    rows, columns = np.mgrid[:37, :45]
    mask = np.hypot(rows - 15, columns - 20) < 11
    grey = np.where(mask, 255, 0).astype(np.uint8)
    image = np.stack([rows * 6, columns * 5, 255 - rows * 3], 2).astype(np.uint8)
    picture, plain = Image.fromarray(image), Image.fromarray(grey)
    indexed = picture.quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6
    transparent = picture.copy()
    transparent.putalpha(plain)
    lossy = {"quality": 80}
    saved: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "24.bmp": (picture, {}),
        "1.bmp": (Image.fromarray(mask), {}),
        "8.bmp": (indexed, {}),
        "grey.bmp": (plain, {}),
        "1.png": (Image.fromarray(mask), {}),
        "8.png": (plain, {}),
        "16.png": (Image.fromarray(grey.astype(np.uint16) * 257), {}),
        "palette.png": (indexed, {"transparency": 3}),
        "rgb.png": (picture, {"exif": exif}),
        "rgba.png": (transparent, {}),
        "la.png": (transparent.convert("LA"), {}),
        "baseline.jpg": (picture, lossy),
        "mask.jpg": (plain, lossy),
        "progressive.jpg": (picture, lossy | {"progressive": True}),
        "cmyk.jpg": (picture.convert("CMYK"), lossy),
        "turned.jpg": (picture, lossy | {"exif": exif}),
        "raw.tif": (picture, {}),
        "1.tif": (Image.fromarray(mask), {"compression": "group4"}),
        "lzw.tif": (plain, {"compression": "tiff_lzw"}),
        "deflate.tif": (picture, {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": (picture, {"compression": "jpeg"}),
        "float.tif": (Image.fromarray(grey.astype(np.float32)), {}),
        "gif.other": (indexed, {"format": "GIF"}),
        "webp.other": (transparent, {"format": "WEBP"}),
        "jp2.other": (picture, {"format": "JPEG2000"}),
        "ppm.other": (plain, {"format": "PPM"}),
    }
    for name, (what, how) in saved.items():
        what.save(folder / name, **how)
    (folder / "rle8.bmp").write_bytes(run_length_bmp(grey // 255, 8))
    (folder / "rle4.bmp").write_bytes(run_length_bmp(grey // 255, 4))
    (folder / "interlaced.png").write_bytes(interlaced_png(grey))
    for file in ("rle8.bmp", "rle4.bmp", "interlaced.png"):
        with Image.open(folder / file) as written:
            assert np.array_equal(np.asarray(written.convert("L")), grey), file


def run_length_bmp(indices: np.ndarray, bits: int) -> bytes:
    """Pillow reads these, but does not write them."""
    data = b""
    for row in indices[::-1]:
        ends = [*np.flatnonzero(np.diff(row)) + 1, len(row)]
        for start, end in zip([0, *ends], ends, strict=False):
            index = int(row[start])
            data += bytes([end - start, index if bits == 8 else index * 17])
        data += b"\0\0"
    data += b"\0\1"
    colors = b"\0\0\0\0\xff\xff\xff\0" + bytes(4 * (2**bits - 2))
    height, width = indices.shape
    offset = 54 + len(colors)
    head = struct.pack("<2sIHHI", b"BM", offset + len(data), 0, 0, offset)
    form = 1 if bits == 8 else 2
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, form, len(data), 0, 0, 2**bits, 0
    )
    return head + info + colors + data


def interlaced_png(grey: np.ndarray) -> bytes:
    """Adam7, which Pillow does not write either."""
    passes = (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    )
    data = b"".join(
        b"\0" + row.tobytes() for y, x, down, right in passes for row in grey[y::down, x::right]
    )

    head = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 1)
    parts = (
        png_part(b"IHDR", head),
        png_part(b"IDAT", zlib.compress(data)),
        png_part(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def seed_workbook(path: Path, ids: list[str]) -> None:
    """In the form of PH2's: a heading, crosses for diagnosis and colours, shared strings."""
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(["PH2 data set"])
    sheet.append(["Image Name", "Histological Diagnosis", "Common Nevus", *["a head"] * 14])
    for i, id in enumerate(ids):
        crosses = ["X" if i % 3 == k else None for k in range(3)]
        sheet.append([id, None, *crosses, 0, *["A"] * 5, None, "X", *[None] * 4])
    book.save(path)
    entries = unpacked(path.read_bytes())
    if SHARED in entries:
        return
    # openpyxl may write strings into their cells; Excel never does.
    strings: list[bytes] = []

    def share(match: re.Match[bytes]) -> bytes:
        strings.append(match[1])
        return b't="s"><v>%d</v>' % (len(strings) - 1)

    inline = rb't="inlineStr"><is>(.*?)</is>'
    entries[SHEET] = re.sub(inline, share, entries[SHEET])
    main = b"http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    items = b"".join(b"<si>%s</si>" % string for string in strings)
    entries[SHARED] = b'<?xml version="1.0"?><sst xmlns="%s">%s</sst>' % (main, items)
    types = "[Content_Types].xml"
    kind = b"application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
    part = b'<Override PartName="/%s" ContentType="%s" />' % (SHARED.encode(), kind)
    entries[types] = entries[types].replace(b"</Types>", part + b"</Types>")
    path.write_bytes(packed(entries, zipfile.ZIP_DEFLATED))


def seed_bombs(folder: Path) -> None:
    """Small files that claim, or unpack to, what no memory holds."""
    folder.mkdir()

    def png(width: int, height: int, kind: int, data: bytes, *more: bytes) -> bytes:
        head = png_part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
        packed_data = zlib.compress(data, 1)
        rest = png_part(b"IDAT", packed_data) + png_part(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + rest

    hidden = zlib.compress(bytes(3 * 10**8), 1)
    pictures = {
        "huge.png": png(100_000, 100_000, 0, b""),
        "too large.png": png(9_500, 9_500, 2, bytes((3 * 9_500 + 1) * 9_500)),
        "large.png": png(6_000, 4_000, 2, bytes((3 * 6_000 + 1) * 4_000)),  # a camera's
        "text.png": png(1, 1, 0, b"\0\0", png_part(b"zTXt", b"k\0\0" + hidden)),
        "profile.png": png(1, 1, 0, b"\0\0", png_part(b"iCCP", b"k\0\0" + hidden)),
        "huge.bmp": struct.pack(
            "<2sIHHIIiiHHIIiiII", b"BM", 0, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, *[0] * 6
        ),
        "wide.bmp": struct.pack(
            "<2sIHHIIiiHHIIiiII", b"BM", 0, 0, 0, 54, 40, 80_000_000, 1, 1, 24, *[0] * 6
        ),
        "huge.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0),
        "huge.pgm": b"P5 100000 100000 255\n",
        "huge.ppm": b"P3 9000 9000 255\n" + b"1 " * 10**6,
    }
    for name, content in pictures.items():
        (folder / f"{name}.picture").write_bytes(content)

    # Two lines of heading and a row: a workbook that is read, and then spoilt.
    seed_workbook(folder / "workbook", ["IMD000"])
    whole = unpacked((folder / "workbook").read_bytes())
    (folder / "workbook").unlink()
    sheet, strings = whole[SHEET], whole[SHARED]
    row = re.search(rb'<row r="3".*?</row>', sheet, re.DOTALL)
    assert row is not None
    many = b"<si><t>a</t></si>" * 5 * 10**6 + b"</sst>"
    spoilt = {
        "dimension": (SHEET, re.sub(rb'ref="A1:[^"]*"', b'ref="A1:XFD1048576"', sheet)),
        "far row": (SHEET, sheet.replace(b'<row r="3"', b'<row r="999999999"')),
        "far row, no dimension": (
            SHEET,
            re.sub(rb"<dimension.*?>", b"", sheet).replace(b'<row r="3"', b'<row r="999999999"'),
        ),
        "far cell": (SHEET, sheet.replace(b'r="A3"', b'r="XFD3"')),
        "rows": (SHEET, sheet.replace(row[0], row[0] + b"<row/>" * 10**7)),
        "strings": (SHARED, strings.replace(b"</sst>", many)),
        "one string": (SHARED, strings.replace(b"PH2 data set", b"a" * 2 * 10**8)),
        "entities": (SHARED, LAUGHS.encode() + strings.replace(b"PH2 data set", b"&i;")),
    }
    for name, (entry, content) in spoilt.items():
        assert content != whole[entry], name
        archive = packed(whole | {entry: content}, zipfile.ZIP_DEFLATED)
        (folder / f"{name}.workbook").write_bytes(archive)
    (folder / "bars.table").write_bytes(b"|" * 2**26)
    (folder / "rows.table").write_bytes(b"a|\n" * 2**24)


def png_part(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture
def folder(place: Path, tiny_ph2: Path, tiny_train: Callable[..., Ended]) -> Path:
    """Where seeds lie and mutants are made."""
    seeds = place / "seeds"
    if seeds.exists():
        return place
    seed_images(seeds / "images")
    shutil.copytree(tiny_ph2, seeds / "data")
    shutil.copy(tiny_ph2 / "PH2_dataset.txt", seeds / "tiny.txt")
    ids = sorted(path.name for path in (tiny_ph2 / "PH2 Dataset images").iterdir())
    seed_workbook(seeds / "tiny.xlsx", ids)
    rows = [f"{id}.bmp,P{i // 2},{i}" for i, id in enumerate(ids)]
    (seeds / "patients.csv").write_text("\n".join(("image_id,patient_id,age", *rows, "")))
    if "SEGLAB_PH2" in os.environ:
        for name in ("PH2_dataset.txt", "PH2_dataset.xlsx"):
            shutil.copy(Path(os.environ["SEGLAB_PH2"], name), seeds / name)
    short = ("model.width=2", "trainer.max_epochs=1")
    assert tiny_train(seeds / "run", f"data.root={seeds / 'data'}", *short).code == 0
    return place


def shares(total: int) -> list[tuple[str, int]]:
    """About `total` mutants, in turn of all kinds but bombs."""
    kinds = {name: kind.share for name, kind in KINDS.items() if kind.changes}
    unit = total / sum(kinds.values())
    return [(name, i) for name, share in kinds.items() for i in range(math.ceil(share * unit))]


def report(tallies: dict[str, Tally], failures: list[Failure], folder: Path) -> None:
    print(f"\n{table(tallies)}\nread in {folder}")
    first = {(f.kind, f.what[:60]): f for f in reversed(failures)}
    assert not failures, f"{len(failures)} of these mutants:" + "".join(map(str, first.values()))


@pytest.mark.slow
def test_mutants_of_every_kind_are_read_or_refused_by_name(folder: Path) -> None:
    tallies, failures = fuzz(folder, shares(300))
    report(tallies, failures, folder)
    # A mutator that breaks everything, or nothing, reaches nothing.
    ended = sum((t.ended for t in tallies.values()), Counter[str]())
    assert ended["accepted"] > 50 and ended["refused"] > 100
    assert tallies["ckpt, seal broken"].ended["accepted"] == 0


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_thousands_of_mutants_are_read_or_refused_by_name(folder: Path) -> None:
    jobs = shares(int(os.environ.get("SEGLAB_MUTANTS", 3000)))
    report(*fuzz(folder, [(kind, number + 10**6) for kind, number in jobs]), folder)


@pytest.mark.slow
def test_bombs_take_neither_memory_nor_time(folder: Path) -> None:
    seed_bombs(folder / "seeds" / "bombs")
    jobs = [(name, i) for name, kind in KINDS.items() for i in range(bombs(folder, kind))]
    assert len(jobs) > 15
    report(*fuzz(folder, jobs), folder)


def bombs(folder: Path, kind: Kind) -> int:
    return 0 if kind.changes else len(list((folder / "seeds").glob(kind.seeds)))


def test_the_seeds_themselves_are_accepted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else their mutants would be refused for what was wrong before."""
    prepare(monkeypatch.setattr)
    read_run("config.yaml")(folder, (folder / "seeds" / "run" / "config.yaml").read_bytes())
    for kind in KINDS.values():
        for seed in (folder / "seeds").glob(kind.seeds) if kind.changes else ():
            try:
                kind.read(folder, seed.read_bytes())
            except InputError as error:
                no_mask = "not a mask" in str(error)
                assert no_mask or seed.name == "float.tif", (seed, error)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        work(Path(sys.argv[1]), json.loads(Path(sys.argv[1], "jobs.json").read_text()))
    else:
        work(Path(sys.argv[3]), [(sys.argv[1], int(sys.argv[2]))])
