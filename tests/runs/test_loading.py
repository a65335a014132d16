"""What a stranger's run directory or checkpoint may try: refused in one line, and not done."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.tiny import Ended
from hypothesis import given, settings
from hypothesis import strategies as st

from seglab.core.errors import InputError
from seglab.core.files import hash_json
from seglab.networks.encoders import EfficientNetLite0
from seglab.runs.allowed_targets import ALLOWED_TARGETS
from seglab.runs.checkpoints import (
    _SEAL,
    SealedCheckpoints,
    hash_weights,
    load_network,
    read_checkpoint,
)
from seglab.runs.loading import check_targets
from seglab.runs.opening import open_run

BEST = "checkpoints/best.ckpt"
SCRIPTS = (("evaluate",), ("reproduce", "--check"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a finished run is put by the first test that needs it."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(
    finished: Path,
    tiny_train: Callable[..., Ended],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache_dir: Path,
) -> Path:
    """A finished run of its own, to be spoilt."""
    if not finished.exists():
        assert tiny_train(finished, "model.width=2", "trainer.max_epochs=1").code == 0
    # Where reproduce.py keeps its cache, whatever a config says.
    monkeypatch.setenv("SEGLAB_CACHE", str(cache_dir))
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """What a payload would leave."""
    return tmp_path / "ran"


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, links not followed."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def refuses(script: Callable[..., Ended], tmp_path: Path) -> Callable[..., None]:
    """Asserts that no script opens a run: refuses(run, *said); that nothing came of it besides."""

    def check(run: Path, *said: str, options: tuple[str, ...] = ()) -> None:
        before = contents(tmp_path)
        for name, *more in SCRIPTS:
            ended = script(name, run, *more, *options)
            assert ended.code == 1, (name, ended)
            assert "Traceback" not in ended.err
            assert len(ended.err.splitlines()) == 1, ended.err
            assert ended.err.startswith("error: ")
            # The folders of tests have telling names.
            line = ended.err.replace(str(run), "RUN").replace(str(tmp_path), "TMP")
            for words in ("RUN", *said):
                assert words in line
        assert contents(tmp_path) == before

    return check


def change_config(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = run / "config.yaml"
    config = yaml.safe_load(file.read_text())
    change(config)
    file.write_text(yaml.safe_dump(config, sort_keys=False))


def change_checkpoint(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(run / BEST, weights_only=True)
    change(content)
    SealedCheckpoints().save_checkpoint(content, run / BEST)


def change_stored_config(run: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    """In one of the two places where a run keeps its config."""
    if file == BEST:
        change_checkpoint(run, lambda content: change(content["seglab"]["config"]))
    else:
        change_config(run, change)


def sealed(archive: bytes) -> bytes:
    """With a seal that is right for what was written in."""
    body = archive[:-2]
    seal = _SEAL + hashlib.sha256(body).hexdigest().encode()
    return body + len(seal).to_bytes(2, "little") + seal


# Code in a checkpoint.


class Payload:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return Path.touch, (Path(self.path),)


class Network(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def as_torch(content: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def as_former_torch(content: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def as_pickle(content: dict[str, Any]) -> bytes:
    return pickle.dumps(content)


def as_tar(content: dict[str, Any]) -> bytes:
    """In the form of torch 0.1."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            body = pickle.dumps(content if name == "pickle" else 0)
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    return out.getvalue()


def as_former_torch_before_an_archive(content: dict[str, Any]) -> bytes:
    """Python finds an archive of good entries in it; torch, which looks at its begin, does not."""
    return as_former_torch(content) + as_torch({})


FORMS = (as_torch, as_former_torch, as_pickle, as_tar, as_former_torch_before_an_archive)


@pytest.mark.parametrize("seal", [False, True], ids=["no seal", "sealed"])
@pytest.mark.parametrize("form", FORMS)
def test_a_payload_is_not_unpickled(
    form: Callable[[dict[str, Any]], bytes],
    seal: bool,
    run: Path,
    ran: Path,
    refuses: Callable[..., None],
) -> None:
    content = form(torch.load(run / BEST, weights_only=True) | {"x": Payload(ran)})
    (run / BEST).write_bytes(sealed(content) if seal else content)
    refuses(run, "best.ckpt")
    with pytest.raises(InputError, match=r"best\.ckpt: "):
        hash_weights(run / BEST)
    assert not ran.exists()


def test_the_payload_would_run(ran: Path) -> None:
    """Else the tests above show nothing."""
    for form in (as_torch, as_former_torch):
        torch.load(io.BytesIO(form({"x": Payload(ran)})), weights_only=False)
        ran.unlink()
    pickle.loads(as_pickle({"x": Payload(ran)}))
    assert ran.exists()


@pytest.mark.parametrize(
    "place",
    [
        lambda content, payload: content.update({payload: 1}),
        lambda content, payload: content["state_dict"].update({"net.head.weight": payload}),
        lambda content, payload: content["seglab"]["config"]["model"].update(width=payload),
        lambda content, payload: content["seglab"]["classes"].append(payload),
        lambda content, payload: content["optimizer_states"].append([{"a": (payload,)}]),
    ],
    ids=["key", "weight", "config", "classes", "optimizer"],
)
def test_a_payload_is_found_anywhere(
    place: Callable[[dict[str, Any], Payload], object],
    run: Path,
    ran: Path,
    refuses: Callable[..., None],
) -> None:
    change_checkpoint(run, lambda content: place(content, Payload(ran)))
    refuses(run, "best.ckpt")
    assert not ran.exists()


