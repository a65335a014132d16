"""Run directories of anyone: only read, refused in one line where a file is not as it should be."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.spoil import BEST, Payload, change_checkpoint, change_config, put_at
from helpers.tiny import Ended

from seglab.networks.encoders import EfficientNetLite0

SCRIPTS = (("evaluate",), ("reproduce", "--check"))


def test_scripts_refuse_a_payload_in_one_line(
    run: Path, marker: Path, script: Callable[..., Ended]
) -> None:
    change_checkpoint(run, put_at("x", Payload(marker)))
    for name, *options in SCRIPTS:
        ended = script(name, run, *options)
        assert ended.code == 1 and not marker.exists()
        assert len(ended.err.splitlines()) == 1 and ended.err.startswith("error: ")


@pytest.mark.parametrize("file", ["run.json", "splits.json"])
def test_another_format_or_no_record_is_refused(
    file: str, run: Path, refuses: Callable[..., None]
) -> None:
    for content in ("[1]", '{"format": 1}', "", "[" * 10**5):
        (run / file).write_text(content)
        refuses(run, file)
    (run / file).write_bytes(b"\xff")
    refuses(run, file)
    os.truncate(run / file, 2**40)
    refuses(run, file)


def test_a_split_without_the_hash_of_a_case_is_refused(
    run: Path, refuses: Callable[..., None]
) -> None:
    split = json.loads((run / "splits.json").read_text())
    del split["sha256"][split["train"][0]]
    (run / "splits.json").write_text(json.dumps(split))
    refuses(run, "splits.json")


@pytest.mark.parametrize("file", ["config.yaml", "splits.json", BEST])
def test_a_pipe_is_not_waited_on(file: str, run: Path, refuses: Callable[..., None]) -> None:
    (run / file).unlink()
    os.mkfifo(run / file)
    refuses(run, file, "regular file")


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
    (data.parent / "empty").mkdir()
    for root in (data, data.parent / "none", data.parent / "empty"):
        change_config(run, lambda config, root=root: config["data"].update(root=str(root)))
        before = state(data.parent)
        for name, *more in SCRIPTS:
            ended = script(name, run, *more, *(("--out", tmp_path / "out") if not more else ()))
            assert "Traceback" not in ended.err
            assert (ended.code != 1) == (root == data), ended
        assert state(data.parent) == before


def test_a_repetition_writes_to_no_path_of_the_config(
    run: Path, data: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"

    def lead_elsewhere(config: dict[str, Any]) -> None:
        config["run_dir"] = config["logger"]["tensorboard"]["save_dir"] = str(elsewhere / "run")
        config["logger"]["tensorboard"]["name"] = "../name"
        config["trainer"]["profiler"] = {
            "_target_": "lightning.pytorch.profilers.PyTorchProfiler",
            "dirpath": str(elsewhere / "profile"),
            "filename": "profile",
        }
        config["data"] |= {"cache_dir": str(elsewhere / "cache"), "root": str(data)}
        config["data"]["split"]["file"] = str(elsewhere / "splits.json")

    change_config(run, lead_elsewhere)
    run_before, data_before = state(run), state(data.parent)
    ended = script("reproduce", run, "--out", tmp_path / "again")
    assert ended.code in (0, 3), ended.err
    assert (tmp_path / "again" / "tensorboard").is_dir()
    assert not elsewhere.exists()
    assert state(run) == run_before
    assert state(data.parent) == data_before


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


def test_weights_may_lie_outside_and_are_only_read(
    script: Callable[..., Ended],
    tiny_ph2: Path,
    cache_dir: Path,
    marker: Path,
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
    torch.save({"conv_stem.weight": Payload(marker)}, file)
    assert script("evaluate", run).code == 0
    ended = script("reproduce", run, "--out", tmp_path / "again")
    assert ended.code == 1 and not marker.exists()
    assert ended.err.splitlines()[-1].startswith(
        f"error: model: {file}: does not hold the encoder's weights"
    )
    # None: whoever scores has no need of them.
    file.unlink()
    assert script("evaluate", run).code == 0
    ended = script("reproduce", run, "--check")
    assert ended.code == 1
    assert f"error: model: weights={file}: no such file" in ended.err
