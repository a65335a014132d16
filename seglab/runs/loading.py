"""Loads configs from untrusted run directories."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seglab.config import check_config
from seglab.core.errors import InputError
from seglab.core.text import sanitize_text
from seglab.runs.allowed_targets import ALL_ALLOWED_TARGETS, ALLOWED_TARGETS

# A run's config has a few kilobytes, a hundred values and five levels.
MAX_CONFIG_BYTES = 2**17
MAX_VALUES = 10_000
MAX_DEPTH = 50
# A run's largest table or record lists 100,000 files of data in 20 MB.
MAX_RECORD_BYTES = 2**26


def check_targets(config: Any, source: str | Path, trust: tuple[str, ...] = ()) -> None:
    """Refuses a stored config that names code which is not allowed, whether it is used or not.

    Args:
        config: The whole config, plain containers.
        source: Where it was read from, for the message.
        trust: Modules whose names are allowed anywhere.

    Raises:
        InputError: A value is not plain or is an interpolation, or a `_target_` is not allowed
            where it stands.
    """
    _check_plain(config, source)
    for _, *entry in _entries(config):
        for text in entry:
            # A stored config is resolved; oc.create and oc.env in an interpolation would run.
            if isinstance(text, str) and ("${" in text or text == "???"):
                raise InputError(
                    f"{source}: holds an interpolation, {sanitize_text(text)}; expected plain "
                    "values"
                )
    for place, name in _targets(config):
        section, _, callback = place.partition(".")
        if section == "callbacks" and callback and "." not in callback:
            place = "callbacks.*"  # users choose their names
        if name not in ALLOWED_TARGETS.get(place, ()):
            _check_trusted(name, place, source, trust)


def _check_trusted(name: str, place: str, source: str | Path, trust: tuple[str, ...]) -> None:
    """Refuses a name that no trusted module defines."""
    modules = [module for module in trust if name.startswith(f"{module}.")]
    if not modules:
        where = f" as {sanitize_text(place)}" if name in ALL_ALLOWED_TARGETS else ""
        raise InputError(
            f"{source}: names code that is not trusted, _target_: {sanitize_text(name)}{where}; "
            f"{_how_to_trust(name)}"
        )
    # What a module imports is an attribute of it too: lib.os.system is not code of lib.
    home = _defining_module(name)
    if home is not None and not any(f"{home}.".startswith(f"{module}.") for module in trust):
        raise InputError(
            f"{source}: names code that {modules[0]} does not define, _target_: "
            f"{sanitize_text(name)}" + (f"; if you trust that too, add --trust {home}" * bool(home))
        )


def read_config(file: str | Path, trust: tuple[str, ...] = ()) -> DictConfig:
    """Reads a stored config from which something will be built.

    Args:
        file: config.yaml of a run.
        trust: As in `check_targets`.

    Raises:
        InputError: The file is missing or is no config, names code that is not allowed, or names
            a path outside the run directory to which something could be written.
    """
    config = parse_config(file)
    check_targets(config, file, trust)
    _check_paths(config, Path(file))
    cfg = OmegaConf.create(config)
    try:
        check_config(cfg)
    except (InputError, OmegaConfBaseException, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{file}: {sanitize_text(str(error))}") from error
    cases = config["data"]["cases"]
    known = {"_target_", "_partial_", "n", "seed", "dark_corners"}
    if (
        not isinstance(cases, dict)
        or cases.get("_partial_") is not True
        or (cases.get("_target_") in ALLOWED_TARGETS["data.cases"] and cases.keys() - known)
    ):
        raise InputError(f"{file}: data.cases is not what a run stores there; restore it")
    return cfg


def parse_config(file: str | Path) -> dict[str, Any]:
    """Reads a stored config to look at its values; nothing may be built from it.

    Returns:
        Plain containers.

    Raises:
        InputError: The file is missing, or is no config.
    """
    file = Path(file)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if not file.is_file() and file.exists():
            raise ValueError("not a regular file")
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {MAX_CONFIG_BYTES:,} bytes")
        text = file.read_text("utf-8")
        # A few lines of references to references would fill the memory.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader)):
            raise ValueError("holds references (*)")
        config = yaml.load(text, loader)  # a safe one
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; the run never began, train it again") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = sanitize_text(" ".join(str(error).split())) or type(error).__name__
        raise InputError(f"{file}: cannot be read as a config ({reason}); restore it") from error
    if not isinstance(config, dict):
        raise InputError(f"{file}: cannot be read as a config (no keys); restore it")
    _check_plain(config, file)
    return config


def check_run_folder(folder: Path) -> None:
    """Refuses a run directory with paths that lead out of it, or that cannot be read to an end.

    Raises:
        InputError: It holds a link that leads out of it, something that is neither a file nor a
            folder, or a record of a size that no run writes.
    """
    root = folder.resolve()
    for path in folder.rglob("*"):
        try:
            target = path.resolve()
        except (OSError, RuntimeError) as error:
            raise InputError(f"{path}: a link that leads nowhere; remove it") from error
        if not target.is_relative_to(root):
            raise InputError(
                f"{path}: a link that leads out of the run directory, to {target}; replace it with "
                "what it leads to"
            )
        if path.exists() and not path.is_file() and not path.is_dir():  # reading a pipe waits
            raise InputError(f"{path}: neither a file nor a folder; remove it")
        is_record = path.suffix in (".json", ".csv") and path.is_file()
        if is_record and path.stat().st_size > MAX_RECORD_BYTES:
            raise InputError(f"{path}: larger than {MAX_RECORD_BYTES:,} bytes; restore it")


def list_modules(config: Any) -> tuple[str, ...]:
    """Returns the modules of all `_target_`s of a config: who trains with it trusts them."""
    names = {name for _, name in _targets(config)}
    homes = {_defining_module(name) or "" for name in names} - {""}
    return tuple(sorted(homes | {name.rpartition(".")[0] for name in names}))


def _how_to_trust(name: str) -> str:
    """Returns what to do about a name; --trust is not offered for Python and torch as a whole."""
    top = name.partition(".")[0]
    if name.startswith("torch.nn."):
        top = "torch.nn"
    elif top in sys.stdlib_module_names or top in ("torch", "lightning", "hydra", "omegaconf"):
        return "no run needs it there, put the run's own file back"
    return f"if you know where it comes from, add --trust {sanitize_text(top)}"


def _defining_module(name: str) -> str | None:
    """Returns the module that defines the object that a dotted name leads to.

    Empty where the object does not say; None where the name cannot be resolved, and so cannot be
    called either.
    """
    first, *parts = name.split(".")
    path = first
    try:
        found: Any = import_module(first)
        for part in parts:  # as Hydra does
            path = f"{path}.{part}"
            found = getattr(found, part) if hasattr(found, part) else import_module(path)
    except Exception:  # whatever importing it raises
        return None
    return str(getattr(found, "__module__", None) or "")


def _targets(config: Any) -> Iterator[tuple[str, str]]:
    """Yields every `_target_` at any depth, after the key where it stands."""
    entries = _entries(config)
    return ((place, str(value)) for place, key, value in entries if key == "_target_")


def _entries(node: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields each key and value at any depth, after their parent's key; list items have no key."""
    items: list[tuple[Any, Any]] = list(node.items()) if isinstance(node, dict) else []
    items += [(None, value) for value in node] if isinstance(node, list) else []
    for key, value in items:
        yield place, key, value
        below = "[]" if key is None or "." in str(key) else str(key)
        yield from _entries(value, f"{place}.{below}" if place else below)