def test_a_program_of_torch_is_not_loaded(run: Path, refuses: Callable[..., None]) -> None:
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(Network()), out)
    (run / BEST).write_bytes(sealed(out.getvalue()))
    refuses(run, "best.ckpt")


# Names of code in a config.

NAMES = (
    "os.system",
    "builtins.eval",
    "torch.hub.load",
    "torch.load",
    "torch.optim",
    "torch.optim.",
    "torch.optim.adam.Adam",  # the same class: the list is of names
    "torch.optim.Adam ",
    " torch.optim.Adam",
    "torch.optim.Adam\n",
    "torch.optim.Adam\0",
    "torch.optim..Adam",
    "torch.optim.\u0410dam",
    "torch\uff0eoptim.Adam",
    "TORCH.OPTIM.ADAM",
    "torch.optim.Adam.__init__.__globals__",
    "seglab.networks.UNet.__init__.__globals__",
    "seglab.networks..UNet",
    "seglab.networks.UNet.__class__",
    "seglab.data.synthetic.cases.write_synthetic",
    "seglab.core.files.write_atomic",
    "seglab.training.train.train",
    "hydra.utils.instantiate",
    "functools.partial",
    "",
    None,
    ["os.system"],
    {"_target_": "os.system"},
)


@pytest.mark.parametrize("file", ["config.yaml", BEST])
@pytest.mark.parametrize("name", ["os.system", "torch.hub.load", "seglab.networks..UNet"])
def test_a_name_that_is_not_on_the_list_is_refused(
    name: str, file: str, run: Path, refuses: Callable[..., None]
) -> None:
    change_stored_config(run, file, lambda config: config.update(x=[{"y": {"_target_": name}}]))
    refuses(run, file, name)


def test_names_are_compared_as_they_are(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    check_targets(config, "config.yaml")
    for name in NAMES:
        for place in ("x", "model", "task.optimizer"):
            spoilt = json.loads(json.dumps(config))
            put_in(place)(spoilt, {"_target_": name})
            with pytest.raises(InputError, match=r"^config\.yaml: [^\n]*$"):
                check_targets(spoilt, "config.yaml")


def put_in(key: str) -> Callable[[dict[str, Any], Any], None]:
    """Puts a value at 'a.b.c'; the last may be new."""
    *path, last = key.split(".")

    def put(config: dict[str, Any], value: Any) -> None:
        for part in path:
            config = config[part]
        config[last] = value

    return put


PLACES = (
    *("model", "model.in_channels", "model._args_", "task", "task.loss", "task.optimizer"),
    *("task.lr_scheduler", "task.net", "callbacks.progress", "callbacks.x", "data", "data.cases"),
    *("data.augment", "data.split", "data.size", "data.cases.root", "logger", "logger.x"),
    *("trainer", "trainer.strategy", "trainer.callbacks", "monitor", "unused"),
)


@pytest.mark.parametrize("file", ["config.yaml", BEST])
@pytest.mark.parametrize("place", PLACES)
def test_code_is_refused_and_not_run_wherever_it_is_named(
    place: str, file: str, run: Path, ran: Path, refuses: Callable[..., None]
) -> None:
    call = {"_target_": "os.system", "_args_": [f"touch {ran}"]}
    call |= {"_partial_": True, "_recursive_": False, "_convert_": "all"}
    change_stored_config(run, file, lambda config: put_in(place)(config, call))
    refuses(run, file)
    assert not ran.exists()


@pytest.mark.parametrize("file", ["config.yaml", BEST])
@pytest.mark.parametrize(
    "place", ["model", "data.augment", "task.loss", "callbacks.x", "x", "logger"]
)
def test_a_name_of_the_list_is_refused_where_it_has_no_place(
    place: str, file: str, run: Path, tmp_path: Path, refuses: Callable[..., None]
) -> None:
    """As the model or the augmentation, synthetic_cases would draw pictures into any folder."""
    call = {
        "_target_": "seglab.data.synthetic.synthetic_cases",
        "root": str(tmp_path / "x"),
        "n": 3,
    }
    change_stored_config(run, file, lambda config: put_in(place)(config, call))
    refuses(run, file, "synthetic_cases")


def test_every_name_of_the_list_is_trusted_in_its_own_place_only() -> None:
    for place, names in ALLOWED_TARGETS.items():
        for name in names:
            node: Any = {"_target_": name}
            for part in reversed(place.replace("*", "mine").split(".")):
                node = {part: node}
            check_targets(node, "x")
            for moved in (
                {"x": node},
                {"x": {"_target_": name}},
                [node],
                {place: {"_target_": name}},
            ):
                if "." in place or moved != {place: {"_target_": name}}:
                    with pytest.raises(InputError, match=re.escape(name)):
                        check_targets(moved, "x")


@pytest.mark.parametrize("file", ["config.yaml", BEST])
@pytest.mark.parametrize(
    "text",
    [
        "${oc.create:{_target_: os.abort}}",
        "${oc.env:HOME}",
        "${oc.decode:'{_target_: os.abort}'}",
        "a${model}b",
        "${",
        "\\${oc.env:HOME}",
        "???",
    ],
)
def test_what_would_be_resolved_is_refused(
    text: str, file: str, run: Path, refuses: Callable[..., None]
) -> None:
    for put in (put_in("data.cases"), put_in("model.in_channels"), put_in("x")):
        whole = (run / file).read_bytes()
        change_stored_config(run, file, lambda config, put=put: put(config, text))
        refuses(run, file)
        (run / file).write_bytes(whole)
    change_stored_config(run, file, lambda config: config.update({text: 1}))
    refuses(run, file, "interpolation")


# Text that is more than it seems.


def laughs() -> str:
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(12)]
    return "\n".join(lines)


