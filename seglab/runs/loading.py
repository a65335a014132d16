"""What a file of a stranger may make happen: nothing but reading."""

from __future__ import annotations

import struct
import sys
import zipfile
from collections.abc import Iterator
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seglab.config import check_config
from seglab.core.errors import InputError
from seglab.core.text import sanitize_text

# A config of a run takes a few kilobytes, a hundred values and five levels.
MAX_CONFIG = 2**17
MAX_VALUES = 10_000
MAX_DEPTH = 50
# Of a table or a record of a run: that of 100,000 files of data takes 20 MB.
MAX_RECORD = 2**26
# What a stored config may name, and where. Opening a run runs code only through these; a prefix
# such as 'torch.' would be a hole (torch.hub.load fetches and runs code), and so would these
# elsewhere: synthetic_cases as the model would draw pictures into any folder. `--trust` adds a
# module.
_OPTIM = "torch.optim"
ALLOWED_TARGETS: dict[str, frozenset[str]] = {
    "data": frozenset({"seglab.data.datamodule.SegmentationDataModule"}),
    "data.cases": frozenset(
        {
            "seglab.data.layouts.find_cases",
            "seglab.data.layouts.isic2018_cases",
            "seglab.data.layouts.pairs_cases",
            "seglab.data.layouts.ph2_cases",
            "seglab.data.synthetic.synthetic_cases",
        }
    ),
    "data.augment": frozenset({"seglab.data.augment.Augment"}),
    "model": frozenset(
        {"seglab.networks.EncoderUNet", "seglab.networks.SegNet", "seglab.networks.UNet"}
    ),
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
            *(f"{_OPTIM}.lr_scheduler.{n}LR" for n in ("CosineAnnealing", "MultiStep", "Step")),
        }
    ),
    "trainer": frozenset({"lightning.Trainer"}),
    "trainer.profiler": frozenset({"lightning.pytorch.profilers.PyTorchProfiler"}),
    "callbacks.*": frozenset(
        {
            "lightning.pytorch.callbacks.EarlyStopping",
            "lightning.pytorch.callbacks.LearningRateMonitor",
            "seglab.training.callbacks.ExponentialAverage",
            "seglab.training.callbacks.LogTestLoss",
            "seglab.training.callbacks.Progress",
            "seglab.training.callbacks.Pictures",
        }
    ),
    "logger": frozenset({"seglab.training.tensorboard.TensorBoard"}),
}
ALL_ALLOWED_TARGETS = frozenset().union(*ALLOWED_TARGETS.values())


