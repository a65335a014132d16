"""A run directory: write it, go on in it, read it, check it. All that comes later reads these."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seglab.config import OFF, Inference, check_values, differences, resolve_config
from seglab.core.console import Console
from seglab.core.errors import InputError
from seglab.core.files import (
    hash_json,
    lock_folder,
    name_file_in_errors,
    read_json,
    remove_partial,
    write_atomic,
    write_json,
)
from seglab.core.signals import Interrupts
from seglab.core.text import sanitize_text
from seglab.data.classes import Classes
from seglab.runs import provenance
from seglab.runs.loading import check_run_folder, parse_config, read_config
from seglab.runs.overrides import format_command
from seglab.runs.paths import RunPaths

# What takes torch, Lightning or scikit-image is imported where it is needed: a run that is refused
# for a value of its config is refused at once.
if TYPE_CHECKING:
    from torch import nn

    from seglab.data.splits import Split

log = logging.getLogger("seglab")


class RunDirectory:
    """The directory that a run writes, and goes on in after an interruption.

    config.yaml is the last file that `begin` writes: without it a directory holds nothing yet
    that could be lost.

    Args:
        path: Made when the first file is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.paths = RunPaths(self.path)
        self.record: dict[str, Any] = {}
        self.earlier: dict[str, Any] = {}  # run.json of the run that lies here already
        self._begun = False  # in this process

    def update(self, **values: Any) -> None:
        """Adds to run.json."""
        self.record |= values
        write_json(self.paths.record, self.record)

    @contextmanager
    def recording(self, cfg: DictConfig, interrupts: Interrupts) -> Iterator[None]:
        """Keeps run.json and train.log while the body runs, and says how it ended.

        The log reaches its file with `begin`. A run that is refused before leaves run.json alone,
        or, where a run lies here already, everything as it was.

        Args:
            cfg: Of the run, as composed.
            interrupts: Handled while the body runs.

        Raises:
            InputError: The directory cannot be written, holds something else, or another process
                is at work in it.
            KeyboardInterrupt: The body was interrupted.
        """
        if not _is_first_process():
            # The first process of a distributed run keeps the books.
            with interrupts.handled(lambda: None):
                self.earlier = self._read_earlier()
                yield
            return
        with self._locked(), self._logging(), interrupts.handled(self._leave):
            self.earlier = self._read_earlier()
            self._now, self._diff = self._present()
            if self.earlier:
                self.record = dict(self.earlier)
            else:
                self.update(
                    status="running",
                    seed=cfg.seed,
                    start=_now(),
                    end=None,
                    error=None,
                    **self._now,
                    **self._planned(),
                )
            try:
                yield
            except BaseException as error:
                # Lightning turns Ctrl-C into sys.exit, which would end a whole sweep.
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    log.debug("interrupted")
                    self._close("interrupted", None)
                    raise type(interrupts.error())(self._how_to_go_on()) from error
                log.debug("ended by an error", exc_info=True)
                if not self._begun and not self.earlier:
                    with suppress(OmegaConfBaseException):  # which may be the error itself
                        self.record["config"] = resolve_config(cfg)
                self._close("failed", f"{type(error).__name__}: {error}")
                if isinstance(error, OSError) and error.filename is None:
                    with name_file_in_errors(self.path):
                        raise
                raise
            self._close("finished", None)

    def is_finished(self, config: dict[str, Any]) -> bool:
        """Whether this run was trained to its end already.

        Args:
            config: Resolved, plain containers.

        Raises:
            InputError: A run of another config lies here.
        """
        if not self.earlier:
            return False
        then = OmegaConf.to_container(parse_config(self.paths.config), resolve=False)
        changed = differences(then, config)
        if changed:
            raise InputError(
                f"{self.path}: holds a run of another config ({', '.join(changed[:5])}); name "
                "another directory with hydra.run.dir=..., or give the same config to go on"
            )
        return self.earlier["status"] == "finished"

    def begin(
        self,
        config: dict[str, Any],
        split: Split,
        files: dict[str, str],
        modules: dict[str, str],
    ) -> None:
        """Writes what is known before the first step, or holds it against what is written.

        Of the processes of a distributed run only the first does.

        Args:
            config: Resolved, plain containers.
            split: Of the cases.
            files: SHA-256 of every file that was read as data, by its path below the data's root.
            modules: SHA-256 of what the config names outside seglab, modules and weights.

        Raises:
            InputError: The run that lies here was begun on other data.
        """
        self._now["machine"] = provenance.describe_machine()
        if self.earlier:
            self._go_on(split, files, modules)
        self._begun = True
        remove_partial(self.path)
        log_file = _LogFile(self.paths.log, encoding="utf-8")
        log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._memory.setTarget(log_file)
        self._memory.flush()
        self._memory.flushLevel = logging.DEBUG
        if self.earlier:
            self.update(status="running", end=None, error=None)
            return
        write_json(self.paths.split, split.to_json())
        write_json(self.paths.data, {"root": config["data"]["root"], "files": files})
        if self._diff:
            write_atomic(self.paths.code_diff, self._diff)
        self.update(
            machine=self._now["machine"],
            data_fingerprint=hash_json(files),
            split_hash=split.hash,
            modules=modules,
            determinism=provenance.determinism_flags(),
        )
        write_atomic(self.paths.config, OmegaConf.to_yaml(config))

    def checkpoint_to_resume(self, metadata: dict[str, Any]) -> tuple[Path | None, int]:
        """Finds the newest checkpoint that is whole: last.ckpt, or the earlier best.ckpt.

        What is damaged is said. A run whose best.ckpt is lost begins anew, to find it again.

        Args:
            metadata: What the checkpoints of this run say of themselves.

        Returns:
            The checkpoint and its step; None and -1 to begin at the beginning.
        """
        from seglab.runs.checkpoints import read_checkpoint

        found: dict[Path, dict[str, Any]] = {}
        for file in (self.paths.last_checkpoint, self.paths.best_checkpoint):
            if self.earlier and file.exists():
                try:
                    checkpoint = read_checkpoint(file)
                    stored = checkpoint["seglab"]
                    if stored["split_hash"] != metadata["split_hash"] or differences(
                        stored["config"], metadata["config"]
                    ):
                        raise InputError(f"{file}: is of another run")
                    checkpoint["callbacks"]["RunRecorder"]["best_epoch"]
                    found[file] = checkpoint
                except (InputError, KeyError, TypeError) as error:
                    log.warning("not used: %s", str(error).rpartition(";")[0] or f"{file}: {error}")
        for file, checkpoint in found.items():
            best_epoch = checkpoint["callbacks"]["RunRecorder"]["best_epoch"]
            best = found.get(self.paths.best_checkpoint, {"epoch": -1})
            # An older best.ckpt is that of a run that began anew, and was interrupted too.
            if best_epoch is None or best["epoch"] + 1 >= best_epoch:
                step = checkpoint["global_step"]
                log.info("going on after step %d, from %s", step, file)
                if self._begun:
                    self.record["resumed"][-1] |= {"checkpoint": file.name, "step": step}
                return file, step
        if self.earlier:
            log.info("no checkpoint to go on from: training from the beginning")
        return None, -1

    def _go_on(self, split: Split, files: dict[str, str], modules: dict[str, str]) -> None:
        from seglab.data.splits import read_split

        key = "model.weights"
        if self.earlier.get("modules", {}).get(key) != modules.get(key):
            raise InputError(
                f"{self.path}: {key} is another file than when this run began; restore it to go on,"
                " or name another directory with hydra.run.dir=..."
            )
        changed = provenance.describe_changed_files(read_files(self.path), files)
        if changed:
            raise InputError(
                f"{self.path}: the data has changed since this run began ({'; '.join(changed[:5])}"
                f"{'; ...' if len(changed) > 5 else ''}); restore it to go on, or name another "
                "directory with hydra.run.dir=..."
            )
        if read_split(self.paths.split).hash != split.hash:
            raise InputError(
                f"{self.paths.split}: is not the split of this config and data; restore "
                "it to go on, or name another directory with hydra.run.dir=..."
            )
        other = {key: now for key, now in self._now.items() if now != self.earlier.get(key)}
        changed = [what for what in ("git", "versions", "machine") if what in other]
        if changed:
            log.warning(
                "not as it was when this run began: %s; the result may differ from that of a run "
                "without interruption",
                ", ".join(changed),
            )
        check_run_folder(self.path)
        resumed = [*self.earlier.get("resumed", []), {"time": _now(), **other}]
        self.record["resumed"] = resumed

    def _read_earlier(self) -> dict[str, Any]:
        """The record of the run that lies here; empty where nothing can be lost."""
        if not self.paths.config.exists():
            if any(self.paths.best_checkpoint.parent.glob("*.ckpt")):
                raise InputError(
                    f"{self.path}: holds checkpoints, but no config.yaml of their run; restore it, "
                    "or name another directory with hydra.run.dir=..."
                )
            return {}
        record = read_json(self.paths.record)
        if not isinstance(record, dict) or "status" not in record:
            raise InputError(f"{self.paths.record}: is no record of a run; restore it")
        return record

    def _planned(self) -> dict[str, Any]:
        """What the sweep that this run is a job of has left here for it."""
        try:
            planned = read_json(self.paths.record)
        except InputError:
            return {}
        varies = planned.get("varies") if isinstance(planned, dict) else None
        return {"varies": varies} if isinstance(varies, dict) else {}

    def _present(self) -> tuple[dict[str, Any], str]:
        code, diff = provenance.read_code_state()
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
        return {
            "command": [sys.executable, *sys.argv],
            "overrides": list(overrides),
            "directory": str(Path.cwd()),
            "git": code,
            "versions": provenance.installed_versions(),
        }, diff

    def _locked(self) -> AbstractContextManager[None]:
        return lock_folder(
            self.path,
            f"{self.path}: another process is at work on this run; wait for it, or name another "
            "directory with hydra.run.dir=...",
        )

    @contextmanager
    def _logging(self) -> Iterator[None]:
        console = Console()
        self._memory = logging.handlers.MemoryHandler(10**6, flushLevel=logging.CRITICAL + 1)
        level, propagate = log.level, log.propagate
        log.setLevel(logging.DEBUG)
        log.propagate = False
        log.addHandler(console)
        log.addHandler(self._memory)
        try:
            yield
        finally:
            for handler in (console, self._memory):
                log.removeHandler(handler)
                handler.flush()
            if self._memory.target is not None:
                with suppress(OSError):
                    self._memory.target.close()
            log.setLevel(level)
            log.propagate = propagate

    def _close(self, status: str, error: str | None) -> None:
        if self.earlier and not self._begun:
            return  # the run that lies here is left as it was
        try:
            self.update(status=status, error=error, end=_now())
        except OSError:
            if status == "finished":
                raise
            # run.json says 'running' still, of a process that is gone: it can be gone on with.
            log.warning("%s: cannot be written", self.paths.record)

    def _leave(self) -> None:
        """The last words of a process that is told twice to stop."""
        with suppress(Exception):
            self._close("interrupted", None)

    def _how_to_go_on(self) -> str:
        if not HydraConfig.initialized():
            return f"({self.path}; call train() with the same config to go on)"
        return f"(to go on: {format_command('hydra.run.dir', self.path)})"


