"""Checkpoints: written atomically with a hash, read without running code."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.spoil import (
    BEST,
    Payload,
    add_checksum,
    change_checkpoint,
    put_at,
    to_archive,
    to_pickle,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from seglab.core.errors import InputError
from seglab.runs.checkpoints import (
    hash_weights,
    load_network,
    read_checkpoint,
    set_threshold,
)


@pytest.mark.parametrize("form", [to_archive, to_pickle])
def test_a_payload_is_not_unpickled(
    form: Callable[[Any], bytes], run: Path, marker: Path, refuses: Callable[..., None]
) -> None:
    content = form(torch.load(run / BEST, weights_only=True) | {"x": Payload(marker)})
    (run / BEST).write_bytes(add_checksum(content))
    refuses(run, "best.ckpt")
    with pytest.raises(InputError, match=r"best\.ckpt: "):
        hash_weights(run / BEST)
    assert not marker.exists()


def test_the_payload_would_run(marker: Path) -> None:
    """Otherwise the tests of payloads show nothing."""
    torch.load(io.BytesIO(to_archive({"x": Payload(marker)})), weights_only=False)
    assert marker.exists()


def test_a_config_without_end_is_refused(run: Path, refuses: Callable[..., None]) -> None:
    doubled: list[Any] = []
    for _ in range(40):
        doubled = [doubled] * 2
    whole = (run / BEST).read_bytes()
    for change in (
        put_at("seglab.config.x", doubled),
        lambda content: content["seglab"]["config"].update(x=content["seglab"]["config"]),
        put_at("seglab.config.x", ({"_target_": "os.system"},)),
    ):
        change_checkpoint(run, change)
        refuses(run, "best.ckpt")
        (run / BEST).write_bytes(whole)


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "epoch": (None, "3", -1, 0.5, 2**70),
        "state_dict": (None, [], torch.ones(1), {5: torch.ones(1)}, {"net.x": "no tensor"}),
        "seglab": (None, "config", [], torch.ones(1)),
        "seglab.format": (None, 0, 1, "2"),
        "seglab.threshold": (None, "0.5", 0.0, 1.0, float("nan"), torch.tensor(0.5), True),
        "seglab.split_hash": (None, 5, torch.ones(1)),
        "seglab.config": (None, [], "model", {}),
        "seglab.config.model": (None, [], "model", {}),
        "seglab.config.x": (torch.ones(1), b"bytes", {(1, 2): 3}, {1j}),
    }.items(),
)
def test_a_checkpoint_with_a_wrong_value_is_refused(key: str, values: tuple, run: Path) -> None:
    whole = (run / BEST).read_bytes()
    for value in values:
        change_checkpoint(run, put_at(key, value))
        with pytest.raises(InputError, match=r"best\.ckpt: "):
            load_network(run / BEST)
        (run / BEST).write_bytes(whole)


def test_weights_that_do_not_fit_or_are_not_finite_are_refused(
    run: Path, refuses: Callable[..., None]
) -> None:
    nan = torch.tensor([float("nan")])
    for bias, words in ((torch.ones(2), "not those of the network"), (nan, "not finite")):
        change_checkpoint(run, lambda c, bias=bias: c["state_dict"].update({"net.head.bias": bias}))
        refuses(run, "best.ckpt", words)


def test_a_checkpoint_of_another_size_is_refused(run: Path, refuses: Callable[..., None]) -> None:
    change_checkpoint(run, put_at("seglab.config.data.size", 64))
    refuses(run, "best.ckpt", "holds another network", "data.size: 64")


def test_a_checkpoint_of_another_split_is_refused(run: Path, refuses: Callable[..., None]) -> None:
    change_checkpoint(run, put_at("seglab.split_hash", "0"))
    refuses(run, "splits.json", "is not the split")


def test_the_hash_catches_any_changed_byte(run: Path) -> None:
    whole, changed = (run / BEST).read_bytes(), run / "changed.ckpt"

    def check(position: int, bits: int) -> None:
        content = bytearray(whole)
        content[position] ^= bits
        changed.write_bytes(content)
        with pytest.raises(InputError, match=r"changed\.ckpt: "):
            read_checkpoint(changed)

    anywhere = given(st.integers(0, len(whole) - 1), st.integers(1, 255))
    settings(max_examples=100, deadline=None, derandomize=True, database=None)(anywhere(check))()
    for position in (*range(-100, 0), *range(30)):  # the hash, the archive's first header
        check(position, 1)


@pytest.mark.parametrize("length", [0, 80, -1])
def test_a_checkpoint_that_is_cut_short_is_refused(
    length: int, run: Path, refuses: Callable[..., None]
) -> None:
    (run / BEST).write_bytes((run / BEST).read_bytes()[:length])
    refuses(run, "best.ckpt")


def test_equal_weights_have_equal_hashes_whatever_else_a_file_holds(run: Path) -> None:
    expected = hash_weights(run / BEST)

    def change(content: dict[str, Any]) -> None:
        content["epoch"], content["x"] = 77, torch.rand(5)
        content["optimizer_states"].clear()
        weights = content["state_dict"]
        items = list(weights.items())
        weights.clear()
        for name, tensor in reversed(items):  # another order, other places in memory
            channels_last = tensor.dim() == 4
            weights[name] = (
                tensor.contiguous(memory_format=torch.channels_last) if channels_last else tensor
            )

    change_checkpoint(run, change)
    set_threshold(run / BEST, 0.25)
    assert hash_weights(run / BEST) == expected
    assert read_checkpoint(run / BEST)["seglab"]["threshold"] == 0.25


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.update({"net.head.bias": torch.nextafter(w["net.head.bias"], torch.ones(1))}),
        lambda w: w.update({"net.head.bias": w["net.head.bias"].reshape(1, 1)}),
        lambda w: w.update({"net.head.bais": w.pop("net.head.bias")}),
        lambda w: w.update({"x": torch.zeros(0)}),
    ],
    ids=["value", "shape", "name", "more"],
)
def test_other_weights_have_another_hash(change: Callable[[Any], object], run: Path) -> None:
    before = hash_weights(run / BEST)
    change_checkpoint(run, lambda content: change(content["state_dict"]))
    assert hash_weights(run / BEST) != before


def test_a_whole_checkpoint_is_read(run: Path) -> None:
    net, metadata = load_network(run / BEST)
    assert not net.training
    assert metadata["epoch"] == 1 and metadata["classes"].names == ("lesion",)