def check_targets(config: Any, source: str | Path, trust: tuple[str, ...] = ()) -> None:
    """Refuses a stored config that names code which is not on the list, used or not.

    A stored config is resolved: what is left to resolve in it could make such names (`oc.create`)
    or read the environment (`oc.env`), and is refused too.

    Args:
        config: The whole config.
        source: Where it came from, for the message.
        trust: Modules to trust besides.

    Raises:
        InputError: It holds something else than plain values, or some `_target_` is not trusted,
            or not where it stands.
    """
    node = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    _check_plain(node, source)
    for _, *entry in _entries(node):
        for text in entry:
            if isinstance(text, str) and ("${" in text or text == "???"):
                raise InputError(
                    f"{source}: holds an interpolation, {sanitize_text(text)}; expected plain values"
                )
    for place, name in _targets(node):
        if name in ALLOWED_TARGETS.get(_place(place), ()):
            continue
        modules = [m for m in trust if name.startswith(f"{m}.")]
        if not modules:
            where = f" as {sanitize_text(place)}" if name in ALL_ALLOWED_TARGETS else ""
            raise InputError(
                f"{source}: names code that is not trusted, _target_: {sanitize_text(name)}{where}; "
                f"{_how_to_trust(name)}"
            )
        # A module's own imports are names in it as well: lib.os.system is no code of lib's.
        home = _module_of(name)
        if home is not None and not any(f"{home}.".startswith(f"{m}.") for m in trust):
            raise InputError(
                f"{source}: names code that is not {modules[0]}'s, _target_: {sanitize_text(name)}"
                + (f"; if you trust that too, add --trust {home}" if home else "")
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
    _check_form(config, file)
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
        _check_yaml(text)
        config = OmegaConf.create(text)
        _check_plain(OmegaConf.to_container(config, resolve=False), file)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; the run never began, train it again") from None
    except InputError:
        raise
    except Exception as error:  # YAML's kinds and OmegaConf's
        reason = sanitize_text(" ".join(str(error).split())) or type(error).__name__
        raise InputError(f"{file}: cannot be read as a config ({reason}); restore it") from error
    if not isinstance(config, DictConfig):
        raise InputError(f"{file}: cannot be read as a config (no keys); restore it")
    return config


def check_run_folder(folder: Path) -> None:
    """Refuses a run directory that would not be read or written alone, or not to an end.

    Raises:
        InputError: It holds a link that leads out of it, something else than files and folders,
            or a record of a size that no run writes.
    """
    root = folder.resolve()
    for path in folder.rglob("*"):
        try:
            there = path.resolve()
        except (OSError, RuntimeError) as error:
            raise InputError(f"{path}: a link that leads nowhere; remove it") from error
        if not there.is_relative_to(root):
            raise InputError(
                f"{path}: a link that leads out of the run directory, to {there}; replace it with "
                "what it leads to"
            )
        # A pipe would be waited on for ever.
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InputError(f"{path}: neither a file nor a folder; remove it")
        if path.suffix in (".json", ".csv") and path.is_file() and _size(path) > MAX_RECORD:
            raise InputError(f"{path}: larger than {MAX_RECORD:,} bytes; restore it")


def check_archive(content: bytes) -> None:
    """Refuses a checkpoint that would unpack to more than it is.

    Two readers read it, Python's here and torch's afterwards; a file that shows them different
    tables of entries is refused, too.

    Args:
        content: A zip archive.

    Raises:
        ValueError: It would, or is no archive of torch's.
    """
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            entries = archive.infolist()
        table_end, table_start, length = _table(content)
    except (zipfile.BadZipFile, struct.error, NotImplementedError, UnicodeError) as error:
        raise ValueError(f"it is no archive: {error}") from error
    # Before other bytes torch would take it for a file of its former format.
    if not content.startswith(b"PK\3\4") or table_start + length != table_end:
        raise ValueError("its table of entries is not where it should be")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("holds compressed entries")
    if sum(entry.file_size for entry in entries) > len(content):
        raise ValueError("its entries overlap")


def list_modules(config: Any) -> tuple[str, ...]:
    """The modules of all that a config names: what someone trusts who trains with it."""
    names = {name for _, name in _targets(config)}
    homes = {_module_of(name) or "" for name in names} - {""}
    return tuple(sorted(homes | {name.rpartition(".")[0] for name in names}))


def _how_to_trust(name: str) -> str:
    """What to do about a name; of Python itself and of torch only networks are offered."""
    top = name.partition(".")[0]
    if name.startswith("torch.nn."):
        top = "torch.nn"
    elif top in sys.stdlib_module_names or top in ("torch", "lightning", "hydra", "omegaconf"):
        return "no run needs it there, put the run's own file back"
    return f"if you know where it comes from, add --trust {sanitize_text(top)}"


def _module_of(name: str) -> str | None:
    """The module that defines what a trusted module calls `name`.

    Empty where nothing says so; None where it cannot be found, and so cannot be run either.
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
    """Every `_target_` at any depth, after the key where it stands."""
    entries = _entries(config)
    return ((place, str(value)) for place, key, value in entries if key == "_target_")


def _entries(node: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every key and value at any depth, after the key of their parent; lists' items have none."""
    items: list[tuple[Any, Any]] = list(node.items()) if isinstance(node, dict) else []
    items += [(None, value) for value in node] if isinstance(node, list) else []
    for key, value in items:
        yield place, key, value
        below = "[]" if key is None or "." in str(key) else str(key)
        yield from _entries(value, f"{place}.{below}" if place else below)


def _place(place: str) -> str:
    """Callbacks have names of the user's."""
    section, _, name = place.partition(".")
    return "callbacks.*" if section == "callbacks" and name and "." not in name else place


def _check_yaml(text: str) -> None:
    """Bounds what YAML may be built from, while it is read."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
        # A few lines of references to references could fill any memory.
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("holds references (*)")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        # A number of a million digits takes minutes to be read.
        length = len(event.value) if isinstance(event, yaml.ScalarEvent) else 0
        if depth > MAX_DEPTH or max(length, number // 4) > MAX_VALUES:
            raise ValueError("holds more than a config can")


def _check_plain(config: Any, source: str | Path) -> None:
    """Refuses what no stored config holds, before anything walks through it.

    A checkpoint may hold a list twice, and so, a few lists deep, any number of times; YAML may
    hold bytes and paths, which are no text to those who look for paths.
    """
    left, seen = [(config, 0)], 1
    while left:
        node, depth = left.pop()
        below: list[Any] = []
        if type(node) is dict:
            below, odd = list(node.values()), [key for key in node if not _is_plain(key)]
        elif type(node) is list:
            below, odd = node, []
        else:
            odd = [] if node is None or _is_plain(node) else [node]
        seen += len(below)
        if seen > MAX_VALUES or depth > MAX_DEPTH:
            raise InputError(f"{source}: holds more than a config can; restore it")
        if odd:
            raise InputError(
                f"{source}: holds what is no value of a config, {type(odd[0]).__name__}; expected "
                "text, numbers, true, false or null, under keys of text"
            )
        left += [(value, depth + 1) for value in below]


def _is_plain(value: Any) -> bool:
    """Whether it is a number or a text that a file and a file's name can hold."""
    if type(value) is str:
        try:
            return b"\0" not in value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return False
    return type(value) in (float, bool) or (type(value) is int and abs(value) < 2**64)


def _check_form(config: DictConfig, file: str | Path) -> None:
    """Refuses what no run could have been trained with, so that it can be built from here on."""
    try:
        check_config(config)
    except (InputError, OmegaConfBaseException, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{file}: {sanitize_text(str(error))}") from error
    cases = config.data.cases if isinstance(config.data.cases, DictConfig) else {}
    known = {"_target_", "_partial_", "n", "seed", "dark_corners"}
    named = cases.get("_target_")
    if (
        not named
        or cases.get("_partial_") is not True
        or (named in ALLOWED_TARGETS["data.cases"] and set(cases) - known)
    ):
        raise InputError(f"{file}: data.cases is not what a run has there; restore it")


def _check_paths(config: DictConfig, file: Path) -> None:
    """Everything but the data lies in the run directory; the data is only read."""
    run_dir = Path(str(config.get("run_dir")))
    if not run_dir.is_absolute():
        raise InputError(f"{file}: run_dir is not what a run has there; restore it")

    def check(node: Any, key: str) -> None:
        # What a trusted library is handed, such as a file of weights, is that library's matter.
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
            raise InputError(
                f"{file}: {sanitize_text(key)} names a path outside the run directory, {sanitize_text(node)}; "
                f"expected one below {sanitize_text(str(run_dir))}"
            )

    for section, node in OmegaConf.to_container(config).items():  # type: ignore[union-attr]
        if section not in ("run_dir", "data"):
            check(node, str(section))
    # A bare name would lie below wherever the command is started; and these may be URLs as well.
    logger = OmegaConf.to_container(config).get("logger")  # type: ignore[union-attr]
    if isinstance(logger, dict) and logger.get("_target_") in ALLOWED_TARGETS["logger"]:
        place = str(logger.get("save_dir"))
        if not Path(place).is_relative_to(run_dir):
            raise InputError(
                f"{file}: logger.save_dir names a path outside the run directory, {sanitize_text(place)}; "
                f"expected one below {sanitize_text(str(run_dir))}"
            )


def _leaves(text: str, run_dir: Path) -> bool:
    path = Path(text)
    outside = path.is_absolute() and not path.is_relative_to(run_dir)
    return outside or ".." in path.parts or text.startswith("~")


def _size(path: Path) -> int:
    return path.stat().st_size


def _table(content: bytes) -> tuple[int, int, int]:
    """Where a zip archive's table of entries must end, begins, and its length."""
    end = content.rfind(b"PK\5\6")
    length, start, comment = struct.unpack_from("<IIH", content, end + 12)
    if end < 0 or end + 22 + comment != len(content):
        raise zipfile.BadZipFile("its end is not at its end")
    if content[end - 20 : end - 16] != b"PK\6\7":
        return end, start, length
    at = end - 20 - 56
    if struct.unpack_from("<Q", content, end - 12)[0] != at or content[at : at + 4] != b"PK\6\6":
        raise zipfile.BadZipFile("its long end is not before its end")
    length, start = struct.unpack_from("<QQ", content, at + 40)
    return at, start, length
