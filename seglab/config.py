"""What a config may hold: checked as a whole, before anything is built."""

import inspect
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from seglab import schema
from seglab.core.commands import quote_for_shell
from seglab.core.errors import InputError, check_number
from seglab.core.files import expand_user, refuse_non_utf8
from seglab.data.classes import make_classes
from seglab.metrics.scores import network_metric_names
from seglab.schema import INFERENCE_KEYS, Inference


def check_config(cfg: DictConfig) -> dict[str, Any]:
    """Checks a composed config as a whole.

    Returns:
        Plain containers, with absolute paths.

    Raises:
        InputError: An unknown key, a name that cannot be found, or a value out of range.
    """
    config = check_values(cfg)
    for section in schema.TARGET_SECTIONS:
        _check_arguments(config[section], section)
    _check_monitors(config)
    return config


def check_values(cfg: DictConfig) -> dict[str, Any]:
    """As `check_config`, without importing what the config names, which takes seconds."""
    config = resolve_config(cfg)
    for group in ("experiment", "sweep"):
        if group in config:
            name = HydraConfig.get().runtime.choices[group] if HydraConfig.initialized() else group
            raise InputError(
                f"{group}={name}: {name}.yaml does not begin with '# @package _global_' (UTF-8, no "
                "BOM), so that its keys are not those of the whole config; add this line"
            )
    _check_sections(config)
    _check_scalars(config)
    _check_data(config["data"])
    _check_inference(config["inference"], config["data"])
    _check_trainer(config["trainer"])
    _refuse_test_values(config)
    _check_folders(config)
    return config


def resolve_config(cfg: DictConfig) -> dict[str, Any]:
    """Returns a config as plain containers with absolute paths, without checking its values."""
    cfg = cfg.copy()
    for key in schema.PATHS:
        value = OmegaConf.select(cfg, key)
        if isinstance(value, str) and value:
            OmegaConf.update(cfg, key, _absolute(value))
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    task = config.get("task")
    if isinstance(task, dict):
        _set_defaults(task)
    model = config.get("model")
    if isinstance(model, dict) and is_encoder_unet(model):
        weights = model.get("weights")
        if isinstance(weights, str) and weights != "imagenet":
            model["weights"] = _absolute(weights)
    return config


def _set_defaults(task: dict[str, Any]) -> None:
    """Adds what optimizer and scheduler need in any case, so that their `_target_` is enough."""
    for key in ("optimizer", "lr_scheduler"):  # the task gives them what they lack
        if isinstance(task.get(key), dict):
            task[key].setdefault("_partial_", True)
    settings = task.get("lr_scheduler_config")
    monitor = settings.get("monitor") if isinstance(settings, dict) else None
    if isinstance(monitor, str) and _is_plateau(task.get("lr_scheduler")):
        task["lr_scheduler"].setdefault("mode", _best_mode(monitor))  # torch's default is min


def _absolute(path: str) -> str:
    return str(expand_user(path).absolute())


def is_encoder_unet(model: Mapping[str, Any]) -> bool:
    """Returns whether a config's network is `seglab.networks.EncoderUNet`, by whichever name."""
    name = str(model.get("_target_"))
    return name.startswith("seglab.networks.") and name.endswith(".EncoderUNet")


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
        parameters = inspect.signature(target).parameters
    except Exception as error:
        raise InputError(
            f"{where}._target_={node['_target_']}: cannot be found, or is nothing to call "
            f"({error}); check the spelling, that its library is installed, and PYTHONPATH for a "
            "module of your own"
        ) from error
    monitor = parameters.get("monitor")  # without a default in EarlyStopping
    if monitor and monitor.default is monitor.empty and node.get("monitor", "") is None:
        raise InputError(
            f"{where}.monitor=null: expected a name; set monitor=val/dice_per_image_net"
        )
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        given = [key for key in node if not key.startswith("_")]
        _check_keys(given, f"{where}.", parameters)


def _check_keys(given: Any, where: str, known: Any, needed: Any = ()) -> None:
    for key in given:
        if key not in known:
            raise InputError(schema.describe_unknown_key(f"{where}{key}", known))
    for key in needed:
        if key not in given:
            raise InputError(f"{where}{key}: missing; conf/ has its default")


