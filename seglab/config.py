"""What a config may hold: checked as a whole, before anything is built."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from seglab.errors import InputError
from seglab.metrics import segmentation_metrics

PARTS = ("data", "model", "task", "trainer", "callbacks", "logger")
SECTIONS = ("name", "seed", "monitor", "monitor_mode", "run_dir", *PARTS)


def check_config(cfg: DictConfig) -> dict[str, Any]:
    """Resolves a config and refuses what nothing reads.

    Args:
        cfg: As composed.

    Returns:
        Plain containers, with absolute paths.

    Raises:
        InputError: An unknown key, a name that cannot be found, or a value out of range.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    for key in config:
        if key not in SECTIONS:
            raise InputError(f"{key}: unknown config key; expected one of {', '.join(SECTIONS)}")
    for section in PARTS:
        _check_arguments(config[section], section)
    _check_integer(config["seed"], "seed", 0)
    _check_integer(config["data"]["size"], "data.size", 1)
    split = config["data"]["split"]
    _check_keys(split, "data.split", {"val", "test", "seed", "fold", "folds", "file"})
    for where, node in [("monitor", config), *_with_monitor(config["callbacks"])]:
        _check_monitor(where, node["monitor"], node.get("mode", config["monitor_mode"]))
        if node["monitor"].startswith("val/") and split["val"] == 0 and split["file"] is None:
            raise InputError(
                f"data.split.val=0: leaves nothing to take {where}={node['monitor']} from; hold "
                "some cases out, or see conf/experiment/recipe.yaml for a run without val"
            )
    paths = [(config["data"], "root"), (config["data"], "cache_dir"), (split, "file")]
    for node, key in paths:
        if node[key] is not None:
            node[key] = str(Path(node[key]).expanduser().absolute())
    return config


def _check_arguments(node: Any, where: str) -> None:
    """Holds every `_target_` and its arguments against the signature of what it names."""
    if isinstance(node, list):
        for i, item in enumerate(node):
            _check_arguments(item, f"{where}[{i}]")
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        _check_arguments(value, f"{where}.{key}")
    if "_target_" not in node:
        return
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        raise InputError(
            f"{where}._target_={node['_target_']}: cannot be found ({error}); check the spelling, "
            "and that its library is installed"
        ) from error
    parameters = inspect.signature(target).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        _check_keys(
            {k: v for k, v in node.items() if not k.startswith("_")}, where, set(parameters)
        )


def _check_keys(node: dict[str, Any], where: str, known: set[str]) -> None:
    for key in node:
        if key not in known:
            raise InputError(
                f"{where}.{key}: unknown config key; expected one of {', '.join(sorted(known))}"
            )


def _with_monitor(callbacks: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"callbacks.{name}.monitor", node)
        for name, node in callbacks.items()
        if node.get("monitor") is not None
    ]


def _check_monitor(where: str, name: str, mode: str) -> None:
    metrics = [*segmentation_metrics(0.5), "loss"]
    known = [f"{stage}/{metric}" for stage in ("train", "val") for metric in metrics]
    if name.startswith("test/"):
        raise InputError(
            f"{where}={name}: a test value may not choose anything, or the test is none; name one "
            f"of {', '.join(known)}"
        )
    if name not in known:
        raise InputError(f"{where}={name}: no such value; expected one of {', '.join(known)}")
    least = name.endswith(("/loss", "/ece_net"))
    if mode != ("min" if least else "max"):
        raise InputError(
            f"monitor_mode={mode}: of {name} the {'least' if least else 'greatest'} is best; set "
            f"monitor_mode={'min' if least else 'max'}"
        )


def _check_integer(value: Any, name: str, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}={value}: expected an integer of at least {least}")
