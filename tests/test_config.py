"""Shipped configs compose and train; a bad value is refused in one line that names its key."""

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.tiny import REPO, Ended, refused
from omegaconf import DictConfig, OmegaConf

from seglab import compose
from seglab.config import check_config
from seglab.core.errors import InputError
from seglab.runs.loading import ALLOWED_TARGETS, read_config
from seglab.schema import REFUSED_CALLBACKS

PLATEAU = "task.lr_scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau"
COSINE = "task.lr_scheduler={_target_: seglab.training.lr_schedulers.cosine, _partial_: true, "
# Values by key, each refused with key and value.
BAD_VALUES = {
    "data.find_duplicates": ("null", "'false'"),
    "data.batch_size": ("0", "-1", "2.5", "abc"),
    "task.loss": ("null", "dice"),
    "task.optimizer": ("null", "adam"),
    "task.optimizer.lr": ("abc", "null", "-1", "'0,001'", "'1e-3'", "0.001.", "[1,2]"),
    "task.optimizer.weight_decay": ("abc", "null"),
    "task.lr_scheduler": ("cosine",),
    "task.lr_scheduler_config.frequency": ("0",),
    "data.cache_dir": ("[a]", ""),
    "name": ("5", ""),
    "trainer.precision": ("64", "64-true", "bf16-true", "16-true", "transformer-engine", "8"),
    "+callbacks.ema": ("true",),
    "data.eval_batch_size": ("0", "-1", "2.5", "abc"),
    "data.num_workers": ("-1", "null"),
    "data.root": ("5", "null", ""),
    "data.seed": ("abc",),
    "data.size": ("0", "big"),
    "data.split": ("null", "3"),
    "data.split.file": ("5", "[1]"),
    "data.split.fold": ("x", "1.5", "true", "-1"),
    "data.split.folds": ("null", "1"),
    "data.split.seed": ("abc", "null"),
    "data.split.test": ("abc",),
    "data.split.train_share": ("0", "1.5", "all"),
    "data.split.val": ("abc", "null", "[0.1]", "1.5"),
    "model._target_": ("seglab.networks", "seglab.networks.unet", "seglab.networks.UNett"),
    "monitor": ("5", "val/dice"),
    "init": ("5", "[a]", ""),
    "seed": ("18446744073709551616", "-1", "null"),
    "task": ("null",),
    "task.encoder_lr_factor": ("2", "abc"),
    "task.threshold": ("abc", "0", "1", "50"),
    "trainer.max_epochs": ("0", "abc", "1.5", "null"),
}
BAD_COMBINATIONS: list[tuple[list[str], list[str]]] = [
    (["+data.sets=3"], ["data.sets.mine=3: expected a name", "data.sets.mine.root=FOLDER"]),
    (["data=dermoscopy", "data.sets.ph2=x"], ["data.sets.ph2=x"]),
    (["+data.sets.mine.weight=2"], ["data.sets.mine.root=: expected a folder"]),
    (["+data.sets.mine={root: 3}"], ["data.sets.mine.root=3"]),
    (["+data.sets.mine={root: x, weight: 0.5}"], ["data.sets.mine.weight=0.5"]),
    (["+data.sets.mine={root: x, wieght: 2}"], ["data.sets.mine.wieght", "weight"]),
    (["data=dermoscopy", "+data.sets.ph2.split.test=1.5"], ["data.sets.ph2.split.test=1.5"]),
    (["data=dermoscopy", "+data.sets.ph2.split.file=x"], ["data.sets.ph2.split.file", "fold"]),
    (["data=dermoscopy", "+data.sets.ph2.split=3"], ["data.sets.ph2.split=3"]),
    *(
        ([f"callbacks={name}", f"callbacks.{name}.{key}={value}"], [f"callbacks.{name}.{key}="])
        for name, key, value in (("ema", "decay", "1"), ("ema", "decay", "abc"))
    ),
    *(
        ([f"task.loss._target_=seglab.losses.{loss}", f"+task.loss.{key}=-1"], [f"task.loss.{key}"])
        for loss, key in (
            ("focal", "gamma"),
            ("tversky", "beta"),
        )
    ),
    (
        ["callbacks=early_stopping", "callbacks.early_stopping.patience=abc"],
        ["callbacks.early_stopping.patience='abc': expected an integer"],
    ),
    ([COSINE + "epochs: 2, warmup: 2}"], ["task.lr_scheduler.warmup=2", "expected a"]),
    (["data.split.file=x.json", "data.split.fold=1"], ["data.split.fold=1", "x.json"]),
    (["data.split.file=x.json", "data.split.train_share=0.5"], ["train_share=0.5", "x.json"]),
    (["+tags=[a,b]"], ["tags: unknown config key; type name=..."]),
    (
        ["task.lr_scheduler=torch.optim.lr_scheduler.StepLR"],
        ["{_target_: torch.optim.lr_scheduler.StepLR}"],
    ),
    (["+colour=red"], ["colour", "unknown"]),
    (["+model.widht=8"], ["model.widht", "width"]),
    (["+data.split.tset=0.2"], ["data.split.tset"]),
    (["+trainer.max_epoch=2"], ["trainer.max_epoch"]),
    (["monitor=test/dice_per_image_net"], ["monitor=test/dice_per_image_net", "may not choose"]),
    (
        [
            "+callbacks.s._target_=lightning.pytorch.callbacks.EarlyStopping",
            "+callbacks.s._args_=[test/loss,100,1]",
        ],
        ["callbacks.s._args_.0=test/loss", "may not choose or stop"],
    ),
    (["+task.lr_scheduler.x.monitor=test/loss"], ["task.lr_scheduler.x.monitor=test/loss"]),
    (["+trainer.callbacks=[]"], ["trainer.callbacks", "built from the rest"]),
    (["+trainer.barebones=true"], ["trainer.barebones", "metrics"]),
    (["monitor=val/loss"], ["monitor=val/loss", "monitor_mode=min"]),
    (
        [
            "+callbacks.s._target_=lightning.pytorch.callbacks.EarlyStopping",
            "+callbacks.s.monitor=val/dice_pooled_net",
        ],
        ["callbacks.s.monitor=val/dice_pooled_net", "not the min; set callbacks.s.mode=max"],
    ),
    (
        [PLATEAU + ", mode: min}"],
        ["task.lr_scheduler_config.monitor=val/dice", "set task.lr_scheduler.mode=max"],
    ),
    (
        [
            PLATEAU + "}",
            "monitor=null",
            "task.lr_scheduler_config.monitor=val/loss",
            "data.split.val=0",
        ],
        ["data.split.val=0", "task.lr_scheduler_config.monitor=val/loss"],
    ),
    (
        ["task.lr_scheduler_config.monitor=test/loss"],
        ["task.lr_scheduler_config.monitor=test/loss"],
    ),
    (["callbacks=early_stopping", "monitor=null"], ["callbacks.early_stopping.monitor=null"]),
    *(
        ([f"+callbacks.s._target_=lightning.pytorch.callbacks.{name}"], [f"callbacks.s: {name} "])
        for name in REFUSED_CALLBACKS
    ),
    (["data.split.val=0"], ["data.split.val", "val/dice_per_image_net"]),
    (["inference.tta=1"], ["inference.tta=1", "expected true or false"]),
    (["+inference.holes=true"], ["inference.holes", "unknown"]),
    (["inference=null"], ["inference=None", "expected keys"]),
    (["monitor=null", "data.split.val=0", "inference.tune_threshold=true"], ["data.split.val=0"]),
]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        *(
            ([f"{key}={v}"], [f"{key.lstrip('+')}="])
            for key, values in BAD_VALUES.items()
            for v in values
        ),
        *BAD_COMBINATIONS,
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_bad_values_are_refused(
    overrides: list[str],
    words: list[str],
    tiny_config: Callable[..., DictConfig],
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError) as caught:
        check_config(tiny_config(tmp_path / "run", *overrides))
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "override",
    [
        *("seed=abc", "data.size=abc", "task.optimizer.lr='0,001'", "data.split.test=a", "name=5"),
        *("task.loss=dice", "task.optimizer=adam", "task.lr_scheduler=cosine", "data.root="),
        *("trainer.max_epochs=1e3", "task.optimizer.weight_decay=abc"),
    ],
)
def test_a_refusal_gives_an_example_that_works(
    override: str, tiny_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        check_config(tiny_config(tmp_path / "run", override))
    (given,) = re.findall(r"such as (\S+=.*?)(?:, see .*)?$", str(caught.value))
    (example,) = shlex.split(given)
    assert example.split("=")[0].startswith(override.split("=")[0])
    check_config(tiny_config(tmp_path / "run", example))


def test_a_refusal_is_one_line_and_in_run_json(
    tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    refused(tiny_train(tmp_path / "run", "data.size=0"), tmp_path / "run", "data.size=0")


def test_a_path_that_is_not_utf8_is_refused(
    tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    """It could not be written to run.json."""
    root = os.fsdecode(b"data.root='/m\xe4\xdf'")
    refused(tiny_train(tmp_path / "run", root), tmp_path / "run", r"data.root=/m\xe4\xdf")


def test_a_run_directory_inside_the_data_is_refused(
    tiny_config: Callable[..., DictConfig], tiny_ph2: Path
) -> None:
    with pytest.raises(InputError, match=r"hydra\.run\.dir=.*outside the data"):
        check_config(tiny_config(tiny_ph2 / "run"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("modle=unet", ["modle"]),
        ("model=unett", ["unett", "segnet"]),
        ("task.optimizer.l=1", ["task.optimizer.l"]),
        ("model=", ["model"]),
    ],
)
def test_misspelt_overrides_make_no_run_directory(
    override: str, words: list[str], tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    refused(tiny_train(tmp_path / "run", override), None, *words)
    assert not (tmp_path / "run").exists()


def test_an_unwritable_run_directory_is_refused(
    tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    refused(tiny_train(tmp_path / "file" / "run"), None, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "kept"


def test_a_refused_run_is_started_again(tiny_train: Callable[..., Ended], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert tiny_train(run, "data.size=30").code == 1
    assert tiny_train(run, "trainer.max_epochs=1").code == 0
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


CONF = REPO / "conf"


def shipped(group: str) -> list[str]:
    files = (CONF / group).rglob("*.yaml")
    names = sorted(file.relative_to(CONF / group).with_suffix("").as_posix() for file in files)
    assert len(names) >= 2, "a folder under conf/ has at least two real options"
    return names


GROUPS = sorted(
    {
        file.parent.relative_to(CONF).as_posix()
        for files in ("*/*.yaml", "hydra/*/*.yaml")
        for file in CONF.glob(files)
    }
)
NAMES = [f"{group}={name}" for group in GROUPS for name in shipped(group)]


def composed(*overrides: str) -> DictConfig:
    return compose(["run_dir=nowhere", "hydra.mode=RUN", *overrides])  # of a sweep, too


def small(choice: str) -> list[str]:
    """What makes a run of it take seconds, not minutes."""
    config = composed(choice)
    overrides = [choice, "data.size=32", "trainer.max_epochs=1"]
    if "width" in config.model:
        overrides += ["model.width=4", "model.depth=2"]
    else:
        overrides += ["model.decoder=[8,8,8,8]"]
    return overrides


@pytest.mark.parametrize("choice", NAMES)
def test_it_composes_and_names_only_what_is_there_and_trusted(choice: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(check_config(composed(choice))))
    read_config(tmp_path / "config.yaml")  # or its runs could not be opened again
    for name in frozenset().union(*ALLOWED_TARGETS.values()):
        assert name.split(".")[0] in ("seglab", "torch", "lightning")


@pytest.mark.parametrize(
    "choice",
    [
        # The others train in test_multiclass.py, test_train.py and test_log_test_loss.py.
        *(f"experiment={name}" for name in ("best", "best_scratch", "fast", "human")),
        # That of a library: tests/networks/test_libraries.py.
        *(f"model={name}" for name in shipped("model") if name not in ("unet", "smp_unet")),
        "trainer=debug",
    ],
)
def test_it_trains(
    choice: str, script: Callable[..., Ended], tiny_ph2: Path, cache_dir: Path, tmp_path: Path
) -> None:
    where = ["data=ph2", f"data.root={tiny_ph2}", f"data.cache_dir={cache_dir}"]
    ended = script("train", *small(choice), *where, f"hydra.run.dir={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


def test_the_baseline_has_the_recipes_settings() -> None:
    config = composed()
    assert config.name == "baseline"
    recipe = {"_target_": "torch.optim.Adam", "lr": 1e-3, "weight_decay": 1e-6}
    assert {key: config.task.optimizer[key] for key in recipe} == recipe
    assert config.data.batch_size == 32
    assert config.seed == 42


@pytest.mark.parametrize("without", ["~logger", "logger=none", "~callbacks"])
def test_groups_can_be_left_out(without: str) -> None:
    config = check_config(composed(without))
    assert not config[without.strip("~").partition("=")[0]]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SEGLAB_CACHE": "caches", "HOME": "FOLDER"}, "caches"),
        ({"SEGLAB_CACHE": "", "HOME": "FOLDER"}, "FOLDER/.cache/seglab"),
        ({"HOME": "/dev/null"}, "FOLDER/tmp/seglab"),
        ({"HOME": "~"}, "FOLDER/tmp/seglab"),  # as where there is neither HOME nor a user's entry
    ],
)
def test_the_cache_is_in_a_folder_that_can_be_written(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEGLAB_CACHE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("FOLDER", str(tmp_path)))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    cache_dir = composed("data=synthetic").data.cache_dir
    assert cache_dir == expected.replace("FOLDER", str(tmp_path))
