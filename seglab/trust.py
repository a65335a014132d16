"""What a file of a stranger may make happen: nothing but reading."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from seglab.errors import InputError

# A config of a run takes a few kilobytes.
MAX_CONFIG = 2**20
# What a stored config may name. Opening a run runs code only through these; a prefix such as
# 'torch.' would be a hole (torch.hub.load fetches and runs code). `--trust` adds a module.
TRUSTED_TARGETS = frozenset(
    {
        "lightning.Trainer",
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "seglab.callbacks.Progress",
        "seglab.callbacks.WatchTest",
        "seglab.data.augment.Augment",
        "seglab.data.cases.find_cases",
        "seglab.data.cases.isic2018_cases",
        "seglab.data.cases.pairs_cases",
        "seglab.data.cases.ph2_cases",
        "seglab.data.datamodule.SegmentationDataModule",
        "seglab.data.synthetic.synthetic_cases",
        "seglab.losses.bce",
        "seglab.losses.double_sigmoid_bce",
        "seglab.nets.SegNet",
        "seglab.nets.UNet",
        "seglab.task.SegmentationTask",
        "seglab.tensorboard.Pictures",
        "seglab.tensorboard.TensorBoard",
        "torch.optim.Adam",
        "torch.optim.AdamW",
        "torch.optim.SGD",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "torch.optim.lr_scheduler.MultiStepLR",
        "torch.optim.lr_scheduler.StepLR",
    }
)


def check_targets(config: Any, source: str | Path, trust: tuple[str, ...] = ()) -> None:
    """Refuses a stored config that names code which is not on the list, used or not.

    A stored config is resolved: what is left to resolve in it could make such names (`oc.create`)
    or read the environment (`oc.env`), and is refused too.

    Args:
        config: Any part of a config.
        source: Where it came from, for the message.
        trust: Modules to trust besides.

    Raises:
        InputError: Some `_target_` is not trusted.
    """
    for entry in _entries(config):
        for text in entry:
            if isinstance(text, str) and "${" in text:
                raise InputError(f"{source}: holds an interpolation, {text}; expected plain values")
    for name in _targets(config):
        if name not in TRUSTED_TARGETS and not any(name.startswith(f"{m}.") for m in trust):
            raise InputError(
                f"{source}: names code that is not trusted, _target_: {name}; if you know where "
                f"it comes from, add --trust {name.split('.')[0]}"
            )


def read_config(file: str | Path, trust: tuple[str, ...] = ()) -> DictConfig:
    """Reads a stored config that something will be built from; refuses what could do harm.

    Args:
        file: config.yaml of a run.
        trust: As in `check_targets`.

    Raises:
        InputError: The file is missing, is no config, names code that is not trusted, or names a
            path outside the run that something could be written to.
    """
    config = parse_config(file)
    check_targets(config, file, trust)
    _check_paths(config, Path(file))
    return config


def parse_config(file: str | Path) -> DictConfig:
    """Reads a stored config, only to look at it.

    Raises:
        InputError: The file is missing, or is no config.
    """
    file = Path(file)
    try:
        if file.stat().st_size > MAX_CONFIG:
            raise ValueError(f"larger than {MAX_CONFIG:,} bytes")
        text = file.read_text("utf-8")
        # A few lines of references to references could fill any memory.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("holds references (*)")
        config = OmegaConf.create(text)
        OmegaConf.to_container(config, resolve=False)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; the run never began, train it again") from None
    except Exception as error:  # YAML's kinds and OmegaConf's
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: cannot be read as a config ({reason}); restore it") from error
    if not isinstance(config, DictConfig):
        raise InputError(f"{file}: cannot be read as a config (no keys); restore it")
    return config


def check_inside(folder: Path) -> None:
    """Refuses a run directory whose links lead out of it: what is written goes nowhere else.

    Raises:
        InputError: Some link does.
    """
    root = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise InputError(
                f"{path}: a link that leads out of the run directory, to {path.resolve()}; replace "
                "it with what it leads to"
            )


def check_archive(file: Path) -> None:
    """Refuses a checkpoint that would unpack to more than it is.

    Raises:
        ValueError: It does, or is no archive of torch's.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("holds compressed entries")
    if sum(entry.file_size for entry in entries) > file.stat().st_size:
        raise ValueError("its entries overlap")


def modules_of(config: Any) -> tuple[str, ...]:
    """The modules of all that a config names: what someone trusts who trains with it."""
    return tuple(sorted({name.rpartition(".")[0] for name in _targets(config)}))


def _targets(config: Any) -> Iterator[str]:
    return (str(value) for key, value in _entries(config) if key == "_target_")


def _entries(config: Any) -> Iterator[tuple[Any, Any]]:
    """Every key and value at any depth; the items of lists have no key."""
    node = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    items = list(node.items()) if isinstance(node, dict) else []
    items += [(None, value) for value in node] if isinstance(node, list) else []
    for key, value in items:
        yield key, value
        yield from _entries(value)


def _check_paths(config: DictConfig, file: Path) -> None:
    """Everything but the data lies in the run directory; the data is only read."""
    run_dir = Path(str(config.get("run_dir")))

    def check(node: Any, key: str) -> None:
        # What a trusted library is handed, such as a file of weights, is that library's matter.
        if isinstance(node, dict):
            if "_target_" not in node or node["_target_"] in TRUSTED_TARGETS:
                for name, value in node.items():
                    check(value, f"{key}.{name}")
        elif isinstance(node, list):
            for value in node:
                check(value, key)
        elif isinstance(node, str) and _leaves(node, run_dir):
            raise InputError(
                f"{file}: {key} names a path outside the run directory, {node}; expected one "
                f"below {run_dir}"
            )

    for section, node in OmegaConf.to_container(config).items():  # type: ignore[union-attr]
        if section not in ("run_dir", "data"):
            check(node, str(section))


def _leaves(text: str, run_dir: Path) -> bool:
    path = Path(text)
    outside = path.is_absolute() and not path.is_relative_to(run_dir)
    return outside or ".." in path.parts or text.startswith("~")
