"""Processes that run scripts, forked off one that has imported everything, and signals in them."""

import fcntl
import functools
import itertools
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from helpers.tiny import ONE_THREAD, REPO, Ended


class Blow(NamedTuple):
    """Where a process sends itself a signal: at the n-th event of this kind and name.

    Attributes:
        event: 'step' (name: 'EPOCH:BATCH', both from 0), 'open', 'os.rename', 'fsync', ...; empty
            for any operation on files below a run directory or a cache.
        name: Part of the file's path; empty for any.
        nth: From 1; 0 for never.
        signal: SIGKILL at an fsync leaves half of what was written.
        hang: Seconds that the event lasts, then.
    """

    event: str = ""
    name: str = ""
    nth: int = 1
    signal: int = signal.SIGKILL
    hang: float = 0


class Process:
    """A process that runs a script, forked off one that has imported everything.

    Args:
        context: Of multiprocessing, fixture `forks`.
        log: Gets its output.
        script: Name of the file in scripts/.
        arguments: Of the script.
        options: Of `run_script`.
    """

    def __init__(
        self, context: Any, log: Path, script: str, arguments: Sequence[object], **options: Any
    ) -> None:
        self.log = log
        self.log.touch()
        command = [str(REPO / "scripts" / f"{script}.py"), *map(str, arguments)]
        options = {"environment": os.environ | ONE_THREAD} | options
        self.process = context.Process(target=run_script, args=(command, log), kwargs=options)
        self.process.start()

    def send(self, signum: int) -> None:
        os.kill(self.process.pid, signum)

    def wait(self, seconds: float = 120) -> Ended:
        """Exit code as a shell counts it, but negative where a signal killed the process."""
        self.process.join(seconds)
        late = self.process.is_alive()
        if late:
            os.killpg(self.process.pid, signal.SIGKILL)
        assert not late, f"still there after {seconds} s: {self.log.read_text()}"
        return Ended(self.process.exitcode, "", self.log.read_text())

    def kill_after(self, seconds: float) -> Ended:
        """SIGKILL, unless it has ended before."""
        self.process.join(seconds)
        self.process.kill()
        return self.wait()


def run_script(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    cwd: Path | None = None,
    blow: Blow | None = None,
    folders: tuple[str, ...] = (),
    operations: str | None = None,
    largest_file: int | None = None,
) -> None:
    """Runs a script: the target of a process that was forked for it.

    Args:
        command: Path of the script, and its arguments.
        log: File that gets stdout and stderr.
        environment: All of its variables.
        cwd: Its working directory.
        blow: When to send itself a signal.
        folders: A blow at any operation counts those on files below.
        operations: File that gets a line for each such operation.
        largest_file: Bytes that a file may have, as with a quota.
    """
    os.setsid()  # a process group of its own, like a job's
    multiprocessing.set_start_method(None, force=True)  # for loaders: the system's own again
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(cwd or os.curdir)
    os.environ.clear()
    os.environ.update(environment)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if blow is not None or operations is not None:
        counted = None if operations is None else os.open(operations, os.O_WRONLY | os.O_CREAT)
        _strike(blow or Blow(nth=0), folders, counted)
    sys.argv = [*command]
    runpy.run_path(command[0], run_name="__main__")


def _strike(blow: Blow, folders: tuple[str, ...], log: int | None) -> None:
    from seglab.training.callbacks.recorder import RunRecorder

    numbers = itertools.count(1)
    prefixes = tuple(f"{folder}/" for folder in folders)

    def happened(event: str, name: str, descriptor: int = -1) -> None:
        if blow.event:
            counts = event == blow.event and blow.name in name
        else:
            counts = event != "step" and name.startswith(prefixes)
        if not counts:
            return
        number = next(numbers)
        if log is not None:
            os.write(log, f"{number} {event} {name}\n".encode())
        if number == blow.nth:
            if descriptor >= 0 and blow.signal == signal.SIGKILL:
                with suppress(OSError):  # a folder
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), blow.signal)
            time.sleep(blow.hang)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" or event.startswith(("os.", "shutil.")):
            # Of a renaming the new name.
            path = arguments[1] if event == "os.rename" else arguments[0] if arguments else None
            if isinstance(path, str | os.PathLike):
                happened(event, os.fspath(path))

    fsync, start = os.fsync, RunRecorder.on_train_batch_start

    @functools.wraps(fsync)
    def observed_fsync(descriptor: int) -> None:
        if sys.platform == "darwin":
            path = fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0").decode()
        else:
            path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        happened("fsync", path, descriptor)
        fsync(descriptor)

    def observed_start(self: Any, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        happened("step", f"{trainer.current_epoch}:{batch_idx}")
        start(self, trainer, module, batch, batch_idx)

    os.fsync = observed_fsync
    RunRecorder.on_train_batch_start = observed_start  # type: ignore[method-assign]
    sys.addaudithook(hook)
