"""Signals: the first ends a run where it can be resumed, the second at once."""

from __future__ import annotations

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
    """What was asked for by signals while a run lasts.

    Attributes:
        asked: The signal that came, 0 for none.
        deferrable: Whether somebody looks at `asked` and stops at the next good moment; else the
            first signal raises where it comes.
    """

    def __init__(self) -> None:
        self.received_signal = 0
        self.deferrable = False
        self._handling = False
        self._last_words: Callable[[], None] = lambda: None

    @contextmanager
    def handled(self, on_force_quit: Callable[[], None]) -> Iterator[None]:
        """Takes the signals over while the body runs.

        Args:
            on_force_quit: Called before a second signal ends the process, with nothing in between.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread alone
            return
        self._last_words = on_force_quit
        before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self._handling = True
        self.install()
        try:
            yield
        finally:
            self._handling = False
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def install(self) -> None:
        """While signals are handled: puts the handlers in place of those that Lightning has put."""
        if self._handling:
            for signum in SIGNALS:
                signal.signal(signum, self._handle)

    def error(self) -> KeyboardInterrupt:
        """What to raise for the signal that came."""
        return KeyboardInterrupt() if self.received_signal in (0, signal.SIGINT) else Terminated()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received_signal:
            if SWEEP_JOB_VARIABLE in os.environ:
                return  # a cluster and the launcher may both have asked; who is in a hurry kills
            self._last_words()
            os._exit(128 + signum)
        self.received_signal = signum
        if not self.deferrable:
            raise self.error()
        log.info("stopping after this step; a second signal ends the process at once")


def stop_with_launcher() -> None:
    """In a job of a sweep: asks it to stop when the pipe to its launcher is closed.

    That is how the launcher asks, and what happens when the launcher is killed.
    """
    if SWEEP_JOB_VARIABLE not in os.environ:
        return

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
