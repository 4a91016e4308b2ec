"""What ends a run before its time: a signal sets a flag, and the loop saves and leaves; a hang shows its stacks."""

import faulthandler
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, `kill` and a scheduler's time limit, and the warning before it (sbatch --signal)."""


class StopRequest:
    """While entered, holds the first stopping signal that arrived; a second Ctrl-C interrupts at once.

    Enter it in the main thread, as far out as a job begins: what arrives before the loop is then heeded in its first
    step. One that is not entered never asks for anything.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "StopRequest":
        self.previous = {number: signal.signal(number, self.receive) for number in STOPPING}
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)


class Watchdog:
    """While entered, something must be `finished` within every so many seconds (0: never mind).

    Else this process shows the stacks of all its threads and ends. In a run whose processes wait for each other, all
    of them do.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> "Watchdog":
        self.finished()
        return self

    def __exit__(self, *details: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def finished(self) -> None:
        """A step of the work; time counts anew."""
        if self.seconds:
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__ or 2)


GRACE = 600
"""Seconds in which the parent of a helper process has to finish its step."""


@contextmanager
def signals_held() -> Iterator[None]:
    """While entered, stopping signals wait; a process that begins meanwhile holds them until it outlives them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def outlive_signals() -> None:
    """In a helper process: a signal to the whole group leaves it at work until its parent has finished a step."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    # The same signal ends a helper whose parent leaves in haste, so it must not be ignored for ever.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # held since before this process began
