"""Command line of train.py: what Hydra is given, and what is said about what it cannot read."""

import shlex
from collections.abc import Callable

import pytest
from helpers.tiny import Ended, refused
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from seglab.cli.arguments import prepare_arguments
from seglab.core.errors import InputError, quote_for_shell

PARSER = OverridesParser.create()
# Signs of Hydra's grammar, and of none: a comma alone separates the values of a sweep.
SIGNS = "abZ09 '\"()[]{}=;:&*!?#%@^|<>+-_.~üé数"


def read_path(argument: str) -> object:
    """What Hydra reads as the value of an override that has been prepared."""
    (prepared,) = prepare_arguments([argument])
    return PARSER.parse_override(prepared).value()


@given(st.text(SIGNS).map(lambda name: f"/data/x{name}x"))
@example("/my data/x=1")
@example("/data/it's a [test], n=1 ü")
@example("/data (1)")
@example("C:\\data\\x")
@example("5")
@example("[a]")
@pytest.mark.parametrize("key", ["data.root", "hydra.run.dir", "+task.own.path"])
def test_a_path_is_read_as_it_is_written(key: str, path: str) -> None:
    if key == "+task.own.path" and not path.startswith("/"):
        return  # only of known keys is it sure that a path is meant
    assert read_path(f"{key}={path}") == path


@pytest.mark.parametrize("text", ["~/x", "'~/x'", '"~/x"'])
def test_a_home_is_expanded(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for home in ("/home/müller (a)", "/home/b"):
        monkeypatch.setenv("HOME", home)
        assert read_path(f"data.root={text}") == f"{home}/x"
        assert read_path(f"+logger.own.dir={text}") == f"{home}/x"
    (several,) = prepare_arguments(["data.root=~/a,~/b"])
    values = PARSER.parse_override(several).sweep_string_iterator()
    assert [*values] == ["/home/b/a", "/home/b/b"]
    assert read_path("data.root=/a~/b") == "/a~/b"


@pytest.mark.parametrize(
    "argument",
    ["data.root=null", "data.root='/a b'", "data.root=/a,/b", "name='a~'", "data.classes=[a,b]"],
)
def test_what_hydra_reads_stays_as_it_is(argument: str) -> None:
    assert prepare_arguments([argument]) == [argument]


def test_overrides_may_stand_on_both_sides_of_an_option() -> None:
    given = ["seed=1", "-m", "data.size=32,64", "~logger", "--config-dir", "/c", "name=a"]
    prepared = get_args_parser().parse_args(prepare_arguments(given))
    assert prepared.multirun and prepared.config_dir == "/c"
    assert prepared.overrides == ["seed=1", "data.size=32,64", "~logger", "name=a"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("--data x", ["--data:", "data=x"]),
        ("--data=x", ["--data=x:", "data=x,"]),
        ("--model unet seed=1", ["model=unet"]),
        ("data.root x", ["data.root=x"]),
        ("model = unet", ["model=unet"]),
        ("model =unet", ["model=unet"]),
        ("unet", ["unet:", "model=unet"]),
        ("-m seed=1, 2", ["2:", "without dashes and blanks"]),
        ("data=null", ["data=null: name one of", "synthetic"]),
        ("logger=null", ["leave it out with ~logger", "tensorboard"]),
        ("data.root=", ["data.root=: expected a path, such as data.root="]),
    ],
)
def test_what_is_no_override_is_named_with_what_to_write(command: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        prepare_arguments(shlex.split(command))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=1,2", ["train.py -m seed=1,2", '''"seed='1,2'"''']),
        ("data.split.fold=range(5)", ['-m "data.split.fold=range(5)"']),
        ("task.optimizer.lr=0,001", ["a number has a point"]),
        ("name=meine Läufe", ['''"name='meine Läufe'"''']),
        ("model=unet data.size=64", ["several overrides are an argument each"]),
        ("data.classes=[a, b", ["data.classes=[a, b:", "[a,b]"]),
        ("model=Unet", ["model=Unet: expected one of segnet, unet"]),
        ("task.schedule=cosine", ["task.schedule: unknown", "perhaps task.lr_scheduler;"]),
        ("lr=0.01", ["perhaps task.optimizer.lr;"]),
        ("batchsize=1", ["data.batch_size"]),
    ],
)
def test_a_refused_override_is_shown_as_it_must_be_written(
    override: str, words: list[str], script: Callable[..., Ended]
) -> None:
    ended = script("train", override)
    refused(ended, None, *words)
    assert "hydra.cc" not in ended.err and "Config search path" not in ended.err


@given(st.lists(st.text(SIGNS + "$`\\!\n,", min_size=1), min_size=1))
def test_words_are_quoted_for_a_shell(words: list[str]) -> None:
    assert shlex.split(quote_for_shell(*words)) == words
