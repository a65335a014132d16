"""Command line of train.py: what Hydra is given, and what is said about what it cannot read."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable

import pytest
from helpers.tiny import Ended, refused
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import example, given
from hypothesis import strategies as st

from seglab.cli.arguments import prepare_arguments
from seglab.cli.compose import compose
from seglab.cli.errors import find_input_error
from seglab.core.commands import quote_for_shell
from seglab.core.errors import InputError

PARSER = OverridesParser.create()
# Signs of Hydra's grammar, and of none: a comma alone separates the values of a sweep.
SIGNS = "abZ09 '\"()[]{}=;:&*!?#%@^|<>+-_.~üé数"


@given(st.text(SIGNS).map(lambda name: f"/data/x{name}x"))
@example("/my data/x=1")
@example("/data/it's a [test], n=1 ü")
@example("/data (1)")
@example("C:\\data\\x")
def test_a_path_is_read_as_it_is_or_shown_as_it_must_be_quoted(path: str) -> None:
    (override,) = prepare_arguments([f"data.root={path}"])
    try:
        (read,) = PARSER.parse_overrides([override])
    except HydraException as error:
        line = find_input_error(error)
        assert line is not None
        (quoted,) = shlex.split(
            line.removeprefix(f"{override}: text with such signs is quoted twice: ")
        )
        (read,) = PARSER.parse_overrides([quoted])
    assert read.value() == path


@pytest.mark.parametrize("text", ["~/x", "'~/x'", '"~/x"'])
def test_a_home_is_expanded(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/b")
    given = [f"data.root={text}", "hydra.run.dir=~", "data.root=~/a,~/b", "name=/a~/b"]
    expected = [f"data.root={text}", "hydra.run.dir=~", "data.root=~/a,~/b"]
    expected = [argument.replace("~", "/home/b") for argument in expected]
    assert prepare_arguments(given) == [*expected, "name=/a~/b"]


def test_overrides_may_stand_on_both_sides_of_an_option() -> None:
    given = ["seed=1", "-m", "data.size=32,64", "~logger", "--config-dir", "/c", "name=a"]
    prepared = get_args_parser().parse_args(prepare_arguments(given))
    assert prepared.multirun and prepared.config_dir == "/c"
    assert prepared.overrides == ["seed=1", "data.size=32,64", "~logger", "name=a"]


@pytest.mark.parametrize(
    ("override", "section"),
    [
        *(
            (f"{group}={name}", group)
            for group in ("callbacks", "logger")
            for name in ("null", "none")
        ),
        *((f"~{group}", group) for group in ("callbacks", "logger")),
    ],
)
def test_callbacks_and_loggers_can_be_left_out(override: str, section: str) -> None:
    assert compose([override])[section] == {}
    assert compose()[section] != {}
    assert prepare_arguments(["-m", "callbacks=null,ema"]) == ["-m", "callbacks=none,ema"]


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("--data x", "--data"),
        ("--data=x", "--data=x"),
        ("model = unet", "model"),
        ("data.root x", "data.root"),
        ("unet", "unet"),
        ("-m seed=1, 2", "2"),
    ],
)
def test_what_is_no_override_is_named(command: str, word: str) -> None:
    with pytest.raises(InputError, match=f"^{word}: expected an override, written KEY=VALUE "):
        prepare_arguments(shlex.split(command))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=1,2", ["a sweep, -m", '''"seed='1,2'"''']),
        ("task.optimizer.lr=0,001", ["a decimal number has a point, task.optimizer.lr=0.001"]),
        ("callbacks=ema,early_stopping", ['"callbacks=[ema,early_stopping]"', "-m"]),
        ("run_dir=null", ["run_dir=None: expected text"]),
        ("name=meine Läufe", ['''"name='meine Läufe'"''']),
        ("data=null", ["a group is left out by ~"]),
        ("data.classes=[a, b", ["data.classes=[a, b:", "[a,b]"]),
        ("model=Unet", ["model=Unet: expected one of segnet, "]),
        (
            "task.lr_scheduler._target_=x",
            ["lr_scheduler has no keys", "+task.lr_scheduler._target_="],
        ),
        ("trainer.max_steps=10", ["trainer.max_steps: unknown", "with +trainer.max_steps=..."]),
        ("logger=[tensorboard,x]", ["logger=x: expected one of the files of conf/logger"]),
        *(
            (override, [f"{override.partition('=')[0]}: unknown config key; ", instead])
            for override, instead in {
                "tags=[a,b]": "name=",
                "ckpt_path=x": "init=RUN",
                "debug=default": "trainer=debug",
                "model.optimizer.lr=0.1": "task.optimizer.lr=",
                "lr=0.1": "task.optimizer.lr=",
                "model.scheduler.patience=3": "task.lr_scheduler",
                "hparams_search=mnist_optuna": "sweep=tpe",
                "paths.data_dir=x": "data.root",
                "extras.print_config=true": "--cfg job",
                "test=false": "evaluate",
                "callbacks.early_stopping.patience=3": "callbacks=early_stopping",
            }.items()
        ),
        ("task.schedule=cosine", ["task.schedule: unknown", "loss, optimizer, lr_scheduler,"]),
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


@pytest.mark.parametrize("word", ["data=[ph2,isic2018]", "model=[unet,segnet]"])
def test_several_of_a_group_that_has_one_are_refused(word: str) -> None:
    with pytest.raises(InputError, match=r"expected one name; .* data=dermoscopy"):
        compose([word])
    prepare_arguments(["experiment=[best,classes]", "data.classes=[a,b]", "data=ph2"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_how_long_threads_wait_is_set_before_torch_reads_it(
    given: dict[str, str], expected: str
) -> None:
    code = "import os, sys, seglab.cli.commands as c; print(os.environ.get('GOMP_SPINCOUNT'))"
    code += "; print('torch' in sys.modules)"
    environment = {k: v for k, v in os.environ.items() if "OMP_" not in k and k != "GOMP_SPINCOUNT"}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, env=environment | given, capture_output=True, text=True).stdout
    assert out.split() == [expected, "False"]