def _check_plain(config: Any, source: str | Path) -> None:
    """Refuses values that no stored config has, and more of them than one can have.

    A checkpoint may hold a list twice and so, a few lists deep, any number of times. Bytes and
    paths are refused because checks for paths look at text.
    """
    remaining, count = [(config, 0)], 1
    while remaining:
        node, depth = remaining.pop()
        children: list[Any] = []
        if type(node) is dict:
            children, odd = list(node.values()), [key for key in node if not _is_plain(key)]
        elif type(node) is list:
            children, odd = node, []
        else:
            odd = [] if node is None or _is_plain(node) else [node]
        count += len(children)
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise InputError(f"{source}: holds more than a config can; restore it")
        if odd:
            raise InputError(
                f"{source}: holds what is no value of a config, {type(odd[0]).__name__}; expected "
                "text, numbers, true, false or null, under keys of text"
            )
        remaining += [(value, depth + 1) for value in children]


def _is_plain(value: Any) -> bool:
    """Whether it is a number, or text that a file and a file's name can hold."""
    if type(value) is str:
        try:
            return b"\0" not in value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return False
    return type(value) in (float, bool) or (type(value) is int and abs(value) < 2**64)


def _check_paths(config: dict[str, Any], file: Path) -> None:
    """Refuses paths outside the run directory; those of the data are only read."""
    run_dir = Path(str(config.get("run_dir")))
    if not run_dir.is_absolute():
        raise InputError(f"{file}: run_dir is not what a run stores there; restore it")

    def check(node: Any, key: str) -> None:
        # The arguments of a trusted library, such as a file of weights, are its own business.
        if isinstance(node, dict):
            if "_target_" not in node or node["_target_"] in ALL_ALLOWED_TARGETS:
                for name, value in node.items():
                    # Opening a run reads no file of weights; training from one reads tensors.
                    if f"{key}.{name}" != "model.weights":
                        check(value, f"{key}.{name}")
        elif isinstance(node, list):
            for value in node:
                check(value, key)
        elif isinstance(node, str) and _leaves(node, run_dir):
            raise _path_error(file, key, node, run_dir)

    for section, node in config.items():
        if section not in ("run_dir", "data"):
            check(node, str(section))
    # A bare name would lie below the working directory, and TensorBoard takes URLs too.
    logger = config.get("logger")
    if isinstance(logger, dict) and logger.get("_target_") in ALLOWED_TARGETS["logger"]:
        save_dir = str(logger.get("save_dir"))
        if not Path(save_dir).is_relative_to(run_dir):
            raise _path_error(file, "logger.save_dir", save_dir, run_dir)


def _path_error(file: Path, key: str, path: str, run_dir: Path) -> InputError:
    return InputError(
        f"{file}: {sanitize_text(key)} names a path outside the run directory, "
        f"{sanitize_text(path)}; expected one below {sanitize_text(str(run_dir))}"
    )


def _leaves(text: str, run_dir: Path) -> bool:
    path = Path(text)
    outside = path.is_absolute() and not path.is_relative_to(run_dir)
    return outside or ".." in path.parts or text.startswith("~")
