"""Signals: the first stops a run after its current step, the second at once."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from seglab.core.errors import SWEEP_JOB_VARIABLE, Terminated

log = logging.getLogger(__name__)

# Ctrl-C; what clusters send before they kill, and, by --signal, before a job's time is over.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Interrupts:
    """Handles the signals that ask a process to stop.

    Attributes:
        received_signal: The signal that was received, 0 for none.
        deferrable: Whether the process looks at `received_signal` and stops when it can; else the
            first signal raises at once.
    """

    def __init__(self) -> None:
        self.received_signal = 0
        self.deferrable = False
        self._handling = False
        self._on_force_quit: Callable[[], None] = lambda: None

    @contextmanager
    def handled(self, on_force_quit: Callable[[], None]) -> Iterator[None]:
        """Handles the signals while the body runs.

        Args:
            on_force_quit: Called on a second signal, right before the process ends.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread alone
            return
        self._on_force_quit = on_force_quit
        handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self._handling = True
        self.install()
        try:
            yield
        finally:
            self._handling = False
            for signum, handler in handlers.items():
                signal.signal(signum, handler)

    def install(self) -> None:
        """Installs the handlers again, in place of Lightning's, while signals are handled."""
        if self._handling:
            for signum in SIGNALS:
                signal.signal(signum, self._handle)

    def error(self) -> KeyboardInterrupt:
        """Returns the exception to raise for the received signal."""
        return KeyboardInterrupt() if self.received_signal in (0, signal.SIGINT) else Terminated()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received_signal:
            if SWEEP_JOB_VARIABLE in os.environ:
                return  # the cluster and the launcher may both send one
            self._on_force_quit()
            os._exit(128 + signum)
        self.received_signal = signum
        if not self.deferrable:
            raise self.error()
        log.info("stopping after this step; a second signal ends the process at once")


def stop_with_launcher() -> None:
    """In a job of a sweep: sends SIGTERM to this process when the pipe to its launcher closes.

    The launcher stops jobs in this way, and the pipe closes too when the launcher is killed.
    """
    if SWEEP_JOB_VARIABLE not in os.environ:
        return

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
