"""A run directory: write it, read it, check it. Everything after training reads these alone."""

from __future__ import annotations

import logging
import logging.handlers
import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn
from tqdm import tqdm

from seglab import provenance
from seglab.data.splits import Split, read_split
from seglab.errors import InputError
from seglab.files import read_json, write_json, write_whole

log = logging.getLogger("seglab")

# The chosen weights, below a run directory.
BEST = Path("checkpoints", "best.ckpt")

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


class RunDirectory:
    """The directory that a run writes.

    Args:
        path: Made when the first file is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.record: dict[str, Any] = {}

    def update(self, **values: Any) -> None:
        """Adds to run.json."""
        self.record |= values
        write_json(self.path / "run.json", self.record)

    @contextmanager
    def recording(self, seed: int) -> Iterator[None]:
        """Keeps run.json and train.log while the body runs, and says how it ended.

        The log reaches its file with `begin`: a run that is refused before leaves run.json alone.

        Raises:
            InputError: The directory holds a run already, or cannot be written.
            KeyboardInterrupt: The body was interrupted.
        """
        # The first process of a distributed run keeps the books.
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            yield
            return
        self._refuse_if_taken()
        code, self._diff = provenance.code_state()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.update(
                status="running",
                command=[sys.executable, *sys.argv],
                directory=str(Path.cwd()),
                seed=seed,
                start=_now(),
                end=None,
                error=None,
                git=code,
                versions=provenance.versions(),
                machine=provenance.machine(),
            )
        except OSError as error:
            raise InputError(
                f"{self.path}: the run directory cannot be written ({error.strerror}); name "
                "another with hydra.run.dir=..."
            ) from error
        console = _Console()
        self._memory = logging.handlers.MemoryHandler(10**6, flushLevel=logging.CRITICAL + 1)
        level, propagate = log.level, log.propagate
        log.setLevel(logging.DEBUG)
        log.propagate = False
        log.addHandler(console)
        log.addHandler(self._memory)
        try:
            yield
        except BaseException as error:
            # Lightning turns Ctrl-C into sys.exit, which would end a whole sweep.
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            log.debug("ended by an error", exc_info=True)
            self.update(
                status="interrupted" if interrupted else "failed",
                error=None if interrupted else f"{type(error).__name__}: {error}",
                end=_now(),
            )
            if interrupted:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt from error
            raise
        else:
            self.update(status="finished", end=_now())
        finally:
            for handler in (console, self._memory, self._memory.target):
                if handler is not None:
                    log.removeHandler(handler)
                    handler.flush()
            if self._memory.target is not None:
                self._memory.target.close()
            log.setLevel(level)
            log.propagate = propagate

    @rank_zero_only
    def begin(self, config: dict[str, Any], split: dict[str, Any], fingerprint: str) -> None:
        """Writes what is known before the first step: config, split, the code's diff, the log.

        Args:
            config: Resolved, plain containers.
            split: What splits.json holds.
            fingerprint: Of the data.
        """
        file = logging.FileHandler(self.path / "train.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._memory.setTarget(file)
        self._memory.flush()
        self._memory.flushLevel = logging.DEBUG
        write_whole(self.path / "config.yaml", OmegaConf.to_yaml(config))
        write_json(self.path / "splits.json", split)
        if self._diff:
            write_whole(self.path / "code.diff", self._diff)
        self.update(data_fingerprint=fingerprint, split_hash=split["hash"])

    def _refuse_if_taken(self) -> None:
        if not (self.path / "run.json").exists():
            return
        record = read_json(self.path / "run.json")
        status = record.get("status") if isinstance(record, dict) else None
        if status == "failed" and not (self.path / "config.yaml").exists():
            return  # refused before it began: nothing is lost
        raise InputError(
            f"{self.path}: holds a run already (status {status}); name another directory with "
            "hydra.run.dir=..., or delete it"
        )


@dataclass(frozen=True)
class Run:
    """What a run directory holds, opened.

    Attributes:
        path: The directory.
        config: config.yaml.
        split: splits.json.
        net: The network with its chosen weights.
        threshold: Probability above which a pixel is lesion.
    """

    path: Path
    config: DictConfig
    split: Split
    net: nn.Module
    threshold: float


def open_run(path: str | Path, trust: tuple[str, ...] = ()) -> Run:
    """Opens a run directory of anyone: nothing in it is unpickled or run.

    Args:
        path: The directory.
        trust: Modules whose names its config may use besides seglab's own, such as a library
            that a network comes from.

    Raises:
        InputError: A file is missing or damaged, names code that is not trusted, or the
            checkpoint holds another network than the config.
    """
    path = Path(path)
    if not (path / "run.json").is_file():
        raise InputError(
            f"{path}: no run directory (it holds no run.json); expected one of train.py's"
        )
    if not isinstance(read_json(path / "run.json"), dict):
        raise InputError(f"{path / 'run.json'}: is no record of a run; restore it")
    file = path / "config.yaml"
    try:
        config = OmegaConf.create(OmegaConf.to_container(OmegaConf.load(file), resolve=False))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; the run never began, train it again") from None
    except Exception as error:  # YAML's kinds and OmegaConf's
        raise InputError(f"{file}: cannot be read as a config ({error}); restore it") from error
    assert isinstance(config, DictConfig)
    check_targets(config, file, trust)
    checkpoint = path / BEST
    net, stored = load_network(checkpoint, trust)
    split = read_split(path / "splits.json")
    if split.hash != stored.get("split_hash"):
        raise InputError(
            f"{path / 'splits.json'}: is not the split that {checkpoint} was trained on; put the "
            "run's own files back"
        )
    if stored["config"]["model"] != OmegaConf.to_container(config.model):
        raise InputError(
            f"{checkpoint}: holds another network ({stored['config']['model']}) than {file} "
            f"({OmegaConf.to_container(config.model)}); put the run's own checkpoint back"
        )
    return Run(path, config, split, net, stored["threshold"])


def load_network(
    checkpoint: str | Path, trust: tuple[str, ...] = ()
) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuilds a network from its checkpoint alone.

    Args:
        checkpoint: A file that `train` wrote.
        trust: As in `open_run`.

    Returns:
        The network in eval mode on the CPU, and what the checkpoint says of itself: `config`,
        `classes`, `threshold`, `split_hash`, and `epoch`, counted from 1.

    Raises:
        InputError: The file is missing, damaged, no checkpoint of seglab's, or its weights do
            not fit its network.
    """
    from hydra.utils import instantiate

    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        stored, state = content["seglab"], content["state_dict"]
        model = OmegaConf.create(stored["config"]["model"])
        float(stored["threshold"])
        stored["epoch"] = int(content["epoch"]) + 1
    except FileNotFoundError:
        raise InputError(f"{checkpoint}: no such file; expected a checkpoint of a run") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{checkpoint}: cannot be read as a checkpoint ({reason}); restore it"
        ) from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{checkpoint}: no checkpoint of seglab's ({error!r} is not in it); train it again"
        ) from error
    check_targets(OmegaConf.create(stored["config"]), checkpoint, trust)
    net = instantiate(model)
    weights = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{checkpoint}: its weights are those of another network than its config names "
            f"({model.get('_target_')}): {str(error).splitlines()[-1].strip()}"
        ) from error
    return net.eval(), stored


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


class _Console(logging.Handler):
    """Messages to stderr, past a progress bar that is being drawn."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