def _check_sections(config: dict[str, Any]) -> None:
    """Checks which keys there are, and that sections and what is built of them hold keys."""
    _check_keys(config, "", schema.SECTIONS, schema.SECTIONS)
    for section in schema.TARGET_SECTIONS:
        if not isinstance(config[section], dict):
            raise InputError(f"{section}={config[section]}: expected keys, see conf/")
    _check_keys(config["data"], "data.", config["data"], ("root", "classes", "colours", "split"))
    split = config["data"]["split"]
    if not isinstance(split, dict):
        raise InputError(f"data.split={split}: expected keys, see conf/data")
    _check_keys(split, "data.split.", schema.SPLIT_KEYS, schema.SPLIT_KEYS[:-1])
    for key, example in schema.TARGETS.items():
        value = config["task"].get(key.removeprefix("task."))
        if not isinstance(value, dict) and (value is not None or key != "task.lr_scheduler"):
            example = f"{key}={{_target_: {value}}}" if "." in str(value) else example
            raise InputError(
                f"{key}={value}: expected keys, such as {quote_for_shell(example)}, see conf/"
            )
    for section in ("callbacks", "logger"):
        for key, value in config[section].items():
            if not isinstance(value, dict | None):
                raise InputError(
                    f"{section}.{key}={value}: expected keys or null, see conf/{section}"
                )
    for key, value in config["callbacks"].items():
        name = str((value or {}).get("_target_")).rpartition(".")[2]
        if name in schema.REFUSED_CALLBACKS:
            raise InputError(f"callbacks.{key}: {name} {schema.REFUSED_CALLBACKS[name]}")


def _check_scalars(config: dict[str, Any]) -> None:
    """Checks numbers, texts and paths one by one."""
    values = schema.flatten(config)
    for key, kind, least, most, null, number in schema.NUMBERS:
        check_number(key, values.get(key), kind, least, most, null, number)
    for key, kind, least, most, null, number in schema.OPTIONAL_NUMBERS:
        check_number(key, values.get(key, least), kind, least, most, null, number)
    for key, example in schema.TEXTS.items():
        value = values.get(key)
        if not isinstance(value, str) or not value:
            text = f"'{value}'" if value else example
            raise InputError(
                f"{key}={value}: expected text, such as {quote_for_shell(f'{key}={text}')}"
            )
    for key in schema.PATHS:
        value = values.get(key)
        if not isinstance(value, str | None) or value == "":
            raise InputError(f"{key}={value}: expected a path or null")
        refuse_non_utf8(key, value)


def _check_data(data: dict[str, Any]) -> None:
    make_classes(data["classes"], data["colours"], data.get("lesion_values"))  # checks these
    if not isinstance(data.get("find_duplicates", True), bool):
        raise InputError(f"data.find_duplicates={data['find_duplicates']}: expected true or false")
    _check_sets(data)
    file, fold = data["split"]["file"], data["split"]["fold"]
    if file is not None and fold is not None:
        raise InputError(
            f"data.split.fold={fold}: a split from data.split.file={file} has no folds to choose "
            "from; give one of the two"
        )
    if file is not None and data["split"].get("train_share", 1) != 1:
        raise InputError(
            f"data.split.train_share={data['split']['train_share']}: data.split.file={file} says "
            "which cases train; give one of the two"
        )


def _check_sets(data: dict[str, Any]) -> None:
    """Checks `data.sets`, the settings of several data sets by name."""
    limits = {number[0]: number for number in (*schema.NUMBERS, *schema.OPTIONAL_NUMBERS)}
    sets = data.get("sets") or {}
    for name, own in sets.items() if isinstance(sets, dict) else [("mine", sets)]:
        where = f"data.sets.{name}"
        if not re.fullmatch(r"[\w-]+", str(name)) or not isinstance(own, dict):
            raise InputError(
                f"{where}={own}: expected a name of letters, digits, '_' and '-', and keys, such "
                "as data.sets.mine.root=FOLDER"
            )
        _check_keys(own, f"{where}.", schema.SET_KEYS)
        root = own.get("root", "")
        if not isinstance(root, str) or not root:
            raise InputError(f"{where}.root={root}: expected a folder, below data.root or absolute")
        check_number(f"{where}.weight", own.get("weight", 1), int, 1, 1000, False, 3)
        split = own.get("split", {})
        if not isinstance(split, dict):
            raise InputError(f"{where}.split={split}: expected keys, as those of data.split")
        _check_keys(split, f"{where}.split.", [key for key in schema.SPLIT_KEYS if key != "file"])
        for key, value in split.items():
            _, kind, least, most, null, example = limits[f"data.split.{key}"]
            least = 0 if key == "test" else least  # a set may be for training alone
            check_number(f"{where}.split.{key}", value, kind, least, most, null, example)


