"""Forks the jobs of a local sweep off a process that has imported what training needs.

Imports take seconds, a fork milliseconds. multiprocessing's fork server would not do: its
processes run no exit functions, are joined when the sweep ends by an error, and change how
loaders and Lightning start theirs. Here a job is the command's own process, forked.
"""

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from seglab.core.commands import make_command
from seglab.core.errors import SWEEP_JOB_VARIABLE
from seglab.sweeps.jobs import start_process

_SERVER = "server"  # value of SWEEP_JOB_VARIABLE in the process that forks
_POLL_SECONDS = 0.05


class ForkedJob:
    """Process of a job that a `ForkServer` has forked, with the members of `Popen` that are used.

    Args:
        requests: Socket to the server.
        arguments: Command line of the job.
        log_file: File that gets its output.
    """

    returncode: int | None = None

    def __init__(self, requests: socket.socket, arguments: Sequence[str], log_file: Path) -> None:
        stdin, self.stdin = Pipe(duplex=False)
        self._exit_code, exit_code = Pipe(duplex=False)
        with stdin, exit_code, log_file.open("ab") as output:
            files = [stdin.fileno(), output.fileno(), exit_code.fileno()]
            socket.send_fds(requests, [json.dumps([*arguments]).encode()], files)

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        if self.returncode is None and self._exit_code.poll():
            try:
                self.returncode = self._exit_code.recv()
            except EOFError:  # the server was killed, and the job has ended since
                self.returncode = 1
        return self.returncode


class ForkServer:
    """Process that imports what training needs, then forks a process for each job.

    It starts with the first job, and again where it was killed. It ends with this process.

    Args:
        environment: Variables that are set for the jobs. Those on threads count when torch is
            loaded, so they are the same for all.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment | {SWEEP_JOB_VARIABLE: _SERVER}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, arguments: Sequence[str], log_file: Path) -> ForkedJob:
        """Start a job, which stops when its stdin closes, as by the end of this process."""
        if self._process is None or self._process.poll() is not None:
            # Each message is read by itself, with its files.
            self._requests, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with requests:  # an import that fails is told in the log of the first job
                self._process = start_process(
                    make_command([]), log_file, self._environment, requests
                )
        return ForkedJob(self._requests, arguments, log_file)


def is_fork_server() -> bool:
    """Whether a `ForkServer` has started this process."""
    return os.environ.get(SWEEP_JOB_VARIABLE) == _SERVER


def fork_jobs() -> None:
    """Fork a process for each request on stdin, and return in these alone.

    No thread may run, no OpenMP region have been run and no GPU be in use before.
    """
    exit_codes: dict[int, Connection] = {}
    with socket.socket(fileno=os.dup(0)) as requests:
        while True:
            if select.select([requests], [], [], _POLL_SECONDS)[0]:
                message, files, *_ = socket.recv_fds(requests, 2**20, 3)
                if not message:
                    os._exit(0)  # the sweep has ended
                pid = os.fork()
                if not pid:
                    return _become_job(json.loads(message), *files)
                for file in files[:2]:
                    os.close(file)
                exit_codes[pid] = Connection(files[2], readable=False)
            while exit_codes:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                with exit_codes.pop(pid) as exit_code, suppress(BrokenPipeError):
                    exit_code.send(os.waitstatus_to_exitcode(status))


def _become_job(arguments: list[str], stdin: int, output: int, exit_code: int) -> None:
    """Give this process what `start_process` gives; `exit_code` stays open until it ends."""
    os.setsid()
    for file, copy in ((stdin, 0), (output, 1), (output, 2)):
        os.dup2(file, copy)
    os.close(stdin)
    os.close(output)
    sys.argv += arguments
    os.environ[SWEEP_JOB_VARIABLE] = "1"