def refuse_early(cfg: DictConfig) -> None:
    """Refuses a config for its values, as training would, before anything heavy is imported.

    Args:
        cfg: As composed.

    Raises:
        InputError: An unknown key or a value out of range; run.json in its `run_dir` says so.
    """
    try:
        check_values(cfg)
    except Exception:
        with RunDirectory(cfg.run_dir).recording(cfg, Interrupts()):
            raise


@dataclass(frozen=True)
class Run:
    """What a run directory holds, opened.

    Attributes:
        path: The directory.
        record: run.json.
        config: config.yaml.
        split: splits.json.
        net: The network with its chosen weights.
        classes: What it tells apart.
        threshold: Probability above which a pixel is lesion.
        inference: How its masks come about besides.
    """

    path: Path
    record: dict[str, Any]
    config: DictConfig
    split: Split
    net: nn.Module
    classes: Classes
    threshold: float
    inference: Inference


def open_run(path: str | Path, trust: tuple[str, ...] = ()) -> Run:
    """Opens a run directory of anyone: nothing in it is unpickled or run.

    Args:
        path: The directory.
        trust: Modules whose names its config may use besides seglab's own, such as a library
            that a network comes from.

    Raises:
        InputError: A file is missing or damaged, names code that is not trusted or a path outside
            the directory, or the checkpoint holds another network than the config.
    """
    from seglab.data.splits import read_split
    from seglab.runs.checkpoints import load_network

    path = Path(path)
    paths = RunPaths(path)
    if not paths.record.is_file():
        raise InputError(
            f"{path}: no run directory (it holds no run.json); expected one of train.py's"
        )
    check_run_folder(path)
    record = read_json(paths.record)
    parts = ("git", "modules", "versions", "machine")
    if not isinstance(record, dict) or not all(isinstance(record.get(p, {}), dict) for p in parts):
        raise InputError(f"{paths.record}: is no record of a run; restore it")
    file = paths.config
    config = read_config(file, trust)
    checkpoint = paths.best_checkpoint
    net, stored = load_network(checkpoint, trust)
    split = read_split(paths.split)
    unknown = {*split.train, *split.val, *split.test} - split.sha256.keys()
    if unknown:
        raise InputError(
            f"{paths.split}: holds no hash of case {sanitize_text(min(unknown))}; restore it"
        )
    if split.hash != stored["split_hash"]:
        raise InputError(
            f"{paths.split}: is not the split that {checkpoint} was trained on; put the "
            "run's own files back"
        )
    then = stored["config"]
    for key, old, new in (
        ("model", then["model"], config.model),
        ("data.size", then["data"]["size"], config.data.size),
    ):
        if old != new:
            raise InputError(
                f"{checkpoint}: holds another network than {file} says ({key}: {old}, not {new}); "
                "put the run's own files back"
            )
    inference = Inference(**config.get("inference", OFF))  # of an older run there is none
    classes, threshold = stored["classes"], stored["threshold"]
    return Run(path, record, config, split, net, classes, threshold, inference)


def read_files(run: Path) -> dict[str, str]:
    """Reads data.json of a run: SHA-256 of the data's files, by their path below its root.

    Raises:
        InputError: It is missing or damaged.
    """
    file = RunPaths(run).data
    stored = read_json(file)
    if not isinstance(stored, dict) or not isinstance(stored.get("files"), dict):
        raise InputError(f"{file}: holds no files; restore it")
    return stored["files"]


class _LogFile(logging.FileHandler):
    """A log that a full disk does not reach: what is at stake will say so itself."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


def _is_first_process() -> bool:
    """Whether Lightning will give this process rank 0, by the variables that it reads."""
    keys = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return int(next((os.environ[key] for key in keys if key in os.environ), 0)) == 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