def _check_trainer(trainer: dict[str, Any]) -> None:
    precision = trainer.get("precision")
    if precision not in schema.PRECISIONS:
        raise InputError(
            f"trainer.precision={precision}: expected one of {', '.join(schema.PRECISIONS[:3])}"
        )
    for key in schema.BUILT_ARGUMENTS:
        if key in trainer:
            raise InputError(f"trainer.{key}: is built from the rest of the config; remove it")
    if trainer.get("barebones"):
        raise InputError(
            "trainer.barebones: logs no metrics, from which a run is chosen and recorded; remove it"
        )


def _refuse_test_values(config: dict[str, Any]) -> None:
    for section in ("monitor", "task", "trainer", "callbacks"):
        for key, text in _texts(config[section], section):
            if text.startswith("test/"):
                raise InputError(
                    f"{key}={text}: a test value may not choose or stop anything; name one of val, "
                    "such as val/dice_per_image_net"
                )


def _check_folders(config: dict[str, Any]) -> None:
    from seglab.data.sets import find_roots  # imports SciPy

    for key, folder in (
        ("hydra.run.dir", config["run_dir"]),
        ("data.cache_dir", config["data"]["cache_dir"]),
    ):
        for root in find_roots(config["data"]).values():
            if Path(folder).resolve().is_relative_to(root.resolve()):
                raise InputError(f"{key}={folder}: expected a folder outside the data, {root}")


def _check_inference(inference: Any, data: dict[str, Any]) -> None:
    if not isinstance(inference, dict):
        raise InputError(f"inference={inference}: expected keys, see conf/train.yaml")
    _check_keys(inference, "inference.", INFERENCE_KEYS)
    for key, value in inference.items():
        if not isinstance(value, bool):
            raise InputError(f"inference.{key}={value}: expected true or false")
    tune_threshold = Inference(**inference).tune_threshold
    if tune_threshold and make_classes(data["classes"], data["colours"]).is_multiclass:
        raise InputError(
            "inference.tune_threshold=true: of several classes the most probable is taken, "
            "without a threshold; set it to false"
        )
    if tune_threshold and data["split"]["val"] == 0 and data["split"]["file"] is None:
        raise InputError(
            "inference.tune_threshold=true: there is no val to choose on, data.split.val=0; hold "
            "some cases out, or set it to false"
        )


def _texts(node: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every text at any depth, after its key."""
    if isinstance(node, str):
        yield where, node
    elif isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _texts(value, f"{where}.{key}")


def _check_monitors(config: dict[str, Any]) -> None:
    """Checks what chooses the best epoch, and what callbacks and ReduceLROnPlateau watch."""
    task, check = config["task"], partial(_check_monitor, config["data"])
    if config["monitor"] is not None:
        check("monitor", config["monitor"], "monitor_mode", config["monitor_mode"])
    for name, node in config["callbacks"].items():
        if node and node.get("monitor") is not None:
            key = f"callbacks.{name}"
            check(f"{key}.monitor", node["monitor"], f"{key}.mode", _mode_of(node))
    monitor = (task.get("lr_scheduler_config") or {}).get("monitor")
    if monitor is not None and _is_plateau(task["lr_scheduler"]):
        mode = task["lr_scheduler"].get("mode")
        check("task.lr_scheduler_config.monitor", monitor, "task.lr_scheduler.mode", mode)


def _is_plateau(lr_scheduler: Any) -> bool:
    name = lr_scheduler.get("_target_") if isinstance(lr_scheduler, dict) else None
    return str(name).endswith("ReduceLROnPlateau")


def _mode_of(node: dict[str, Any]) -> Any:
    """Returns argument `mode` of what a config names, or its default there; None without one."""
    parameter = inspect.signature(get_object(node["_target_"])).parameters.get("mode")
    return node.get("mode", parameter.default) if parameter else None


def _best_mode(metric: str) -> str:
    return "min" if metric.endswith(("/loss", "/ece_net")) else "max"


def _check_monitor(data: dict[str, Any], where: str, name: Any, mode_key: str, mode: Any) -> None:
    split, metrics = data["split"], [*network_metric_names(data["classes"]), "loss"]
    known = [f"{stage}/{metric}" for stage in ("train", "val") for metric in metrics]
    if name not in known:
        raise InputError(f"{where}={name}: no such value; expected one of {', '.join(known)}")
    best = _best_mode(name)
    if mode not in (best, None):
        raise InputError(
            f"{where}={name}: its best value is the {best}, not the {mode}; set {mode_key}={best}"
        )
    if name.startswith("val/") and split["val"] == 0 and split["file"] is None:
        raise InputError(
            f"data.split.val=0: leaves nothing to take {where}={name} from; hold some cases out, "
            "or set monitor=null to keep the last epoch's weights"
        )