YAML = {
    "code": "x: !!python/object/apply:os.system ['touch RAN']",
    "new object": "x: !!python/object/new:os.system ['touch RAN']",
    "module": "x: !!python/module:os",
    "name": "x: !!python/name:os.system",
    "path": "x: !!python/object/apply:pathlib.Path [/, tmp, x]",
    "bytes": "x: !!binary aGVsbG8=",
    "set": "x: !!set {a, b}",
    "unknown tag": "x: !os.system [touch RAN]",
    "references": laughs(),
    "a reference to itself": "x: &a [*a]",
    "merged keys": "x: &a {_target_: os.system}\ny:\n  <<: *a",
    "code in merged keys": "x:\n  <<: {_target_: os.system}",
    "second document": "---\nx: {_target_: os.system}",
    "deep": "x: " + "[" * 100_000,
    "deep, closed": "x: " + "[" * 1000 + "]" * 1000,
    "deep by indentation": "\n".join(" " * i + "a:" for i in range(1000)),
    "wide": "x: [" + "a," * 60_000 + "]",
    "long": "x: " + "a" * 2**21,
    "long number": "x: " + "9" * 100_000,
    "long hexadecimal number": "x: 0x" + "f" * 100_000,
    "long number to base 60": "x: 1" + ":1" * 100_000,
    "double keys": "x: 1\nx: 2",
    "no text": 'x: "\\ud800"',
    "zero": 'x: "\\0"',
}


@pytest.mark.parametrize("kind", YAML)
def test_yaml_that_is_no_plain_config_is_refused_at_once(
    kind: str, run: Path, ran: Path, refuses: Callable[..., None]
) -> None:
    file = run / "config.yaml"
    file.write_text(file.read_text() + "\n" + YAML[kind].replace("RAN", str(ran)) + "\n")
    began = time.process_time()
    refuses(run, "config.yaml")
    assert time.process_time() - began < 10
    assert not ran.exists()


JSON = {
    "deep": "[" * 10**6,
    "deep, closed": "[" * 10**5 + "]" * 10**5,
    "long number": '{"status": ' + "9" * 10**6 + "}",
    "no object": "[1]",
    "nothing": "",
    "bytes": "\udcff",
}


@pytest.mark.parametrize("file", ["run.json", "splits.json"])
@pytest.mark.parametrize("kind", JSON)
def test_json_that_is_no_record_is_refused(
    kind: str, file: str, run: Path, refuses: Callable[..., None]
) -> None:
    (run / file).write_text(JSON[kind], errors="surrogateescape")
    refuses(run, file)


@pytest.mark.parametrize("kind", JSON)
def test_a_list_of_files_that_is_none_is_refused(
    kind: str, run: Path, script: Callable[..., Ended]
) -> None:
    """Only the repetition reads it."""
    (run / "data.json").write_text(JSON[kind], errors="surrogateescape")
    ended = script("reproduce", run, "--check")
    assert ended.code == 1
    assert "data.json" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("file", ["config.yaml", "run.json", "splits.json", BEST])
def test_a_file_with_holes_is_not_read_to_its_end(file: str, run: Path) -> None:
    os.truncate(run / file, 2**40)
    with pytest.raises(InputError, match=re.escape(file)):
        open_run(run)


# Checkpoints that are more than they seem.


