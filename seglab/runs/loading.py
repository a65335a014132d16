"""Loads configs from untrusted run directories."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seglab.config import check_config
from seglab.core.errors import InputError, printable
from seglab.runs.paths import refuse_damaged

MAX_CONFIG_BYTES = 2**17  # a run's config has a few kilobytes

# The `_target_`s that a stored config may name, by the key where each may stand. Opening a run
# calls nothing else. Exact names: a prefix such as 'torch.' would allow torch.hub.load, which
# fetches and runs code. The key counts because synthetic_cases as the model would write images
# into any folder. The option --trust adds a name.
_OPTIM = "torch.optim"
_NETWORKS = frozenset(
    f"seglab.networks.{name}" for name in ("EncoderUNet", "SMPNetwork", "SegNet", "UNet")
)
_LR_SCHEDULERS = """ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR
LinearLR MultiStepLR OneCycleLR PolynomialLR ReduceLROnPlateau StepLR"""
# Not ModelCheckpoint, which writes into any folder.
_CALLBACKS = """DeviceStatsMonitor EarlyStopping EMAWeightAveraging GradientAccumulationScheduler
LearningRateMonitor ModelSummary RichModelSummary RichProgressBar Timer TQDMProgressBar"""
_CASES = frozenset({"seglab.data.layouts.find_cases", "seglab.data.synthetic.synthetic_cases"})
ALLOWED_TARGETS: dict[str, frozenset[str]] = {
    "data": frozenset({"seglab.data.datamodule.SegmentationDataModule"}),
    "data.cases": _CASES,
    "data.sets.*.cases": _CASES,
    "data.augment": frozenset({"seglab.data.augment.Augment"}),
    "model": _NETWORKS | {"seglab.networks.Normalized"},
    "model.net": _NETWORKS,
    "task": frozenset({"seglab.training.task.SegmentationTask"}),
    "task.loss": frozenset(
        {
            "seglab.losses.bce",
            "seglab.losses.bce_dice",
            "seglab.losses.cross_entropy",
            "seglab.losses.cross_entropy_dice",
            "seglab.losses.dice",
            "seglab.losses.double_sigmoid_bce",
            "seglab.losses.focal",
            "seglab.losses.structure",
            "seglab.losses.tversky",
        }
    ),
    "task.optimizer": frozenset({f"{_OPTIM}.{name}" for name in ("Adam", "AdamW", "SGD")}),
    "task.lr_scheduler": frozenset(
        {
            "seglab.training.lr_schedulers.cosine",
            *(f"{_OPTIM}.lr_scheduler.{name}" for name in _LR_SCHEDULERS.split()),
        }
    ),
    "trainer": frozenset({"lightning.Trainer"}),
    "trainer.profiler": frozenset({"lightning.pytorch.profilers.PyTorchProfiler"}),
    "callbacks.*": frozenset(
        {
            *(f"lightning.pytorch.callbacks.{name}" for name in _CALLBACKS.split()),
            "seglab.training.callbacks.ExponentialAverage",
            "seglab.training.callbacks.LogTestLoss",
            "seglab.training.callbacks.Pictures",
            "seglab.training.callbacks.Progress",
        }
    ),
    "logger.*": frozenset(
        {
            *(f"lightning.pytorch.loggers.{n}Logger" for n in ("CSV", "MLFlow", "Wandb")),
            "seglab.training.tensorboard.TensorBoard",
        }
    ),
}


def check_targets(config: Any, source: str | Path, trust: tuple[str, ...] = ()) -> None:
    """Refuses a stored config that names code which is not allowed, whether it is used or not.

    Args:
        config: The whole config.
        source: Where it was read from, for the message.
        trust: Names that are allowed anywhere.

    Raises:
        InputError: A value is not plain or is an interpolation, or a `_target_` is not allowed
            where it stands.
    """
    _check_plain(config, source)
    for _, key, value in _entries(config):
        for text in (key, value):
            # A stored config is resolved; oc.create and oc.env in an interpolation would run.
            if isinstance(text, str) and ("${" in text or text == "???" or "\0" in text):
                raise InputError(
                    f"{source}: holds an interpolation or a null character, "
                    f"{printable(text, 300)}; expected plain values"
                )
    for name, place in untrusted_targets(config).items():
        if name not in trust:
            name = printable(name, 300)
            raise InputError(
                f"{source}: names code that is not trusted, _target_: {name}, in "
                f"{printable(place, 300)}; if you know what this code does, add --trust {name}"
            )


def untrusted_targets(config: Any) -> dict[str, str]:
    """Returns the `_target_`s that need --trust to be opened, and the keys where they stand."""
    found = {}
    for place, key, value in _entries(config):
        # Users choose the names of callbacks, loggers and data sets.
        section = re.sub(r"^(callbacks|logger|data\.sets)\.[^.]+(\.cases)?$", r"\1.*\2", place)
        if key == "_target_" and str(value) not in ALLOWED_TARGETS.get(section, ()):
            found[str(value)] = place
    return found


def list_targets(config: Any) -> tuple[str, ...]:
    """Returns all `_target_`s of a config: who trains with it trusts them."""
    return tuple(sorted({str(value) for _, key, value in _entries(config) if key == "_target_"}))


def read_config(file: str | Path, trust: tuple[str, ...] = ()) -> DictConfig:
    """Reads a stored config from which something will be built.

    Raises an InputError if the file is missing or no config, or names code that is not allowed.
    """
    config = parse_config(file)
    check_targets(config, file, trust)
    cfg = OmegaConf.create(config)
    try:
        check_config(cfg)
        # Otherwise building the data would call it, with a folder of the config's choice.
        for place, key, value in _entries({"data": {"cases": None} | config["data"]}):
            if (
                key == "cases"
                and place != "data.sets"
                and (not isinstance(value, dict) or value.get("_partial_") is not True)
            ):
                raise InputError(f"{place}.cases: expected _partial_: true")
    except (InputError, OmegaConfBaseException, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{file}: {printable(str(error), 300)}") from error
    return cfg


def parse_config(file: str | Path) -> dict[str, Any]:
    """Reads a stored config to look at its values; nothing may be built from it."""
    file = Path(file)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with refuse_damaged(file, MAX_CONFIG_BYTES):
        text = file.read_text("utf-8")
        # A few lines of merge keys (<<) with references would fill the memory.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader)):
            raise ValueError("holds references (*)")
        config = yaml.load(text, loader)  # a safe one
        if not isinstance(config, dict):
            raise ValueError("no keys")
    _check_plain(config, file)
    return config


def _entries(node: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields each key and value at any depth, after their parent's key; list items have no key."""
    items: list[tuple[Any, Any]] = list(node.items()) if isinstance(node, dict) else []
    items += [(None, value) for value in node] if isinstance(node, list | tuple) else []
    for key, value in items:
        yield place, key, value
        below = "[]" if key is None or "." in str(key) else str(key)
        yield from _entries(value, f"{place}.{below}" if place else below)


def _check_plain(config: Any, source: str | Path) -> None:
    """Refuses what is no JSON of a config's size; a checkpoint may hold a list within itself."""
    size = 0
    try:
        for part in json.JSONEncoder().iterencode(config):
            size += len(part)
            if size > MAX_CONFIG_BYTES:
                raise ValueError("larger than a config can be")
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{source}: cannot be read as a config ({printable(str(error), 300)}); restore it"
        ) from error
