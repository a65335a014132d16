"""Overrides are quoted, told apart and named so that what reads them finds what was meant."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from seglab.runs.overrides import (
    format_resumption,
    job_names,
    parse_overrides,
    quote_value,
    varying_overrides,
)

PARSER = OverridesParser.create()
# What file systems take and a user may have: spaces, quotes, brackets, signs of shell and Hydra.
SIGNS = "abZ09 '\"()[]{}=,:;$&*!?#%@^~|<>+-_."


@given(st.text() | st.text(SIGNS).map("/".__add__))
@example("/a\\'b")
@example("/ends with \\")
@example("/two\nlines")
@example("/home/josé/runs")
@example("null")
def test_a_quoted_text_is_read_back_whole(text: str) -> None:
    assert PARSER.parse_override(f"key={quote_value(text)}").value() == text


@given(
    folder=st.text(SIGNS, min_size=1).map(lambda name: Path("/runs") / name),
    arguments=st.lists(
        st.sampled_from(["-m", "seed=0,1", "model='a b'", "+task.x=$HOME"]), unique=True
    ),
)
def test_the_same_command_holds_the_folder_and_all_else_that_was_given(
    folder: Path, arguments: list[str]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        given = ["/bin/seglab", "train", *arguments, "hydra.sweep.dir=elsewhere"]
        patched.setattr(sys, "argv", given)
        command = format_resumption("hydra.sweep.dir", folder)
    seglab, train, *others = shlex.split(command)
    assert (seglab, train) == ("seglab", "train")
    (place,) = (other for other in others if other not in arguments)
    assert [other for other in others if other != place] == arguments
    override = PARSER.parse_override(place)
    assert (override.key_or_group, override.value()) == ("hydra.sweep.dir", str(folder))


@pytest.mark.parametrize(
    "given",
    [
        ["-m", "a=1", "b=2"],
        ["--config-dir", "d", "a=1"],
        ["-m"],
    ],
)
def test_the_same_command_is_one_that_hydra_takes(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/seglab", "train", *given])
    _, _, *arguments = shlex.split(format_resumption("hydra.sweep.dir", Path("/runs")))
    then, now = (get_args_parser().parse_args(a) for a in (given, arguments))
    assert {*now.overrides} == {*then.overrides, "hydra.sweep.dir=/runs"}
    assert (now.multirun, now.config_dir) == (then.multirun, then.config_dir)


def test_what_varies_is_told_in_the_names() -> None:
    jobs = [
        ["model=unet", "data.split.fold=0", "seed=1", "+task.loss.weight=2"],
        ["model=unet", "data.split.fold=1", "seed=1", "+task.loss.weight=2"],
        ["model=segnet", "data.split.fold=0", "seed=1"],
    ]
    assert parse_overrides(["+a.b=1=2", "~c", "++d=e"]) == {"a.b": "1=2", "c": "", "d": "e"}
    varies = varying_overrides(jobs)
    assert varies[1] == {"model": "unet", "data.split.fold": "1", "task.loss.weight": "2"}
    assert job_names(varies) == [
        "model-unet_fold-0_weight-2",
        "model-unet_fold-1_weight-2",
        "model-segnet_fold-0",
    ]
    # Two keys that end alike are told whole; a single job has nothing to tell.
    assert job_names([{"data.seed": "1", "seed": "2"}]) == ["data.seed-1_seed-2"]
    assert job_names(varying_overrides([["seed=1"]])) == ["0"]
    # The same text after signs were replaced; the same beginning.
    assert len(set(job_names([{"a": "x/y"}, {"a": "x:y"}, {"a": "x_y"}]))) == 3
    long = job_names([{"a": "b" * 300 + str(i)} for i in range(2)])
    assert len(set(long)) == 2
    assert all(re.fullmatch(r"a-b{118}-[0-9a-f]{8}", name) for name in long)
    names = job_names([{"data.root": "/data/a"}, {"data.root": "/data/A"}])
    assert len({name.casefold() for name in names}) == 2
    # A job keeps its name, whatever else is swept over with it.
    assert job_names([{"a": "b" * 300 + "0"}]) == long[:1]


JOBS = st.lists(
    st.dictionaries(
        st.sampled_from(["seed", "data.seed", "model", "data.split.fold", "a.b-c"]),
        st.text(max_size=200) | st.text(SIGNS, max_size=5),
        min_size=1,
    ),
    min_size=1,
    max_size=5,
)


@given(JOBS)
def test_names_are_of_one_job_alone_and_of_no_special_meaning(jobs: list[dict[str, str]]) -> None:
    names = job_names(jobs)
    for i, name in enumerate(names):
        assert not re.search(r"[\s/\\:*?\"'<>|$&;(){}\[\]!#~`\x00]", name)
        assert PARSER.parse_override(f"key=/runs/{name}").value() == f"/runs/{name}"
        assert name not in (".", "..") and not name.startswith(("-", "."))
        assert all(jobs[i] == jobs[j] for j, other in enumerate(names) if other == name)
        assert len(name) <= 129