def entries_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(entries: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, body in entries.items():
            archive.writestr(name, body)
    return out.getvalue()


@functools.cache
def compressed(whole: bytes) -> bytes:
    """300 MB of zeros in one, as the largest weight."""
    out, entries = io.BytesIO(), entries_of(whole)
    largest = max((n for n in entries if "/data/" in n), key=lambda name: len(entries[name]))
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, body in entries.items():
            archive.writestr(name, body if name != largest else bytes(3 * 10**8))
    return out.getvalue()


def overlapping(whole: bytes) -> bytes:
    """A thousand names of one entry."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, body in entries_of(whole).items():
            archive.writestr(name, body)
        archive.writestr("archive/data/1000", bytes(10**6))
        first = archive.filelist[-1]
        for i in range(1001, 2000):
            again = zipfile.ZipInfo(f"archive/data/{i}")
            again.header_offset = first.header_offset
            again.CRC, again.compress_size, again.file_size = first.CRC, 10**6, 10**6
            archive.filelist.append(again)
    return out.getvalue()


def two_tables(whole: bytes) -> bytes:
    """Python finds a table of entries by its end, torch by where it says that it begins."""
    bomb = compressed(whole)
    end = bomb.rfind(b"PK\5\6")
    length, start = struct.unpack_from("<II", bomb, end + 12)
    shown = bytearray(bomb[start:end])
    at = 0
    while at < length:
        struct.pack_into("<H", shown, at + 10, zipfile.ZIP_STORED)
        struct.pack_into("<II", shown, at + 20, 1, 1)
        at += 46 + sum(struct.unpack_from("<HHH", shown, at + 28))
    return bomb[:end] + bytes(shown) + bomb[end:]


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def form(whole: bytes) -> bytes:
        content = torch.load(io.BytesIO(whole), weights_only=True)
        change(content)
        return as_torch(content)

    return form


def a_weight(make: Callable[[], torch.Tensor]) -> Callable[[bytes], bytes]:
    return changed(lambda content: content["state_dict"].update({"net.head.weight": make()}))


def model(**values: Any) -> Callable[[bytes], bytes]:
    return changed(lambda content: content["seglab"]["config"]["model"].update(values))


def giant_shape(whole: bytes) -> bytes:
    """The shape in the pickle is another than that of the numbers."""
    content = torch.load(io.BytesIO(whole), weights_only=True)
    content["state_dict"]["net.head.weight"] = torch.zeros(77)
    entries = entries_of(as_torch(content))
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    giant = b"\x8a\x05" + (10**11).to_bytes(5, "little") + b"\x85"
    assert entries[pickled].count(b"K\x4d\x85") == 1
    entries[pickled] = entries[pickled].replace(b"K\x4d\x85", giant)
    return packed(entries)


def other_protocol(whole: bytes) -> bytes:
    entries = entries_of(whole)
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    entries[pickled] = b"\x80\x13" + entries[pickled][2:]
    return packed(entries)


def shared(levels: int) -> list[Any]:
    """Two to the power of `levels` items for whoever copies it."""
    out: list[Any] = ["ha"]
    for _ in range(levels):
        out = [out, out]
    return out


def itself(content: dict[str, Any]) -> None:
    content["seglab"]["config"]["x"] = content["seglab"]["config"]


def deep(levels: int) -> list[Any]:
    out: list[Any] = []
    for _ in range(levels):
        out = [out]
    return out


BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "compressed": compressed,
    "overlapping": overlapping,
    "two tables": two_tables,
    "giant shape": giant_shape,
    "stride 0": a_weight(lambda: torch.zeros(1).expand(10**12)),
    "many of stride 0": changed(
        lambda content: content["state_dict"].update(
            {f"net.x{i}": torch.zeros(1).expand(10**4) for i in range(2000)}
        )
    ),
    "of no device": a_weight(lambda: torch.empty(10**12, device="meta")),
    "sparse": a_weight(lambda: torch.zeros(10**3).to_sparse()),
    "width": model(width=100_000),
    "wider": model(width=2**62),
    "width of half a channel": model(width=0.5),
    "deep": model(depth=60),
    "deeper": model(depth=10**6),
    "deepest": model(depth=2**62),
    "classes": model(classes=10**9),
    "channels": model(in_channels=10**9),
    "size": changed(lambda content: content["seglab"]["config"]["data"].update(size=2**40)),
    "a list in itself": changed(itself),
    "lists twice in lists": changed(
        lambda content: content["seglab"]["config"].update(x=shared(40))
    ),
    "deep config": changed(lambda content: content["seglab"]["config"].update(x=deep(300))),
}
READ = """
import json, re, resource, sys, time
from pathlib import Path
from seglab.runs.checkpoints import hash_weights, load_network
from seglab.core.errors import InputError
from seglab.core.files import hash_json

def memory(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

done = []
# What reading must not do; seen by Python itself.
sys.addaudithook(lambda event, arguments: event in (
    "pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen",
    "socket.connect", "shutil.rmtree",
) and done.append(event))
limit = int((memory("VmSize") + 2000) * 2**20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[1:]:
    for read in (load_network, hash_weights):
        before, began = memory("VmRSS"), time.perf_counter()
        Path("/proc/self/clear_refs").write_text("5")
        try:
            read(path)
            ended = "read"
        except InputError as error:
            ended = str(error)
        seconds, peak = time.perf_counter() - began, memory("VmHWM") - before
        print(json.dumps([path, read.__name__, ended, seconds, peak, done]), flush=True)
        done.clear()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory by /proc")
@pytest.mark.slow
def test_a_checkpoint_takes_no_more_than_its_own_size(run: Path, tmp_path: Path) -> None:
    """Memory is bounded from outside: what is taken would end the process."""
    whole = (run / BEST).read_bytes()
    files = {name: tmp_path / f"{name}.ckpt" for name in (*BOMBS, "good")}
    for name, file in files.items():
        file.write_bytes(sealed(BOMBS[name](whole)) if name in BOMBS else whole)
    ended = subprocess.run(
        [sys.executable, "-c", READ, *map(str, files.values())],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(lines) == 2 * len(files), (lines[-1:], ended.stderr[-3000:])
    for path, reader, what, seconds, peak, done in lines:
        metadata = (Path(path).stem, reader, what, seconds, peak, done)
        assert not done, metadata
        assert seconds < 10 and peak < 150, metadata
        if Path(path).stem == "good":
            assert what == "read", metadata
        elif reader == "load_network":
            assert what.startswith(f"{path}: "), metadata
            assert "memory" not in what.lower(), metadata
        else:
            assert what == "read" or what.startswith(f"{path}: "), metadata


@pytest.mark.parametrize("form", [other_protocol, model(in_channels=0), changed(dict.clear)])
def test_torch_says_nothing_besides(form: Callable[[bytes], bytes], run: Path) -> None:
    (run / BEST).write_bytes(sealed(form((run / BEST).read_bytes())))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            load_network(run / BEST)
        except InputError as error:
            assert str(error).startswith(f"{run / BEST}: ")


# Paths.


@pytest.mark.parametrize(
    "key",
    [
        *("logger.save_dir", "logger.name", "logger.version", "logger.sub_dir", "logger.log_dir"),
        *("trainer.default_root_dir", "trainer.profiler", "trainer.strategy", "callbacks.x"),
        *("callbacks.progress.dirpath", "model.x", "task.x", "x"),
    ],
)
@pytest.mark.parametrize("path", ["ELSEWHERE", "RUN/../elsewhere", "../elsewhere", "~/elsewhere"])
def test_a_path_outside_the_run_is_refused(
    key: str, path: str, run: Path, finished: Path, tmp_path: Path, refuses: Callable[..., None]
) -> None:
    path = path.replace("ELSEWHERE", str(tmp_path / "elsewhere")).replace("RUN", str(finished))
    change_config(run, lambda config: put_in(key)(config, path))
    refuses(run, "config.yaml", key.partition(".")[0])


def test_weights_may_lie_outside_and_are_only_read(
    script: Callable[..., Ended],
    tiny_ph2: Path,
    cache_dir: Path,
    ran: Path,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    run, file = tmp_path / "run", tmp_path / "weights.pth"
    weights = EfficientNetLite0().state_dict()
    torch.save(weights, file)
    options = [
        *("model=unet_efficientnet_lite0", f"model.weights={file}", "model.decoder=[4,4,4,4]"),
        *("model.freeze=0", f"data.root={tiny_ph2}", f"data.cache_dir={cache_dir}", "data.size=32"),
        *("trainer.max_epochs=1", "logger=none", "callbacks.pictures=null"),
    ]
    ended = script("train", *options, f"hydra.run.dir={run}")
    assert ended.code == 0, ended.err
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert json.loads((run / "run.json").read_text())["modules"]["model.weights"] == digest
    assert script("reproduce", run, "--check").code == 0
    # Others.
    torch.save(weights | {"conv_stem.weight": torch.ones(32, 3, 3, 3)}, file)
    with caplog.at_level("INFO"):
        assert script("reproduce", run, "--check").code == 3
    assert f"model.weights {digest[:12]}" in caplog.text
    begun = tmp_path / "begun"
    shutil.copytree(run, begun)
    record = json.loads((begun / "run.json").read_text())
    (begun / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    ended = script("train", *options, f"hydra.run.dir={begun}")
    assert ended.code == 1 and "model.weights is another file than when this run" in ended.err
    # What would run if it were unpickled.
    torch.save({"conv_stem.weight": Payload(ran)}, file)
    assert script("evaluate", run).code == 0
    ended = script("reproduce", run, "--out", tmp_path / "again")
    assert ended.code == 1 and not ran.exists()
    assert ended.err.splitlines()[-1].startswith(f"error: {file}: holds no weights")
    # None: whoever scores has no need of them.
    file.unlink()
    assert script("evaluate", run).code == 0
    ended = script("reproduce", run, "--check")
    assert ended.code == 1
    assert f"error: model: weights={file}: no such file" in ended.err


def test_a_path_in_a_list_is_found(run: Path, refuses: Callable[..., None]) -> None:
    for path in ("/elsewhere", "a/../../elsewhere"):
        for value in (path, [path], [{"a": [path]}]):
            change_config(run, lambda config, v=value: config["trainer"].update(profiler=v))
            refuses(run, "config.yaml", "trainer.profiler", "outside the run directory")


@pytest.mark.parametrize(
    "path",
    [
        "elsewhere",
        ".",
        "",
        "$HOME/elsewhere",
        "file:///tmp/elsewhere",
        "ftp://localhost/x",
        None,
        5,
    ],
)
def test_a_log_that_is_not_below_the_run_is_refused(
    path: Any, run: Path, refuses: Callable[..., None]
) -> None:
    """A bare name lies where the command is started, and Lightning takes URLs and variables."""
    change_config(run, lambda config: config["logger"].update(save_dir=path))
    refuses(run, "config.yaml", "logger.save_dir")


@pytest.mark.parametrize("value", [".", "", "run", "~", "$HOME", None, 5, ["/"]])
def test_a_run_directory_that_is_no_place_is_refused(
    value: Any, run: Path, refuses: Callable[..., None]
) -> None:
    change_config(run, lambda config: config.update(run_dir=value))
    refuses(run, "config.yaml", "run_dir")


@pytest.mark.parametrize(
    "link", ["evaluations", "reproductions", "train.log", "checkpoints", "a/b/c", "splits.json"]
)
def test_a_link_that_leads_out_of_the_run_is_refused(
    link: str, run: Path, tmp_path: Path, refuses: Callable[..., None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    place = run / link
    if place.exists():
        place.rename(elsewhere)
    else:
        elsewhere.mkdir()
        place.parent.mkdir(parents=True, exist_ok=True)
    for target in (elsewhere, Path(os.path.relpath(elsewhere, place.parent)), tmp_path / "none"):
        place.symlink_to(target)
        refuses(run, link, "link")
        place.unlink()


def test_a_link_to_itself_is_refused(run: Path, refuses: Callable[..., None]) -> None:
    (run / "evaluations").symlink_to("evaluations")
    refuses(run, "evaluations", "link")


def test_a_link_inside_the_run_is_no_matter(run: Path, script: Callable[..., Ended]) -> None:
    (run / "checkpoints").rename(run / "weights")
    (run / "checkpoints").symlink_to("weights")
    assert script("evaluate", run).code == 0


@pytest.mark.parametrize("file", ["config.yaml", "splits.json", BEST, "data.json", "x/y"])
def test_a_pipe_is_not_waited_on(file: str, run: Path) -> None:
    (run / file).unlink(missing_ok=True)
    (run / file).parent.mkdir(exist_ok=True)
    os.mkfifo(run / file)
    with pytest.raises(InputError, match="neither a file nor a folder"):
        open_run(run)
    if file == BEST:
        with pytest.raises(InputError, match="no file"):
            hash_weights(run / file)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Whatever is written in a folder changes it, and a lock that comes and goes as well."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in (folder, *folder.rglob("*"))
    }


@pytest.fixture
def data(tiny_ph2: Path, tmp_path: Path) -> Path:
    """Data of a stranger's choice: in a folder of its own, to see what is written around it."""
    return Path(shutil.copytree(tiny_ph2, tmp_path / "around" / "data"))


def synthetic(config: dict[str, Any]) -> None:
    config["data"]["cases"] = {
        "_target_": "seglab.data.synthetic.synthetic_cases",
        "_partial_": True,
        "n": 3,
        "seed": 0,
    }


@pytest.mark.parametrize("change", [lambda config: None, synthetic], ids=["ph2", "synthetic"])
def test_data_is_only_read(
    change: Callable[[dict[str, Any]], object],
    run: Path,
    data: Path,
    script: Callable[..., Ended],
    tmp_path: Path,
) -> None:
    """Training on synthetic data draws it where there is none; opening a run does not."""
    change_config(run, change)
    for root in (data, data.parent / "none", data.parent):
        change_config(run, lambda config, root=root: config["data"].update(root=str(root)))
        before = state(data.parent)
        for name, *more in SCRIPTS:
            ended = script(name, run, *more, *(("--out", tmp_path / "out") if not more else ()))
            assert "Traceback" not in ended.err
            assert (ended.code != 1) == (root == data), ended
        assert state(data.parent) == before


def test_a_repetition_writes_to_no_path_of_the_config(
    run: Path, data: Path, finished: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"

    def lead_elsewhere(config: dict[str, Any]) -> None:
        config["run_dir"] = config["logger"]["save_dir"] = str(elsewhere / "run")
        config["data"] |= {"cache_dir": str(elsewhere / "cache"), "root": str(data)}
        config["data"]["split"]["file"] = str(elsewhere / "splits.json")

    change_config(run, lead_elsewhere)
    before, there = contents(run), state(data.parent)
    ended = script("reproduce", run, "--out", tmp_path / "again")
    assert ended.code in (0, 3), ended.err
    assert (tmp_path / "again" / "tensorboard").is_dir()
    assert not elsewhere.exists()
    assert contents(run) == before
    assert state(data.parent) == there


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "data": (None, [], "x"),
        "data.root": (None, 5, ["a"], {}),
        "data.size": (None, "32", 0, -32, 32.0, True, 2**40, [32]),
        "data.cases": (None, "ph2", [], {}, {"_target_": "seglab.data.layouts.ph2_cases"}),
        "data.cases._partial_": (False, "x", 1),
        "data.cases.root": ("/", None),
        "data.split": (None, 5, {}),
    }.items(),
)
def test_a_config_without_what_is_needed_is_refused(
    key: str, values: tuple, run: Path, refuses: Callable[..., None]
) -> None:
    whole = (run / "config.yaml").read_bytes()
    for value in values:
        change_config(run, lambda config, value=value: put_in(key)(config, value))
        refuses(run, "config.yaml", key.removesuffix("._partial_").removesuffix(".root"))
        (run / "config.yaml").write_bytes(whole)


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "git": (None, [], "x", {"source_sha256": []}),
        "versions": (None, [], "x", {"torch": []}),
        "machine": (None, [], "x", {"threads": "x"}, {"threads": 10**9}),
        "status": (None, "running", []),
    }.items(),
)
def test_a_record_may_hold_anything(
    key: str, values: tuple, run: Path, script: Callable[..., Ended]
) -> None:
    record = json.loads((run / "run.json").read_text())
    for value in values:
        (run / "run.json").write_text(json.dumps(record | {key: value}))
        ended = script("reproduce", run, "--check")
        assert "Traceback" not in ended.err
        assert ended.code in (0, 1, 3), ended.err
        if ended.code == 1:
            assert "run.json" in ended.err.splitlines()[-1] or str(run) in ended.err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("data.split.val", value) for value in ("x", None, -1, [1])),
        *(("data.split.fold", value) for value in ("x", 99, 0.5)),
        *(("data.split.more", value) for value in (1,)),
        *(("data.batch_size", value) for value in ("x", None)),
        *(("data.more", value) for value in (1,)),
    ],
)
def test_a_split_that_cannot_be_made_again_is_refused(
    key: str, value: Any, run: Path, script: Callable[..., Ended]
) -> None:
    change_config(run, lambda config: put_in(key)(config, value))
    ended = script("reproduce", run, "--check")
    assert ended.code == 1, ended.err
    assert ended.err.splitlines()[-1].startswith("error: ")
    assert key in ended.err.splitlines()[-1]


@pytest.mark.parametrize("value", [None, 5, [], {}, ["a"]])
def test_hashes_of_a_split_that_are_none_are_refused(
    value: Any, run: Path, data: Path, refuses: Callable[..., None], script: Callable[..., Ended]
) -> None:
    """A stranger makes the checkpoint fit: it names the hash of the split."""
    split = json.loads((run / "splits.json").read_text())
    split["sha256"][split["train"][0]] = value
    (run / "splits.json").write_text(json.dumps(split))
    split_hash = hash_json([split[key] for key in ("train", "val", "test", "sha256")])
    change_checkpoint(run, lambda content: content["seglab"].update(split_hash=split_hash))
    refuses(run, "splits.json")
    ended = script("evaluate", run, "--data", data)
    assert ended.code == 1, ended.err
    assert "splits.json" in ended.err


def test_a_split_without_a_hash_of_each_case_is_scored_or_refused(
    run: Path, data: Path, script: Callable[..., Ended]
) -> None:
    split = json.loads((run / "splits.json").read_text())
    del split["sha256"][split["train"][0]]
    (run / "splits.json").write_text(json.dumps(split))
    split_hash = hash_json([split[key] for key in ("train", "val", "test", "sha256")])
    change_checkpoint(run, lambda content: content["seglab"].update(split_hash=split_hash))
    ended = script("evaluate", run, "--data", data)
    assert "Traceback" not in ended.err
    assert ended.code == 0 or "splits.json" in ended.err


@pytest.mark.parametrize("size", [33, 2, 31])
def test_a_size_that_the_network_does_not_take_is_refused(
    size: int, run: Path, script: Callable[..., Ended]
) -> None:
    change_config(run, lambda config: config["data"].update(size=size))
    ended = script("evaluate", run)
    assert ended.code == 1, ended.err
    assert "config.yaml" in ended.err.splitlines()[-1]
    assert "size" in ended.err.splitlines()[-1]


@pytest.mark.parametrize("value", [1e38, -1e38])
def test_a_network_that_gives_no_numbers_is_refused(
    value: float, run: Path, script: Callable[..., Ended]
) -> None:
    """Finite weights may give infinite values, and their differences nothing."""

    def ruin(content: dict[str, Any]) -> None:
        for tensor in content["state_dict"].values():
            if tensor.is_floating_point():
                tensor.fill_(value)

    change_checkpoint(run, ruin)
    ended = script("evaluate", run)
    assert ended.code == 1, ended.err
    assert str(run) in ended.err.splitlines()[-1] or "IMD" in ended.err.splitlines()[-1]


# --trust.


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "libraries"
    for name, code in {
        "libgood/__init__.py": "import os\nfrom libother import Other\nfrom .nets import Net",
        "libgood/nets.py": "import subprocess\nclass Net:\n    def __init__(self):\n        pass\n"
        "made = Net()",
        "libgoodevil/__init__.py": "class Net:\n    pass",
        "libother/__init__.py": "class Other:\n    pass",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    yield
    for name in [name for name in sys.modules if name.startswith("lib") and "goo" in name]:
        del sys.modules[name]
    sys.modules.pop("libother", None)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("trust", "names", "refused"),
    [
        (
            ("libgood",),
            ("libgood.Net", "libgood.nets.Net"),
            (
                *("libgoodevil.Net", "libgood", "libgood.os.system", "libgood.nets.subprocess.run"),
                *("libgood.Other", "libgood.os", "libgood.Net.__subclasses__", "os.system"),
                *("libgood.Net.__init__.__globals__", "xlibgood.Net", "libgood .Net"),
            ),
        ),
        (("libgood.nets",), ("libgood.nets.Net", "libgood.nets.made"), ("libgood.Net",)),
        (("libgood", "libother"), ("libgood.Other", "libother.Other"), ("libgoodevil.Net",)),
        (("",), (), ("libgood.Net", "os.system")),
        (("os.",), (), ("os.system",)),
    ],
)
def test_a_trusted_module_admits_its_own_names(
    trust: tuple[str, ...], names: tuple[str, ...], refused: tuple[str, ...]
) -> None:
    for name in names:
        check_targets({"x": {"_target_": name}}, "config.yaml", trust)
    for name in refused:
        with pytest.raises(InputError, match="names code that is not"):
            check_targets({"x": {"_target_": name}}, "config.yaml", trust)


@pytest.mark.usefixtures("libraries")
def test_only_what_the_option_names_is_trusted(
    run: Path, script: Callable[..., Ended], refuses: Callable[..., None]
) -> None:
    change_config(run, lambda config: config["callbacks"].update(x={"_target_": "libgood.Net"}))
    assert script("evaluate", run, "--trust", "libgood").code == 0
    refuses(run, "libgood.Net", "--trust libgood")
    refuses(run, "libgood.Net", options=("--trust", "libgoodevil"))
    call = {"_target_": "libgood.os.system", "command": "true"}
    change_config(run, lambda config: config["callbacks"].update(x=call))
    refuses(run, "libgood.os.system", options=("--trust", "libgood"))


# Seals and hashes.


def broken(file: Path, position: int, bits: int) -> Path:
    content = bytearray(file.read_bytes())
    content[position] ^= bits
    out = file.with_name("broken.ckpt")
    out.write_bytes(content)
    return out


def test_a_seal_catches_any_byte(run: Path) -> None:
    size = (run / BEST).stat().st_size

    def check(position: int, bits: int) -> None:
        with pytest.raises(InputError, match=r"broken\.ckpt: "):
            read_checkpoint(broken(run / BEST, position, bits))

    anywhere = given(st.integers(0, size - 1), st.integers(1, 255))
    settings(max_examples=200, deadline=None, derandomize=True, database=None)(anywhere(check))()
    # The seal itself, the end of the archive that holds it, and the first entry's header.
    for position in (*range(size - 180, size), *range(60)):
        check(position, 1)


@pytest.mark.long
def test_a_seal_catches_every_byte(run: Path) -> None:
    for position in range((run / BEST).stat().st_size):
        with pytest.raises(InputError):
            read_checkpoint(broken(run / BEST, position, 128 >> position % 8))


@pytest.mark.parametrize("length", [0, 1, 79, 80, 81, 1000, -1, -2, -79])
def test_a_checkpoint_that_is_cut_short_is_refused(
    length: int, run: Path, refuses: Callable[..., None]
) -> None:
    (run / BEST).write_bytes((run / BEST).read_bytes()[:length])
    refuses(run, "best.ckpt")


def test_one_damaged_byte_is_refused_by_name(run: Path, refuses: Callable[..., None]) -> None:
    broken(run / BEST, 20_000, 1).rename(run / BEST)
    refuses(run, "best.ckpt", "damaged")


def test_equal_weights_have_equal_hashes_whatever_else_a_file_holds(run: Path) -> None:
    expected = hash_weights(run / BEST)

    def other(content: dict[str, Any]) -> None:
        content["epoch"], content["x"] = 77, torch.rand(5)
        content["optimizer_states"].clear()
        content["seglab"] |= {"threshold": 0.25, "classes": ["a"]}
        weights = content["state_dict"]
        items = list(weights.items())
        weights.clear()
        for name, tensor in reversed(items):
            # Other places in memory, another order, parameters in place of tensors.
            turned = tensor.T.contiguous().T if tensor.dim() == 2 else tensor.clone()
            if tensor.dim() == 4:
                turned = tensor.contiguous(memory_format=torch.channels_last)
            weights[name] = torch.nn.Parameter(turned) if turned.is_floating_point() else turned

    change_checkpoint(run, other)
    assert hash_weights(run / BEST) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.__setitem__(
            "net.head.bias", torch.nextafter(w["net.head.bias"], torch.ones(1))
        ),
        lambda w: w.__setitem__("net.head.bias", w["net.head.bias"].reshape(1, 1)),
        lambda w: w.__setitem__("net.head.bias", w["net.head.bias"].view(torch.int32)),
        lambda w: w.__setitem__("net.head.bais", w.pop("net.head.bias")),
        lambda w: w.pop("net.head.bias"),
        lambda w: w.__setitem__("x", torch.zeros(0)),
    ],
    ids=["value", "shape", "type", "name", "fewer", "more"],
)
def test_other_weights_have_another_hash(
    change: Callable[[dict[str, Any]], object], run: Path
) -> None:
    before = hash_weights(run / BEST)
    change_checkpoint(run, lambda content: change(content["state_dict"]))
    assert hash_weights(run / BEST) != before


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "epoch": (None, "3", -1, 0.5, 2**70),
        "global_step": (None, "3"),
        "state_dict": (None, [], torch.ones(1), {5: torch.ones(1)}, {"net.x": "no tensor"}),
        "seglab": (None, "config", [], torch.ones(1)),
        "seglab.threshold": (None, "0.5", 0.0, 1.0, -1.0, float("nan"), torch.tensor(0.5), True),
        "seglab.split_hash": (None, 5, torch.ones(1)),
        "seglab.config": (None, [], "model", {}),
        "seglab.config.model": (None, [], "model", {}),
        "seglab.config.x": (torch.ones(1), b"bytes", (1, 2), {(1, 2): 3}, 2**70, {1j}),
    }.items(),
)
def test_a_checkpoint_without_what_is_needed_is_refused(key: str, values: tuple, run: Path) -> None:
    whole = (run / BEST).read_bytes()
    for value in values:
        change_checkpoint(run, lambda content, value=value: put_in(key)(content, value))
        with pytest.raises(InputError, match=r"best\.ckpt: "):
            load_network(run / BEST)
        (run / BEST).write_bytes(whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(
    value: float, run: Path, refuses: Callable[..., None]
) -> None:
    change_checkpoint(run, lambda content: content["state_dict"]["net.head.bias"].fill_(value))
    refuses(run, "best.ckpt", "not finite")


def test_a_picture_in_a_format_that_starts_a_program_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EPS is drawn by Ghostscript; a file's name says nothing of what it is."""
    from PIL import EpsImagePlugin, Image

    from seglab.data.images import read_image, read_mask

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append(1))
    file = tmp_path / "picture.bmp"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(file, format="EPS")
    for read in (read_image, read_mask):
        with pytest.raises(InputError, match=r"picture\.bmp: cannot be read as an image"):
            read(file)
    assert not started
    # Else what starts it has another name by now. What it gives here is no picture.
    with Image.open(file) as image, pytest.raises((AssertionError, AttributeError)):
        image.load()
    assert started


def test_a_good_run_is_opened(run: Path, script: Callable[..., Ended]) -> None:
    """What all the others are measured by."""
    assert script("evaluate", run).code == 0
    assert script("reproduce", run, "--check").code in (0, 3)
    net, metadata = load_network(run / BEST)
    assert not net.training
    assert metadata["epoch"] == 1
