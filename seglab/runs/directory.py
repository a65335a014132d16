"""Writes a run directory, and goes on in one after an interruption."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seglab.config import check_values, resolve_config
from seglab.core.errors import SWEEP_JOB_VARIABLE, InputError, name_some
from seglab.core.files import (
    expand_user,
    hash_json,
    lock_folder,
    name_file_in_errors,
    read_json,
    remove_partial,
    write_atomic,
    write_json,
)
from seglab.core.logs import log_to_console, log_to_file
from seglab.core.signals import Interrupts
from seglab.data.splits import Split, read_split
from seglab.runs import provenance
from seglab.runs.loading import parse_config
from seglab.runs.overrides import format_resumption
from seglab.runs.paths import FORMAT, RunPaths, check_format, refuse_damaged
from seglab.runs.records import read_data_files
from seglab.runs.thumbnails import SeenCases, write_thumbnails
from seglab.schema import config_differences

log = logging.getLogger("seglab")


class RunDirectory:
    """Directory of one run, written while the run lasts.

    config.yaml is the last file that :meth:`begin` writes: a directory without it holds nothing
    that could be lost.

    Attributes:
        path: The directory, absolute.
        paths: Paths of its files.
        record: run.json of this run.
        earlier_record: run.json of the interrupted or finished run that this one goes on with;
            empty for a new run.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = expand_user(path).absolute()
        self.paths = RunPaths(self.path)
        self.record: dict[str, Any] = {}
        self.earlier_record: dict[str, Any] = {}
        self._begun = False  # by this process
        self._until_end = ExitStack()

    def update(self, **values: Any) -> None:
        """Adds values to run.json."""
        self.record |= values
        write_json(self.paths.record, self.record)

    @contextmanager
    def recording(self, cfg: DictConfig, interrupts: Interrupts) -> Iterator[None]:
        """Keeps run.json and train.log while the body runs, and records how it ended.

        train.log is written from :meth:`begin` on. A run that is refused before leaves only
        run.json, or, where an earlier run lies here, everything as it was. Raises an InputError
        if the directory cannot be written, or another process uses it.
        """
        if not _is_first_process():  # of a distributed run; the first one writes
            with interrupts.handled(lambda: None):
                self.earlier_record = self._read_earlier_record()
                yield
            return
        refusal = (
            f"{self.path}: another process is at work on this run; wait for it, or name another "
            "directory with hydra.run.dir=..."
        )
        with (
            # A job of a sweep may start while one of a killed sweep is still saving.
            lock_folder(self.path, refusal, wait=SWEEP_JOB_VARIABLE in os.environ),
            log_to_console(log),
            self._until_end,
            interrupts.handled(self._on_force_quit),
        ):
            self.earlier_record = self._read_earlier_record()
            self._start_record(cfg)
            try:
                yield
            except (KeyboardInterrupt, SystemExit) as error:
                # Lightning turns Ctrl-C into sys.exit, which would end a whole sweep.
                log.debug("interrupted")
                self._close("interrupted", None)
                raise type(interrupts.error())(self._how_to_go_on()) from error
            except BaseException as error:
                self._record_failure(cfg, error)
                if isinstance(error, OSError) and error.filename is None:
                    with name_file_in_errors(self.path):
                        raise
                raise
            self._close("finished", None)

    @property
    def is_finished(self) -> bool:
        """Whether an earlier process trained the run to its end."""
        return self.earlier_record.get("status") == "finished"

    def check_same_config(self, config: dict[str, Any]) -> None:
        """Raises an InputError if the run that lies here has another config."""
        if not self.earlier_record:
            return
        changed = config_differences(parse_config(self.paths.config), config)
        if changed:
            raise InputError(
                f"{self.path}: holds a run of another config ({', '.join(changed[:5])}); name "
                "another directory with hydra.run.dir=..., or give the same config to go on"
            )

    def begin(
        self,
        config: dict[str, Any],
        split: Split,
        thumbnails: np.ndarray,
        files: dict[str, str],
        modules: dict[str, str],
        warnings: Sequence[logging.LogRecord],
        seen_before: SeenCases,
    ) -> None:
        """Writes what is known before the first step, or compares it with what is written.

        In a distributed run only the first process calls it. Raises an InputError if the run that
        lies here was begun on other data.

        Args:
            config: Resolved, plain containers.
            split: Split of the cases.
            thumbnails: Of train and val, in the order of the split, see `write_thumbnails`.
            files: SHA-256 of every file that was read as data, by its path below the data's root.
            modules: SHA-256 of modules and weights outside seglab that the config names.
            warnings: Warnings about the data, logged before.
            seen_before: Cases that the weights that it starts from have seen.
        """
        code, diff = provenance.read_code_state()
        environment = {
            "git": code,
            "versions": provenance.installed_versions(),
            "machine": provenance.describe_machine(),
        }
        if self.earlier_record:
            self._check_unchanged(split, files, modules)
        self._begun = True
        remove_partial(self.path)
        self._until_end.enter_context(log_to_file(log, self.paths.log, warnings))
        self.record["warnings"] = [record.getMessage() for record in warnings]
        if self.earlier_record:
            self._record_resumption(environment)
            return
        write_json(self.paths.split, split.to_json())
        pictures = [picture for cases in seen_before.values() for picture in cases.values()]
        write_thumbnails(self.paths, np.stack([*thumbnails, *pictures]))
        before = {part: [*cases] for part, cases in seen_before.items()}
        data = {"root": config["data"]["root"], "files": files, "seen_before": before}
        write_json(self.paths.data, data)
        if diff:
            write_atomic(self.paths.code_diff, diff)
        self.update(
            **environment, data_fingerprint=hash_json(files), split_hash=split.hash, modules=modules
        )
        write_atomic(self.paths.config, OmegaConf.to_yaml(config))

    def checkpoint_to_resume(self, metadata: dict[str, Any]) -> tuple[Path | None, int]:
        """Returns last.ckpt of an interrupted run and its step; None and -1 where there is none.

        Raises an InputError if it was written with other metadata: section `seglab` of this run's
        checkpoints.
        """
        from seglab.runs.checkpoints import read_checkpoint  # imports torch

        file = self.paths.last_checkpoint
        if not self.earlier_record or not file.exists():
            return None, -1
        checkpoint = read_checkpoint(file)
        stored, step = checkpoint["seglab"], checkpoint["global_step"]
        changed = config_differences(stored["config"], metadata["config"])
        if changed or stored["split_hash"] != metadata["split_hash"]:
            raise InputError(
                f"{file}: is of another run ({', '.join(changed[:5]) or 'another split'}); put the "
                "run's own file back, or delete it to train from the beginning"
            )
        log.info("going on after step %d, from %s", step, file)
        if self._begun:
            self.record["resumed"][-1] |= {"step": step}
        return file, step

    def _read_earlier_record(self) -> dict[str, Any]:
        """Reads the record of the run that lies here; empty where nothing can be lost."""
        if not self.paths.config.exists():
            if any(self.paths.best_checkpoint.parent.glob("*.ckpt")):
                raise InputError(
                    f"{self.path}: holds checkpoints, but no config.yaml of their run; restore it, "
                    "or name another directory with hydra.run.dir=..."
                )
            return {}
        with refuse_damaged(self.paths.record) as file:
            record: dict[str, Any] = read_json(file)
            check_format(record, file)
        return record

    def _start_record(self, cfg: DictConfig) -> None:
        if self.earlier_record:
            self.record = dict(self.earlier_record)
            return
        # A sweep has noted in run.json which of the job's overrides vary.
        planned = read_json(self.paths.record) if self.paths.record.exists() else {}
        self.update(
            format=FORMAT,
            status="running",
            seed=cfg.seed if isinstance(cfg.seed, int | None) else str(cfg.seed),
            start=_now(),
            end=None,
            error=None,
            command=[sys.executable, *sys.argv],
            overrides=list(HydraConfig.get().overrides.task if HydraConfig.initialized() else []),
            directory=str(Path.cwd()),
            varies=planned.get("varies", {}),
        )

    def _check_unchanged(
        self, split: Split, files: dict[str, str], modules: dict[str, str]
    ) -> None:
        """Refuses to go on with other weights, data or split than the run was begun with."""
        advice = "restore it to go on, or name another directory with hydra.run.dir=..."
        for key in ("model.weights", "init"):
            then, now = self.earlier_record["modules"].get(key), modules.get(key)
            # What training started from need not be there any more.
            if then != now and not (key == "init" and now is None):
                raise InputError(
                    f"{self.path}: {key} is another file than when this run began; {advice}"
                )
        changed = provenance.describe_changed_files(read_data_files(self.path), files)
        if changed:
            more = "; ..." if len(changed) > 5 else ""
            raise InputError(
                f"{self.path}: the data has changed since this run began "
                f"({'; '.join(changed[:5])}{more}); {advice}"
            )
        if read_split(self.paths.split).hash != split.hash:
            raise InputError(
                f"{self.paths.split}: is not the split of this config and data; {advice}"
            )

    def _record_resumption(self, environment: dict[str, Any]) -> None:
        """Notes in the record that the run goes on, and what has changed since it began."""
        changes = {k: now for k, now in environment.items() if now != self.earlier_record.get(k)}
        if changes:
            names = []
            for key, now in changes.items():
                then = self.earlier_record.get(key) or {}
                names.append(f"{key} ({name_some([k for k in now if now[k] != then.get(k)])})")
            log.warning(
                "changed since this run began: %s; the result may differ from that of a run "
                "without interruption",
                ", ".join(names),
            )
        resumed = [*self.earlier_record.get("resumed", []), {"time": _now(), **changes}]
        self.update(status="running", end=None, error=None, resumed=resumed)

    def _record_failure(self, cfg: DictConfig, error: BaseException) -> None:
        log.debug("ended by an error", exc_info=True)
        if not self._begun and not self.earlier_record:
            with suppress(OmegaConfBaseException):  # which may be the error itself
                self.record["config"] = resolve_config(cfg)
        self._close("failed", f"{type(error).__name__}: {error}")

    def _close(self, status: str, error: str | None) -> None:
        if self.earlier_record and not self._begun:
            return  # the earlier run is left as it was
        try:
            self.update(status=status, error=error, end=_now())
        except OSError:
            if status == "finished":
                raise
            # run.json still says 'running', of a process that is gone: the run can be resumed.
            log.warning("%s: cannot be written", self.paths.record)

    def _on_force_quit(self) -> None:
        with suppress(Exception):
            self._close("interrupted", None)

    def _how_to_go_on(self) -> str:
        if not HydraConfig.initialized():
            return f"({self.path}; call train() with the same config to go on)"
        return f"(to go on: {format_resumption('hydra.run.dir', self.path)})"


def refuse_early(cfg: DictConfig) -> None:
    """Refuses a config for its values, as training would, before torch is imported."""
    try:
        check_values(cfg)
    except Exception:
        if not isinstance(cfg.run_dir, str) or not cfg.run_dir:
            raise  # there is no folder to say so in
        with RunDirectory(cfg.run_dir).recording(cfg, Interrupts()):
            raise


def _is_first_process() -> bool:
    """Whether Lightning will give this process rank 0, by the variables that it reads."""
    keys = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return int(next((os.environ[key] for key in keys if key in os.environ), 0)) == 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
